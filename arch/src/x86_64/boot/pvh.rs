//! What a PVH kernel is told: `hvm_start_info` version 1 (Xen, `public/arch-x86/hvm/start_info.h`).

use super::{BootError, e820};
use crate::boot::write;
use crate::x86_64::layout::{COMMAND_LINE, MemoryLayout, PVH_START_INFO, ZERO_PAGE};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use machine::bus::Range;
use machine::memory::{GuestAddress, Memory};

/// "xEn3" with its top bit set.
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

const MODULE_LIST: GuestAddress = GuestAddress(PVH_START_INFO.0 + 0x40);
const MEMORY_MAP: GuestAddress = GuestAddress(PVH_START_INFO.0 + 0x80);
const MEMORY_MAP_SIZE: usize = (ZERO_PAGE.0 - MEMORY_MAP.0) as usize;
const _: () = assert!(size_of::<hvm_start_info>() <= 0x40 && size_of::<hvm_modlist_entry>() <= 0x40);
/// The map has 5 ranges below 4 GiB, 2 of RAM and 1 of ECAMs above.
const _: () = assert!(8 * size_of::<hvm_memmap_table_entry>() <= MEMORY_MAP_SIZE);

/// Writes the start information and what it refers to, and says where it is.
pub(super) fn write_start_info(
    memory: &Memory,
    layout: &MemoryLayout,
    initramfs: Option<Range>,
    rsdp: GuestAddress,
) -> Result<GuestAddress, BootError> {
    let map = e820(layout);
    let mut bytes = Vec::with_capacity(MEMORY_MAP_SIZE);
    for entry in &map {
        bytes.extend_from_slice(&entry.range.start.to_le_bytes());
        bytes.extend_from_slice(&entry.range.size.to_le_bytes());
        bytes.extend_from_slice(&(entry.kind as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
    }
    write(memory, MEMORY_MAP, &bytes)?;

    let (modules, module_list) = if initramfs.is_some() { (1u32, MODULE_LIST.0) } else { (0, 0) };
    if let Some(Range { start, size }) = initramfs {
        bytes.clear();
        for field in [start, size, 0, 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        write(memory, MODULE_LIST, &bytes)?;
    }

    bytes.clear();
    for field in [MAGIC, VERSION, 0, modules] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    for field in [module_list, COMMAND_LINE.0, rsdp.0, MEMORY_MAP.0, map.len() as u64] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    write(memory, PVH_START_INFO, &bytes)?;
    Ok(PVH_START_INFO)
}
