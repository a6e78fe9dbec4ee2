//! The files a guest is booted from.

use crate::config::VmConfig;
use anyhow::{Context, Result, anyhow};
use arch::native::boot::BootError;
use std::fs::File;

/// The files a guest is booted from, open.
pub struct BootFiles {
    /// `--kernel`.
    pub kernel: File,
    /// `--initramfs`.
    pub initramfs: Option<File>,
}

impl BootFiles {
    /// Opens them.
    ///
    /// # Errors
    /// When one cannot be read, naming its option.
    pub fn open(config: &VmConfig) -> Result<Self> {
        let payload = &config.payload;
        let kernel = payload.kernel.as_ref().context("--kernel is missing")?;
        let open = |option: &str, path: &std::path::Path| {
            let file = File::open(path).map_err(|error| {
                anyhow!("{option} {}: {error}; correct the path, or allow reading the file", path.display())
            })?;
            anyhow::ensure!(
                !file.metadata()?.is_dir(),
                "{option} {}: is a directory; give a file",
                path.display()
            );
            Ok(file)
        };
        let initramfs = payload.initramfs.as_ref().map(|path| open("--initramfs", path)).transpose()?;
        Ok(Self { kernel: open("--kernel", kernel)?, initramfs })
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
