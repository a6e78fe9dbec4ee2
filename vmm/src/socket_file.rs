//! Sockets of the process itself, by their paths.

use anyhow::{Context, Result, bail};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The path of a socket that this process listens on. It goes when this is dropped, unless another file has come there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    made: Metadata,
}

impl SocketFile {
    /// Listens at `path`, where an earlier process may have left a socket that nobody listens on.
    ///
    /// # Errors
    /// When something else is there, another process listens there, or the host refuses.
    pub fn bind(path: &Path) -> Result<(UnixListener, Self)> {
        let socket = bind(path)?;
        let made = path.symlink_metadata().context("looking at the new socket")?;
        Ok((socket, Self { path: path.to_owned(), made }))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |found: Metadata| (found.dev(), found.ino()) == (self.made.dev(), self.made.ino());
        if self.path.symlink_metadata().is_ok_and(is_ours) {
            // Whoever took it away meanwhile has done what is wanted.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        result => return result.context("listening on it"),
    }
    if !path.symlink_metadata()?.file_type().is_socket() {
        bail!("is there already, and is no socket; give another path");
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(error) => return Err(error).context("looking who listens on it"),
        Ok(_) => bail!("another process listens on it; end that one, or give another path"),
    }
    std::fs::remove_file(path).context("taking away the socket of a process that is gone")?;
    UnixListener::bind(path).context("listening on it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_goes_with_its_owner_and_what_is_dead_is_replaced() {
        let path = std::env::temp_dir().join(format!("vivarium-socket-file-{}", std::process::id()));
        drop(UnixListener::bind(&path).unwrap());
        let bound = SocketFile::bind(&path).unwrap();
        let refusal = SocketFile::bind(&path).unwrap_err();
        assert!(refusal.to_string().starts_with("another process listens on it"), "{refusal}");
        drop(bound);
        assert!(!path.exists());
        let bound = SocketFile::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(bound);
        let refusal = SocketFile::bind(&path).unwrap_err();
        assert!(refusal.to_string().starts_with("is there already"), "{refusal}");
        std::fs::remove_file(&path).unwrap();
    }
}
