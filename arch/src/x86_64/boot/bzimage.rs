//! The bzImage format (Linux, `Documentation/arch/x86/boot.rst`), entered by the 64-bit protocol.

use super::linux::{BOOT_FLAG, HEADER_MAGIC, SETUP_HEADER, SETUP_HEADER_END, setup_field};
use super::{Kernel, KernelError, Protocol, check_kernel_range};
use crate::boot::fields::{u8_at, u16_at, u32_at, u64_at};
use crate::boot::{BootFile, Contents};
use crate::x86_64::layout::MemoryLayout;
use linux_loader::loader::bootparam::setup_header;
use machine::bus::Range;
use machine::memory::{GuestAddress, Memory};
use std::mem::offset_of;

/// The first version with `xloadflags`, which say whether there is a 64-bit entry: 2.12.
const VERSION_XLOADFLAGS: u16 = 0x20c;
/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `loadflags`: the kernel is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// Where the 64-bit entry is, from where the kernel is loaded.
const ENTRY_64: u64 = 0x200;
const SECTOR_SIZE: u64 = 512;
/// Unit of `syssize`.
const PARAGRAPH_SIZE: u64 = 16;
/// What `setup_sects` means when it is zero.
const DEFAULT_SETUP_SECTORS: u8 = 4;

/// Whether a file that starts with `head` has a Linux setup header.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    u16_at(head, setup_field!(boot_flag)) == Some(BOOT_FLAG)
        && u32_at(head, setup_field!(header)) == Some(HEADER_MAGIC)
}

/// Loads the protected-mode kernel where it prefers to be.
pub(super) fn load(
    memory: &Memory,
    layout: &MemoryLayout,
    contents: &mut Contents<'_, impl BootFile>,
    head: &[u8],
) -> Result<Kernel, KernelError> {
    let image = Image::parse(head, contents.size())?;
    let range = Range { start: image.address, size: image.needs };
    check_kernel_range(layout, range)?;
    contents
        .load(memory, image.file_offset, GuestAddress(image.address), image.size)
        .map_err(KernelError::Read)?;
    Ok(Kernel {
        protocol: Protocol::Linux64,
        entry: image.address.saturating_add(ENTRY_64),
        range,
        setup_header: image.setup_header,
        initramfs_last: u64::from(image.initramfs_last),
        command_line_limit: u64::from(image.command_line_limit),
    })
}

/// What is of interest in a bzImage.
struct Image {
    /// The setup header, as far as this kernel has one.
    setup_header: Vec<u8>,
    /// Where in the file the protected-mode kernel is.
    file_offset: u64,
    /// Its size in bytes.
    size: u64,
    /// Where it is to be.
    address: u64,
    /// The memory it needs from there, in bytes.
    needs: u64,
    initramfs_last: u32,
    command_line_limit: u32,
}

impl Image {
    fn parse(head: &[u8], file_size: u64) -> Result<Self, KernelError> {
        let head = head.get(..SETUP_HEADER_END).ok_or(KernelError::Truncated {
            what: "the setup header",
            needs: SETUP_HEADER_END as u64,
            has: file_size,
        })?;
        // The head has everything up to there.
        let missing = KernelError::Malformed("its setup header ends early");
        let fields = || {
            Some((
                u16_at(head, setup_field!(version))?,
                u16_at(head, setup_field!(xloadflags))?,
                u8_at(head, setup_field!(loadflags))?,
                u8_at(head, setup_field!(setup_sects))?,
                u32_at(head, setup_field!(syssize))?,
                u32_at(head, setup_field!(kernel_alignment))?,
                u64_at(head, setup_field!(pref_address))?,
            ))
        };
        let Some((version, xloadflags, loadflags, setup_sects, syssize, alignment, pref_address)) = fields()
        else {
            return Err(missing);
        };
        if version < VERSION_XLOADFLAGS || xloadflags & XLF_KERNEL_64 == 0 || loadflags & LOADED_HIGH == 0 {
            return Err(KernelError::NotAKernel {
                looks_like: "a bzImage without a 64-bit entry".into(),
                wanted: super::WANTED,
            });
        }

        let file_offset = setup_size(setup_sects);
        let size = u64::from(syssize).saturating_mul(PARAGRAPH_SIZE);
        if size <= ENTRY_64 {
            return Err(KernelError::Malformed("its setup header says that there is no kernel after it"));
        }
        // `syssize` is rounded up, the file need not be.
        let needed = file_offset.saturating_add(size);
        if file_size <= needed.saturating_sub(PARAGRAPH_SIZE) {
            return Err(KernelError::Truncated { what: "the kernel", needs: needed, has: file_size });
        }
        let size = size.min(file_size.saturating_sub(file_offset));

        // A kernel loaded below its preferred address moves itself up to it, and one loaded above saves nothing.
        if pref_address == 0 || (alignment != 0 && !pref_address.is_multiple_of(u64::from(alignment))) {
            return Err(KernelError::Malformed("its preferred address is not aligned as it should be"));
        }
        let init_size = u32_at(head, setup_field!(init_size)).unwrap_or(0);
        Ok(Self {
            setup_header: setup_header_bytes(head).to_vec(),
            file_offset,
            size,
            address: pref_address,
            needs: size.max(u64::from(init_size)),
            initramfs_last: u32_at(head, setup_field!(initrd_addr_max)).unwrap_or(0),
            command_line_limit: u32_at(head, setup_field!(cmdline_size)).unwrap_or(0),
        })
    }
}

/// Size of what comes before the protected-mode kernel: the boot sector, and `setup_sects` more.
fn setup_size(setup_sects: u8) -> u64 {
    let sectors = if setup_sects == 0 { DEFAULT_SETUP_SECTORS } else { setup_sects };
    u64::from(sectors).saturating_add(1).saturating_mul(SECTOR_SIZE)
}

/// Size in bytes of the real-mode code that a kernel file begins with, of which `head` is the first part: 0 if it is no
/// bzImage.
pub fn setup_part(head: &[u8]) -> u64 {
    let setup_sects = u8_at(head, setup_field!(setup_sects)).filter(|_| is_bzimage(head));
    setup_sects.map_or(0, setup_size)
}

/// The setup header, which ends where the jump at its start goes to: older kernels have a shorter one.
fn setup_header_bytes(head: &[u8]) -> &[u8] {
    let jump = setup_field!(jump);
    let distance = u8_at(head, jump.saturating_add(1)).unwrap_or(0);
    let end = jump.saturating_add(2).saturating_add(usize::from(distance)).min(SETUP_HEADER_END);
    head.get(SETUP_HEADER..end).unwrap_or_default()
}
