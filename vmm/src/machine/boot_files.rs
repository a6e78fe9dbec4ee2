//! The files a guest is booted from.

use crate::config::VmConfig;
use anyhow::{Context, Result, anyhow};
use arch::native::boot::BootError;
use std::fs::File;
use std::os::unix::fs::FileExt;

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

    /// Whether the kernel has Linux's banner in it, uncompressed. Linux is never small.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn has_linux_banner(&self) -> Result<bool> {
        const BANNER: &[u8] = b"Linux version ";
        const SMALL: u64 = 1 << 20;
        const PIECE: usize = 1 << 20;
        let size = self.kernel.metadata()?.len();
        if size < SMALL {
            return Ok(false);
        }
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while at < size {
            let read = self.kernel.read_at(&mut piece, at)?;
            let found = piece.get(..read).is_some_and(|piece| memmem(piece, BANNER));
            if found || read < BANNER.len() {
                return Ok(found);
            }
            // Pieces overlap, so that one that is split is found too.
            at += (read - BANNER.len() + 1) as u64;
        }
        Ok(false)
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

/// Whether `needle` is in `haystack`.
fn memmem(haystack: &[u8], needle: &[u8]) -> bool {
    // SAFETY: both pointers are valid for the lengths given with them.
    let found = unsafe {
        libc::memmem(haystack.as_ptr().cast(), haystack.len(), needle.as_ptr().cast(), needle.len())
    };
    !found.is_null()
}
