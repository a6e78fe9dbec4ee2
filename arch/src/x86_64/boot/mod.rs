//! Loads a kernel and what it is told at its entry.
//!
//! The kernel's content chooses how it is entered:
//!
//! | content | entry |
//! |---|---|
//! | bzImage (Linux, 64-bit) | [`Protocol::Linux64`], 0x200 after where it is loaded |
//! | ELF with a PVH note | [`Protocol::Pvh`], where the note says |
//! | ELF without one (an uncompressed `vmlinux`) | [`Protocol::Linux64`], at the ELF's entry |
//!
//! Everything in a file is checked before it is used: a hostile one gives an error.

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

mod bzimage;
mod e820;
mod elf;
mod linux;
pub(super) mod long_mode;
mod pvh;

pub use crate::boot::{BootError, BootFile, CommandLineError, InitramfsError, KernelError};
pub use bzimage::setup_part;
pub use e820::{E820Entry, E820Type, e820};

use super::layout::{self, ACPI_RSDP, MemoryLayout, PAGE_SIZE};
use crate::boot::{Contents, HEAD_SIZE, looks_like, place_initramfs, write};
use machine::bus::Range;
use machine::memory::{GuestAddress, Memory};

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol: long mode, RSI points to `boot_params`.
    Linux64,
    /// Xen's PVH: 32-bit protected mode without paging, EBX points to `hvm_start_info`.
    Pvh,
}

/// Where the boot CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPoint {
    /// In which mode, and with which registers.
    pub protocol: Protocol,
    /// The first instruction.
    pub address: GuestAddress,
    /// `boot_params` or `hvm_start_info`.
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

/// A kernel in guest memory, and what it says of itself.
struct Kernel {
    protocol: Protocol,
    entry: u64,
    /// From its first byte to the end of what it needs to start.
    range: Range,
    /// Linux's setup header, as in the file; empty if it has none.
    setup_header: Vec<u8>,
    /// The last address an initramfs may have.
    initramfs_last: u64,
    /// The longest command line it takes, in bytes without the NUL.
    command_line_limit: u64,
}

/// What a kernel should be, for who gives it something else.
const WANTED: &str = "a 64-bit x86 bzImage or an uncompressed ELF kernel";

/// The longest command line of an x86 Linux, in bytes without the NUL.
pub const LINUX_COMMAND_LINE_LIMIT: u64 = 2047;

/// Loads a kernel, its initramfs and command line, and writes all it is told, below 1 MiB. ACPI's root pointer is, or will be,
/// at [`layout::ACPI_RSDP`]. Memory need not be zero before.
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
    let kernel = place_kernel(memory, layout, kernel)?;
    let initramfs = match initramfs {
        Some(file) => {
            let bottom = kernel.range.start.saturating_add(kernel.range.size);
            let top = layout.low_ram_end().min(kernel.initramfs_last.saturating_add(1));
            Some(place_initramfs(memory, bottom, top, PAGE_SIZE, file)?)
        }
        None => None,
    };
    write_command_line(memory, &kernel, command_line)?;
    let boot_data = match kernel.protocol {
        Protocol::Linux64 => {
            long_mode::write_page_tables(memory, layout.low_ram_end())?;
            linux::write_zero_page(memory, layout, &kernel, initramfs, command_line.len(), ACPI_RSDP)?
        }
        Protocol::Pvh => pvh::write_start_info(memory, layout, initramfs, ACPI_RSDP)?,
    };
    long_mode::write_gdt(memory, kernel.protocol)?;
    let entry = EntryPoint { protocol: kernel.protocol, address: GuestAddress(kernel.entry), boot_data };
    Ok(Loaded { entry, initramfs })
}

/// Reads the kernel into memory.
fn place_kernel(
    memory: &Memory,
    layout: &MemoryLayout,
    file: &mut impl BootFile,
) -> Result<Kernel, KernelError> {
    let mut contents = Contents::new(file).map_err(KernelError::Read)?;
    let mut head = [0; HEAD_SIZE];
    let head_size = contents.read_at_most(0, &mut head).map_err(KernelError::Read)?;
    let head = head.get(..head_size).unwrap_or_default();
    if head.is_empty() {
        Err(KernelError::Empty)
    } else if elf::is_elf(head) {
        elf::load(memory, layout, &mut contents)
    } else if bzimage::is_bzimage(head) {
        bzimage::load(memory, layout, &mut contents, head)
    } else {
        Err(KernelError::NotAKernel { looks_like: looks_like(head).into(), wanted: WANTED })
    }
}

/// Checks that what a kernel needs is RAM that is free.
fn check_kernel_range(layout: &MemoryLayout, range: Range) -> Result<(), KernelError> {
    let end = range.start.saturating_add(range.size);
    if range.start < layout::HIGH_RAM {
        return Err(KernelError::TooLow { start: range.start });
    }
    if end > layout.low_ram_end() {
        return Err(KernelError::NeedsMoreMemory { start: range.start, end, ram_end: layout.low_ram_end() });
    }
    Ok(())
}

/// Writes the command line with its NUL.
fn write_command_line(memory: &Memory, kernel: &Kernel, command_line: &str) -> Result<(), BootError> {
    let length = command_line.len() as u64;
    let limit = kernel.command_line_limit.min(layout::COMMAND_LINE_SIZE.saturating_sub(1));
    if length > limit {
        return Err(CommandLineError::TooLong { length, limit }.into());
    }
    if let Some(position) = command_line.bytes().position(|byte| byte == 0) {
        return Err(CommandLineError::Nul { position }.into());
    }
    let mut bytes = Vec::with_capacity(command_line.len().saturating_add(1));
    bytes.extend_from_slice(command_line.as_bytes());
    bytes.push(0);
    write(memory, layout::COMMAND_LINE, &bytes)
}

#[cfg(test)]
mod tests;
