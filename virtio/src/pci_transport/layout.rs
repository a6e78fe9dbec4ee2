//! What a virtio function looks like on PCI: identity, BARs and capabilities (virtio 1.2, 4.1.2 and 4.1.4).
//!
//! BAR 0, 64-bit memory of 64 KiB, is laid out the same for every device:
//!
//! | offset | size | |
//! |---|---|---|
//! | 0x0000 | 64 B | common configuration |
//! | 0x1000 | 1 B | ISR status |
//! | 0x2000 | 4 KiB | device configuration |
//! | 0x3000 | 4 KiB | doorbells, 4 bytes for each queue |
//! | 0x4000 | 256 B | MSI-X pending bits |
//! | 0x8000 | 32 KiB | MSI-X table |
//!
//! BAR 2, 64-bit prefetchable memory, holds the shared-memory regions of devices that have any.

use super::VirtioPciError;
use machine::interrupt::MsiAllocator;
use pci::bar::BarKind;
use pci::capability::ExpressKind;
use pci::config::{ConfigError, ConfigSpace, Identity};
use pci::intx::Intx;
use pci::msix::Msix;
use std::sync::Arc;

/// The BAR of the registers.
pub const REGISTERS_BAR: u8 = 0;
/// The BAR of shared memory.
pub const SHARED_MEMORY_BAR: u8 = 2;
/// Size of BAR 0 in bytes.
pub const BAR_SIZE: u64 = 0x1_0000;
/// Offset of the common configuration in BAR 0.
pub const COMMON: u64 = 0;
/// Size of the common configuration.
pub const COMMON_SIZE: u64 = 64;
/// Offset of the ISR status in BAR 0.
pub const ISR: u64 = 0x1000;
/// Offset of the device configuration in BAR 0.
pub const DEVICE: u64 = 0x2000;
/// Size of the device configuration.
pub const DEVICE_SIZE: u64 = 0x1000;
/// Offset of the doorbells in BAR 0.
pub const NOTIFY: u64 = 0x3000;
/// Size of the doorbells.
pub const NOTIFY_SIZE: u64 = 0x1000;
/// Distance of two queues' doorbells.
pub const NOTIFY_MULTIPLIER: u32 = 4;
/// Offset of the MSI-X pending bits in BAR 0.
pub const MSIX_PENDING: u32 = 0x4000;
/// Offset of the MSI-X table in BAR 0.
pub const MSIX_TABLE: u32 = 0x8000;
/// The most queues that the doorbells have room for.
pub const MAX_QUEUES: u16 = 1024;

/// Virtio's vendor id.
pub const VENDOR: u16 = 0x1af4;
/// A device's id is this and its type.
pub const DEVICE_BASE: u16 = 0x1040;

/// Types of structure a capability points to (virtio 1.2, 4.1.4).
pub mod structure {
    /// Common configuration.
    pub const COMMON: u8 = 1;
    /// Doorbells.
    pub const NOTIFY: u8 = 2;
    /// ISR status.
    pub const ISR: u8 = 3;
    /// Device configuration.
    pub const DEVICE: u8 = 4;
    /// A window in configuration space on the BARs.
    pub const PCI: u8 = 5;
    /// A shared-memory region.
    pub const SHARED_MEMORY: u8 = 8;
}

/// A class code that lets people and firmware see what the device is about.
fn class(device_type: u16) -> u32 {
    match device_type {
        1 => 0x02_00_00,      // network: Ethernet
        2 | 8 => 0x01_00_00,  // storage: SCSI
        3 => 0x07_80_00,      // communication: other
        5 | 24 => 0x05_80_00, // memory: other
        16 => 0x03_80_00,     // display: other
        18 => 0x09_80_00,     // input: other
        19 => 0x02_80_00,     // network: other
        23 => 0x08_06_00,     // system: IOMMU
        25 => 0x04_01_00,     // multimedia: audio
        26 => 0x01_80_00,     // storage: other
        _ => 0xff_00_00,
    }
}

