//! The files a guest is booted from. They stay open, so that a machine restarts when they are no longer there by their names.

use crate::config::VmConfig;
use anyhow::{Context, Result, anyhow, bail};
use arch::native::boot::BootError;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The files a guest is booted from, open.
pub struct BootFiles {
    /// `--kernel`, without which there is firmware.
    pub kernel: Option<File>,
    /// `--initramfs`.
    pub initramfs: Option<File>,
    /// What they were when they were read last.
    seen: Vec<Version>,
}

/// What is said when there is nothing to boot.
pub const MISSING: &str = "--kernel is missing; give the kernel to boot: --kernel PATH";

/// Opens a regular file that is only read: it is read again when the guest restarts.
///
/// # Errors
/// When it cannot be read, or is something else, naming its option.
pub fn open(option: &str, path: &Path) -> Result<File> {
    let file = open_at_once(path).map_err(|error| {
        anyhow!("{option} {}: {error}; correct the path, or allow reading the file", path.display())
    })?;
    let kind = file.metadata()?.file_type();
    let what = match kind {
        _ if kind.is_file() => return Ok(file),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a pipe",
        _ => "a device",
    };
    bail!("{option} {}: is {what}; give a regular file", path.display())
}

/// Opens a file to read, without waiting for whoever is to write to it if it is a pipe.
fn open_at_once(path: &Path) -> io::Result<File> {
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    match opened {
        // A regular file that somebody has a lease on, and has to give up first (fcntl(2), F_SETLEASE).
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => File::open(path),
        opened => opened,
    }
}

/// What tells that a file is not what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    size: u64,
    modified: (i64, i64),
}

impl Version {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { size: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) })
    }
}

impl BootFiles {
    /// Opens them.
    ///
    /// # Errors
    /// When one cannot be read, naming its option.
    pub fn open(config: &VmConfig) -> Result<Self> {
        let payload = &config.payload;
        anyhow::ensure!(payload.kernel.is_some() || payload.firmware.is_some(), MISSING);
        let kernel = payload.kernel.as_ref().map(|path| open("--kernel", path)).transpose()?;
        let initramfs = payload.initramfs.as_ref().map(|path| open("--initramfs", path)).transpose()?;
        let mut files = Self { kernel, initramfs, seen: Vec::new() };
        files.changed()?;
        Ok(files)
    }

    /// The options whose files were changed since this was asked last. A file that was replaced by another of its name was not:
    /// the guest restarts from the one it began with.
    ///
    /// # Errors
    /// When the host cannot look at one, naming its option.
    pub fn changed(&mut self) -> Result<Vec<&'static str>> {
        let files = [("--kernel", self.kernel.as_ref()), ("--initramfs", self.initramfs.as_ref())];
        let files = files.into_iter().filter_map(|(option, file)| Some((option, file?)));
        let now = files
            .map(|(option, file)| Version::of(file).map(|version| (option, version)).context(option))
            .collect::<Result<Vec<_>>>()?;
        let changed = now.iter().zip(&self.seen).filter(|((_, now), before)| now != *before);
        let changed = changed.map(|((option, _), _)| *option).collect();
        self.seen = now.into_iter().map(|(_, version)| version).collect();
        Ok(changed)
    }
}

/// An error of loading them, with the option at fault.
pub fn name_option(config: &VmConfig, error: BootError) -> anyhow::Error {
    let payload = &config.payload;
    match (&error, &payload.kernel, &payload.initramfs) {
        (BootError::Kernel(reason), Some(path), _) => anyhow!("--kernel {}: {reason}", path.display()),
        (BootError::Initramfs(reason), _, Some(path)) => anyhow!("--initramfs {}: {reason}", path.display()),
        (BootError::CommandLine(reason), ..) => anyhow!("--cmdline: {reason}"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
        let path = std::env::temp_dir().join(format!("vivarium-boot-files-{}", std::process::id()));
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the name is a C string that lives during the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for (path, what) in
            [(&*path, "a pipe"), (Path::new("/dev/zero"), "a device"), (Path::new("/"), "a directory")]
        {
            let refusal = open("--initramfs", path).unwrap_err().to_string();
            assert_eq!(refusal, format!("--initramfs {}: is {what}; give a regular file", path.display()));
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "kernel").unwrap();
        open("--kernel", &path).unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
