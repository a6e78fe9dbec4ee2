//! The files a guest is booted from. They stay open, so that a machine restarts when they are no longer there by their names.

use crate::config::VmConfig;
use anyhow::{Context, Result, anyhow};
use arch::native::boot::BootError;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
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

/// Opens a file that is only read.
///
/// # Errors
/// When it cannot be read, naming its option.
pub fn open(option: &str, path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|error| {
        anyhow!("{option} {}: {error}; correct the path, or allow reading the file", path.display())
    })?;
    anyhow::ensure!(!file.metadata()?.is_dir(), "{option} {}: is a directory; give a file", path.display());
    Ok(file)
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
