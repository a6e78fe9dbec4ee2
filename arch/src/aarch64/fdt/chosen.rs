//! What the kernel is started with (Devicetree Specification 0.4, 3.6, and Linux, `Documentation/arch/arm/uefi.rst`), and the
//! tree that has nothing else.

use super::{Result, Tree};
use crate::aarch64::boot::Handover;
use machine::bus::Range;
use vm_fdt::FdtWriter;

/// Nothing was verified (Linux, `include/linux/efi.h`, `enum efi_secureboot_mode`).
const SECURE_BOOT_DISABLED: u32 = 2;

/// What the kernel is started with.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// The kernel's command line.
    pub command_line: String,
    /// The initramfs.
    pub initramfs: Option<Range>,
    /// Random bytes for the kernel.
    pub seed: Vec<u8>,
}

/// Makes the tree of a machine that ACPI tables describe. A kernel takes them only if the tree describes nothing.
///
/// # Errors
/// When the command line cannot be in a tree.
pub fn build_for_efi(chosen: &Chosen, efi: &Handover) -> Result<Vec<u8>> {
    let mut tree = Tree(FdtWriter::new()?);
    tree.node("", |tree| {
        tree.0.property_u32("#address-cells", 2)?;
        tree.0.property_u32("#size-cells", 2)?;
        node(tree, chosen, |tree| {
            tree.0.property_u64("linux,uefi-system-table", efi.system_table)?;
            tree.0.property_u64("linux,uefi-mmap-start", efi.memory_map.start)?;
            tree.0.property_u32("linux,uefi-mmap-size", efi.memory_map.size as u32)?;
            tree.0.property_u32("linux,uefi-mmap-desc-size", efi.descriptor_size)?;
            tree.0.property_u32("linux,uefi-mmap-desc-ver", efi.descriptor_version)?;
            // Kernels of distributions take no handover without it.
            Ok(tree.0.property_u32("linux,uefi-secure-boot", SECURE_BOOT_DISABLED)?)
        })
    })?;
    Ok(tree.0.finish()?)
}

/// Adds the node, and in it what `fill` adds.
pub(super) fn node(
    tree: &mut Tree,
    chosen: &Chosen,
    fill: impl FnOnce(&mut Tree) -> Result<()>,
) -> Result<()> {
    tree.node("chosen", |tree| {
        tree.0.property_string("bootargs", &chosen.command_line)?;
        if let Some(initramfs) = chosen.initramfs {
            tree.0.property_u64("linux,initrd-start", initramfs.start)?;
            tree.0.property_u64("linux,initrd-end", initramfs.start + initramfs.size)?;
        }
        if !chosen.seed.is_empty() {
            let (address, rest) = chosen.seed.split_at(chosen.seed.len().min(8));
            tree.0.property("kaslr-seed", address)?;
            tree.0.property("rng-seed", rest)?;
        }
        fill(tree)
    })
}
