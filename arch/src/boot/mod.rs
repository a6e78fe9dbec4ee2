//! What loading a kernel takes on every architecture: files read into guest memory, and what can be wrong with them.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod error;
mod file;
mod recognize;

pub use error::{BootError, CommandLineError, InitramfsError, KernelError};
pub use file::BootFile;

#[cfg(target_arch = "x86_64")]
pub(crate) use file::zero;
pub(crate) use file::{Contents, fields, write};
pub(crate) use recognize::{HEAD_SIZE, looks_like};

use machine::bus::Range;
use machine::memory::{GuestAddress, Memory};

/// Reads the initramfs into the highest memory of `bottom..top` that holds it, `top` being a multiple of `page`.
pub(crate) fn place_initramfs(
    memory: &Memory,
    bottom: u64,
    top: u64,
    page: u64,
    file: &mut impl BootFile,
) -> Result<Range, InitramfsError> {
    let mut contents = Contents::new(file).map_err(InitramfsError::Read)?;
    let mut first = [0; 1];
    if contents.read_at_most(0, &mut first).map_err(InitramfsError::Read)? == 0 {
        return Err(InitramfsError::Empty);
    }
    let size = contents.size();
    let bottom = bottom.checked_next_multiple_of(page).unwrap_or(u64::MAX);
    let start = top.checked_sub(size).map(|start| start & !page.wrapping_sub(1));
    let Some(start) = start.filter(|&start| start >= bottom) else {
        return Err(InitramfsError::TooLarge { size, available: top.saturating_sub(bottom) });
    };
    contents.load(memory, 0, GuestAddress(start), size).map_err(InitramfsError::Read)?;
    Ok(Range { start, size })
}
