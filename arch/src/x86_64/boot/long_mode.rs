//! Descriptor and page tables for the kernel's entry.

use super::{BootError, Protocol};
use crate::boot::write;
use crate::x86_64::layout::{GDT, PAGE_SIZE, PAGE_TABLES};
use machine::memory::{GuestAddress, Memory};

/// Selector of the code segment, `__BOOT_CS` of Linux.
pub(in crate::x86_64) const CODE: u16 = 0x10;
/// Selector of the data segment, `__BOOT_DS` of Linux.
pub(in crate::x86_64) const DATA: u16 = 0x18;
/// Selector of the task state segment.
pub(in crate::x86_64) const TASK: u16 = 0x20;
/// Bytes of the descriptor table.
pub(in crate::x86_64) const GDT_SIZE: u16 = 0x30;
/// Limit of the task state segment, as PVH wants it.
pub(in crate::x86_64) const TASK_LIMIT: u32 = 0x67;

/// Flat segments (Intel SDM 3, 3.4.5): present, accessed, base 0, limit 4 GiB.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA_FLAT: u64 = 0x00cf_9300_0000_ffff;
/// A busy task state segment at 0; its second half, in long mode, is zero.
const TASK_BUSY: u64 = 0x0000_8b00_0000_0000 | TASK_LIMIT as u64;

/// Page-table entries: present and writable; and a 2 MiB page.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const ENTRIES: u64 = 512;
/// What one level-2 table maps.
const GIB: u64 = ENTRIES * LARGE_PAGE_SIZE;

/// Writes the descriptor table whose segments the CPU starts with.
pub(super) fn write_gdt(memory: &Memory, protocol: Protocol) -> Result<(), BootError> {
    let code = if protocol == Protocol::Linux64 { CODE_64 } else { CODE_32 };
    let mut table = [0; GDT_SIZE as usize];
    for (place, descriptor) in table.chunks_exact_mut(8).zip([0, 0, code, DATA_FLAT, TASK_BUSY, 0]) {
        place.copy_from_slice(&u64::to_le_bytes(descriptor));
    }
    write(memory, GDT, &table)
}

/// Writes page tables that map each address of the RAM that ends at `end`, 3 GiB at most, to itself.
pub(super) fn write_page_tables(memory: &Memory, end: u64) -> Result<(), BootError> {
    let table = |n: u64| PAGE_TABLES.0.saturating_add(n.saturating_mul(PAGE_SIZE));
    let level_2_tables = end.div_ceil(GIB).clamp(1, 3);
    write_table(memory, table(0), |n| if n == 0 { table(1) | PRESENT_WRITABLE } else { 0 })?;
    write_table(memory, table(1), |n| {
        if n < level_2_tables { table(n.saturating_add(2)) | PRESENT_WRITABLE } else { 0 }
    })?;
    for gib in 0..level_2_tables {
        let base = gib.saturating_mul(GIB);
        write_table(memory, table(gib.saturating_add(2)), |n| {
            base.saturating_add(n.saturating_mul(LARGE_PAGE_SIZE)) | LARGE | PRESENT_WRITABLE
        })?;
    }
    Ok(())
}

fn write_table(memory: &Memory, address: u64, entry: impl Fn(u64) -> u64) -> Result<(), BootError> {
    let mut table = [0; PAGE_SIZE as usize];
    for (place, n) in table.chunks_exact_mut(8).zip(0..ENTRIES) {
        place.copy_from_slice(&entry(n).to_le_bytes());
    }
    write(memory, GuestAddress(address), &table)
}