/// One shared-memory region in BAR 2.
pub(super) struct Region {
    pub(super) id: u8,
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// Places the regions in a BAR, each at a multiple of its size rounded up to a power of two. Returns the BAR's size too.
fn place(regions: &[(u8, u64)]) -> Option<(Vec<Region>, u64)> {
    let mut end = 0_u64;
    let mut placed = Vec::new();
    for &(id, size) in regions {
        let alignment = size.max(4096).checked_next_power_of_two()?;
        let offset = end.checked_next_multiple_of(alignment)?;
        end = offset.checked_add(alignment)?;
        placed.push(Region { id, offset, size });
    }
    Some((placed, end.checked_next_power_of_two()?))
}

/// The body of a `virtio_pci_cap` after id and next pointer: length, type, BAR, id, padding, offset and length.
fn capability(kind: u8, bar: u8, id: u8, offset: u64, len: u64, extra: &[u8]) -> Vec<u8> {
    let size = extra.len().saturating_add(16) as u8;
    let mut body = vec![size, kind, bar, id, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(extra);
    body
}

/// The configuration space, its regions of shared memory, and the offset of the window on the BARs.
pub(super) struct Built {
    pub(super) config: ConfigSpace,
    pub(super) regions: Vec<Region>,
    pub(super) window: u16,
}

pub(super) fn build(
    device_type: u16,
    queues: u16,
    shared_memory: &[(u8, u64)],
    express: ExpressKind,
    msi: Arc<dyn MsiAllocator>,
    intx: Option<Intx>,
) -> Result<Built, VirtioPciError> {
    let mut config = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: DEVICE_BASE.saturating_add(device_type),
        class: class(device_type),
        revision: 1,
        subsystem_vendor: VENDOR,
        subsystem: DEVICE_BASE.saturating_add(device_type),
    });
    let (regions, size) = place(shared_memory).ok_or(VirtioPciError::SharedMemory)?;
    let window = add_all(&mut config, queues, &regions, size, express, msi)?;
    if let Some(intx) = intx {
        config.add_intx(1, intx);
    }
    Ok(Built { config, regions, window })
}

fn add_all(
    config: &mut ConfigSpace,
    queues: u16,
    regions: &[Region],
    shared_size: u64,
    express: ExpressKind,
    msi: Arc<dyn MsiAllocator>,
) -> Result<u16, ConfigError> {
    config.add_bar(REGISTERS_BAR, BarKind::Memory64 { prefetchable: false }, BAR_SIZE)?;
    if !regions.is_empty() {
        config.add_bar(SHARED_MEMORY_BAR, BarKind::Memory64 { prefetchable: true }, shared_size)?;
    }
    config.add_power_management()?;
    config.add_express(express, true)?;
    // One vector for each queue and one for configuration changes.
    config.add_msix(REGISTERS_BAR, MSIX_TABLE, MSIX_PENDING, Msix::new(queues.saturating_add(1), msi))?;
    let bar = REGISTERS_BAR;
    config.add_vendor_specific(&capability(structure::COMMON, bar, 0, COMMON, COMMON_SIZE, &[]), &[])?;
    config.add_vendor_specific(&capability(structure::ISR, bar, 0, ISR, 1, &[]), &[])?;
    config.add_vendor_specific(&capability(structure::DEVICE, bar, 0, DEVICE, DEVICE_SIZE, &[]), &[])?;
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    let doorbells = u64::from(queues).saturating_mul(NOTIFY_MULTIPLIER.into());
    config
        .add_vendor_specific(&capability(structure::NOTIFY, bar, 0, NOTIFY, doorbells, &multiplier), &[])?;
    // The driver chooses BAR, offset and length, and then accesses the last four bytes.
    let mut writable = [0xff; 18];
    if let Some(fixed) = writable.get_mut(..6) {
        fixed.copy_from_slice(&[0, 0, 0xff, 0, 0, 0]);
    }
    let window = config.add_vendor_specific(&capability(structure::PCI, 0, 0, 0, 0, &[0; 4]), &writable)?;
    for region in regions {
        let mut high = [0; 8];
        let (offset, size) = high.split_at_mut(4);
        offset.copy_from_slice(&((region.offset >> 32) as u32).to_le_bytes());
        size.copy_from_slice(&((region.size >> 32) as u32).to_le_bytes());
        let body = capability(
            structure::SHARED_MEMORY,
            SHARED_MEMORY_BAR,
            region.id,
            region.offset,
            region.size,
            &high,
        );
        config.add_vendor_specific(&body, &[])?;
    }
    Ok(window)
}
