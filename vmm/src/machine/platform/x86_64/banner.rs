//! Looks for the text by which a Linux kernel tells its version.

use anyhow::Result;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Whether the kernel has Linux's banner in it, uncompressed. Linux is never small.
///
/// # Errors
/// When the kernel cannot be read.
pub fn has_linux_banner(kernel: &File) -> Result<bool> {
    const BANNER: &[u8] = b"Linux version ";
    const SMALL: u64 = 1 << 20;
    const PIECE: usize = 1 << 20;
    let size = kernel.metadata()?.len();
    if size < SMALL {
        return Ok(false);
    }
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < size {
        let read = kernel.read_at(&mut piece, at)?;
        let found = piece.get(..read).is_some_and(|piece| memmem(piece, BANNER));
        if found || read < BANNER.len() {
            return Ok(found);
        }
        // Pieces overlap, so that one that is split is found too.
        at = at.saturating_add(read.saturating_sub(BANNER.len().saturating_sub(1)) as u64);
    }
    Ok(false)
}

/// Whether `needle` is in `haystack`.
fn memmem(haystack: &[u8], needle: &[u8]) -> bool {
    // SAFETY: both pointers are valid for the lengths given with them.
    let found = unsafe {
        libc::memmem(haystack.as_ptr().cast(), haystack.len(), needle.as_ptr().cast(), needle.len())
    };
    !found.is_null()
}
