//! What a Linux kernel is told at its 64-bit entry: `boot_params`, the zero page (Linux,
//! `Documentation/arch/x86/boot.rst` and `zero-page.rst`).

use super::{BootError, Kernel, e820};
use crate::boot::fields::put;
use crate::boot::write;
use crate::x86_64::layout::{COMMAND_LINE, MemoryLayout, ZERO_PAGE};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use machine::bus::Range;
use machine::memory::{GuestAddress, Memory};
use std::mem::offset_of;

/// Where the setup header is, in the zero page and in a bzImage.
pub(super) const SETUP_HEADER: usize = offset_of!(boot_params, hdr);
/// The end of the room for it.
pub(super) const SETUP_HEADER_END: usize = offset_of!(boot_params, edd_mbr_sig_buffer);
/// Value of `boot_flag`.
pub(super) const BOOT_FLAG: u16 = 0xaa55;
/// Value of `header`: "HdrS".
pub(super) const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without a number of its own.
const TYPE_OF_LOADER_UNDEFINED: u8 = 0xff;
/// The video mode the kernel finds.
const VID_MODE_NORMAL: u16 = 0xffff;

/// Offset in the zero page, and in a bzImage, of a field of the setup header.
macro_rules! setup_field {
    ($field:ident) => {
        SETUP_HEADER.saturating_add(offset_of!(setup_header, $field))
    };
}
pub(super) use setup_field;

/// Writes the zero page and says where it is.
pub(super) fn write_zero_page(
    memory: &Memory,
    layout: &MemoryLayout,
    kernel: &Kernel,
    initramfs: Option<Range>,
    command_line_size: usize,
    rsdp: GuestAddress,
) -> Result<GuestAddress, BootError> {
    let mut page = [0; size_of::<boot_params>()];
    put(&mut page, SETUP_HEADER, &kernel.setup_header);
    if kernel.setup_header.is_empty() {
        put(&mut page, setup_field!(boot_flag), &BOOT_FLAG.to_le_bytes());
        put(&mut page, setup_field!(header), &HEADER_MAGIC.to_le_bytes());
        let size = u32::try_from(command_line_size).unwrap_or(u32::MAX);
        put(&mut page, setup_field!(cmdline_size), &size.to_le_bytes());
    }
    put(&mut page, setup_field!(vid_mode), &VID_MODE_NORMAL.to_le_bytes());
    put(&mut page, setup_field!(type_of_loader), &[TYPE_OF_LOADER_UNDEFINED]);
    // All of these are below 4 GiB, since the RAM they are in is.
    put(&mut page, setup_field!(cmd_line_ptr), &low(COMMAND_LINE.0));
    if let Some(Range { start, size }) = initramfs {
        put(&mut page, setup_field!(ramdisk_image), &low(start));
        put(&mut page, setup_field!(ramdisk_size), &low(size));
    }
    put(&mut page, offset_of!(boot_params, acpi_rsdp_addr), &rsdp.0.to_le_bytes());

    let map = e820(layout);
    put(&mut page, offset_of!(boot_params, e820_entries), &[u8::try_from(map.len()).unwrap_or(u8::MAX)]);
    let table = page.get_mut(offset_of!(boot_params, e820_table)..).unwrap_or_default();
    for (place, entry) in table.chunks_exact_mut(size_of::<boot_e820_entry>()).zip(&map) {
        put(place, 0, &entry.range.start.to_le_bytes());
        put(place, 8, &entry.range.size.to_le_bytes());
        put(place, 16, &(entry.kind as u32).to_le_bytes());
    }
    write(memory, ZERO_PAGE, &page)?;
    Ok(ZERO_PAGE)
}

/// The low half.
fn low(value: u64) -> [u8; 4] {
    (value as u32).to_le_bytes()
}
