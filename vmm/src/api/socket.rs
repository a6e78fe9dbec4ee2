//! `--api-socket`: where the API listens.

use crate::config::options::options;
use anyhow::{Context, Result, bail};
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

options! {
    /// The UNIX socket that the REST API is served on: a path, or a socket that whoever started the process made.
    pub struct ApiSocketConfig {
        /// The socket's path; what a process that is gone left there is replaced.
        ["path" bare] path: Option<PathBuf> = None,
        /// The descriptor of a listening socket.
        ["fd"] fd: Option<i32> = None,
    }
}

/// Where clients of the API arrive. Its path goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    made: Option<(PathBuf, Metadata)>,
}

impl Listener {
    /// Listens where `config` says. What clients send before they are served waits.
    ///
    /// # Errors
    /// When that cannot be had; names the option.
    pub fn open(config: &ApiSocketConfig) -> Result<Self> {
        match (&config.path, config.fd) {
            (Some(path), None) => {
                let socket = bind(path).with_context(|| format!("--api-socket path={}", path.display()))?;
                let made = path.symlink_metadata().ok().map(|metadata| (path.clone(), metadata));
                Ok(Self { socket, made })
            }
            (None, Some(fd)) => {
                let fd = inherited(fd).with_context(|| format!("--api-socket fd={fd}"))?;
                Ok(Self { socket: fd.into(), made: None })
            }
            (Some(_), Some(_)) => bail!("--api-socket: has both path and fd; give one"),
            (None, None) => bail!("--api-socket: says nothing; write --api-socket path=<socket>"),
        }
    }

    /// The socket.
    ///
    /// # Errors
    /// When no descriptor is left for it.
    pub(super) fn socket(&self) -> io::Result<UnixListener> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some((path, made)) = &self.made else { return };
        let is_ours = |found: Metadata| (found.dev(), found.ino()) == (made.dev(), made.ino());
        if path.symlink_metadata().is_ok_and(is_ours) {
            // Whoever took it away meanwhile has done what is wanted.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Binds a socket at `path`, where an earlier process may have left one that nobody listens on.
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

/// Takes over a descriptor that the process was started with.
pub(super) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "is a standard stream; pass descriptor 3 or above",
        ));
    }
    // SAFETY: only asks for flags; a descriptor that is not open is an error.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and who wrote its number on the command line gave it to this option.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Duplicated, so that it closes on exec.
    fd.try_clone()
}
