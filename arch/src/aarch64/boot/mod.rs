//! Loads a kernel. Its content chooses how:
//!
//! | content | what is done |
//! |---|---|
//! | `Image` (Linux, `Documentation/arch/arm64/booting.rst`) | loaded where it asks to be |
//! | an `Image` compressed by gzip, zstd or xz | decompressed on the way |
//! | EFI zboot: a small EFI program that has a compressed `Image` in it | the `Image` is taken out and decompressed |
//!
//! Everything in a file is checked before it is used: a hostile one gives an error. What is decompressed goes straight to
//! guest memory, piece by piece, and so is never larger than that.

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

mod crc32;
mod decompress;
mod efi;
mod firmware;
mod image;

pub use efi::{Handover, place_efi};

pub use crate::boot::{BootError, BootFile, CommandLineError, InitramfsError, KernelError};
pub use firmware::{FIRMWARE, FirmwareError, check_firmware};

use super::layout::{self, MemoryLayout, PAGE_SIZE};
use crate::boot::{place_initramfs, write};
use machine::bus::Range;
use machine::memory::{GuestAddress, Memory};

/// Where the boot CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPoint {
    /// The first instruction.
    pub address: GuestAddress,
    /// The flattened device tree.
    pub boot_data: GuestAddress,
}

/// What was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where the boot CPU starts.
    pub entry: EntryPoint,
    /// The initramfs.
    pub initramfs: Option<Range>,
}

/// The longest command line of an arm64 Linux, in bytes without the NUL.
const COMMAND_LINE_LIMIT: u64 = 2047;
/// A kernel reaches its initramfs only within so many bytes of its own start.
const INITRAMFS_REACH: u64 = 32 << 30;

/// Loads a kernel and its initramfs. The device tree goes to [`layout::FDT`], see [`place_fdt`].
///
/// # Errors
/// When a file cannot be read or is not what it should be, or does not fit in the machine's memory.
pub fn load_kernel(
    memory: &Memory,
    layout: &MemoryLayout,
    kernel: &mut impl BootFile,
    initramfs: Option<&mut impl BootFile>,
    command_line: &str,
) -> Result<Loaded, BootError> {
    check_command_line(command_line)?;
    let kernel = image::load(memory, layout, kernel)?;
    let initramfs = match initramfs {
        Some(file) => {
            let bottom = kernel.start.saturating_add(kernel.size);
            let top = layout.ram_end().min(layout::RAM_START.saturating_add(INITRAMFS_REACH));
            Some(place_initramfs(memory, bottom, top, PAGE_SIZE, file)?)
        }
        None => None,
    };
    let entry = EntryPoint { address: GuestAddress(kernel.start), boot_data: layout::FDT };
    Ok(Loaded { entry, initramfs })
}

/// Puts the device tree to where the kernel is told that it is.
///
/// # Errors
/// When the machine has no memory there.
pub fn place_fdt(memory: &Memory, fdt: &[u8]) -> Result<(), BootError> {
    write(memory, layout::FDT, fdt)
}

fn check_command_line(command_line: &str) -> Result<(), CommandLineError> {
    let length = command_line.len() as u64;
    if length > COMMAND_LINE_LIMIT {
        return Err(CommandLineError::TooLong { length, limit: COMMAND_LINE_LIMIT });
    }
    match command_line.bytes().position(|byte| byte == 0) {
        Some(position) => Err(CommandLineError::Nul { position }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
