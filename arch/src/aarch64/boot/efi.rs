//! What EFI firmware leaves for an operating system that it has started (UEFI 2.10, 4.3, 4.6, 7.2): the only way that a kernel
//! finds ACPI tables on Arm (Linux, `Documentation/arch/arm64/arm-acpi.rst`). There is no firmware, so nothing of it runs on: a
//! configuration table says that it offers no services.

use super::crc32::Crc32;
use crate::aarch64::layout::{self, MemoryLayout};
use crate::boot::{BootError, write};
use machine::bus::Range;
use machine::memory::{GuestAddress, Memory};

const SYSTEM_TABLE_SIGNATURE: u64 = u64::from_le_bytes(*b"IBI SYST");
/// Version 2.10 of the specification.
const REVISION: u32 = 2 << 16 | 100;
const SYSTEM_TABLE_SIZE: u32 = 120;
/// Offset of the checksum in a table's header (4.2.1).
const CHECKSUM: std::ops::Range<usize> = 16..20;

/// `EFI_ACPI_20_TABLE_GUID`.
const ACPI_20: Guid = Guid(0x8868_e871, 0xe4f1, 0x11d3, [0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81]);
/// `EFI_RT_PROPERTIES_TABLE_GUID`.
const RT_PROPERTIES: Guid =
    Guid(0xeb66_918a, 0x7eef, 0x402a, [0x84, 0x2e, 0x93, 0x1d, 0x21, 0xc3, 0x8a, 0xe9]);

/// `LINUX_EFI_MEMRESERVE_TABLE_GUID`, of Linux's own (`include/linux/efi.h`).
const MEMORY_RESERVED: Guid =
    Guid(0x888e_b0c6, 0x8ede, 0x4ff5, [0xa8, 0xf0, 0x9a, 0xee, 0x5c, 0xb9, 0x77, 0xc2]);

/// Bytes of a descriptor in the memory map, and its version (7.2.3).
const DESCRIPTOR_SIZE: u32 = 40;
const DESCRIPTOR_VERSION: u32 = 1;
const PAGE_BITS: u32 = 12;
/// `EFI_MEMORY_WB`: what RAM is.
const WRITE_BACK: u64 = 8;

/// What memory is used for.
#[derive(Clone, Copy)]
#[repr(u32)]
enum MemoryType {
    LoaderData = 2,
    Conventional = 7,
    AcpiReclaim = 9,
}

/// What a kernel has to be told of what EFI left, by the device tree (Linux, `Documentation/arch/arm/uefi.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Guest-physical address of the system table.
    pub system_table: u64,
    /// The memory map.
    pub memory_map: Range,
    /// Bytes of a descriptor in the memory map.
    pub descriptor_size: u32,
    /// The version of a descriptor.
    pub descriptor_version: u32,
}

/// Puts EFI's tables to [`layout::EFI`]. They lead to the RSDP at [`layout::ACPI_RSDP`].
///
/// # Errors
/// When the machine has no memory there.
pub fn place_efi(memory: &Memory, layout: &MemoryLayout) -> Result<Handover, BootError> {
    let mut area = Area(Vec::new());
    let vendor = area.add(&"Vivarium\0".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>());
    // Version, length, and a bit for each service that goes on: none (4.6.2).
    let properties = area.add(&[[1, 0, 8, 0], [0; 4]].concat());
    // The empty head of a list in which a kernel notes for the next one what memory its interrupt controller goes on to use.
    let reserved = area.add(&[0; 16]);
    let tables = [(ACPI_20, layout::ACPI_RSDP.0), (RT_PROPERTIES, properties), (MEMORY_RESERVED, reserved)];
    let list = tables.each_ref().map(|(id, address)| [id.bytes(), address.to_le_bytes().into()].concat());
    let listed = area.add(&list.concat());
    let system_table = area.add(&system_table(vendor, list.len() as u64, listed));
    let map = memory_map(layout);
    let memory_map = Range { start: area.add(&map), size: map.len() as u64 };
    write(memory, GuestAddress(layout::EFI.start), &area.0)?;
    Ok(Handover {
        system_table,
        memory_map,
        descriptor_size: DESCRIPTOR_SIZE,
        descriptor_version: DESCRIPTOR_VERSION,
    })
}

/// What is put to [`layout::EFI`].
struct Area(Vec<u8>);

impl Area {
    /// Adds a structure, and returns its address.
    fn add(&mut self, structure: &[u8]) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let address = layout::EFI.start.saturating_add(self.0.len() as u64);
        self.0.extend_from_slice(structure);
        address
    }
}

/// A GUID, by its fields.
struct Guid(u32, u16, u16, [u8; 8]);

impl Guid {
    fn bytes(&self) -> Vec<u8> {
        let Self(a, b, c, rest) = self;
        [a.to_le_bytes().as_slice(), &b.to_le_bytes(), &c.to_le_bytes(), rest].concat()
    }
}

/// The system table (4.3), without consoles and services.
fn system_table(vendor: u64, tables: u64, listed: u64) -> Vec<u8> {
    let mut table = SYSTEM_TABLE_SIGNATURE.to_le_bytes().to_vec();
    for field in [REVISION, SYSTEM_TABLE_SIZE, 0, 0] {
        table.extend(field.to_le_bytes());
    }
    let consoles_and_services = [0; 8];
    for field in [vendor, 0].into_iter().chain(consoles_and_services).chain([tables, listed]) {
        table.extend(field.to_le_bytes());
    }
    let mut checksum = Crc32::default();
    checksum.add(&table);
    if let Some(field) = table.get_mut(CHECKSUM) {
        field.copy_from_slice(&checksum.value().to_le_bytes());
    }
    table
}

/// The memory map: the device tree, what is kept of EFI and ACPI, and the rest.
fn memory_map(layout: &MemoryLayout) -> Vec<u8> {
    let between = |start: u64, end: u64| Range { start, size: end.saturating_sub(start) };
    let mut map = Vec::new();
    let mut add = |kind: MemoryType, range: Range| {
        // The type has padding behind it.
        for field in [kind as u64, range.start, 0, range.size >> PAGE_BITS, WRITE_BACK] {
            map.extend(field.to_le_bytes());
        }
    };
    add(MemoryType::LoaderData, between(layout::FDT.0, layout::EFI.start));
    // A kernel that starts another one leaves such memory as it is.
    add(MemoryType::AcpiReclaim, between(layout::EFI.start, layout::KERNEL));
    add(MemoryType::Conventional, between(layout::KERNEL, layout.ram_end()));
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::layout::LayoutRequest;
    use machine::memory::{Bytes, GuestRam};
    use std::sync::Arc;

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_system_table_leads_to_acpi_and_to_no_service() {
        let layout = MemoryLayout::new(&LayoutRequest::new(64 << 20, 40)).unwrap();
        let ram = layout.ram()[0];
        let memory: Memory =
            Arc::new(GuestRam::from_ranges(&[(GuestAddress(ram.start), ram.size as usize)]).unwrap());
        let handover = place_efi(&memory, &layout).unwrap();
        let read = |address: u64, size: usize| {
            let mut bytes = vec![0; size];
            memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            bytes
        };

        let mut system = read(handover.system_table, 120);
        assert_eq!(&system[..8], b"IBI SYST");
        let given = u32::from_le_bytes(system[16..20].try_into().unwrap());
        system[16..20].fill(0);
        let mut checksum = Crc32::default();
        checksum.add(&system);
        assert_eq!(given, checksum.value());
        assert_eq!(read(u64_at(&system, 24), 4), b"V\0i\0", "the vendor");
        assert_eq!((u64_at(&system, 88), u64_at(&system, 96)), (0, 0), "services");

        assert_eq!(u64_at(&system, 104), 3);
        let tables = read(u64_at(&system, 112), 72);
        // The identifiers as UEFI 2.10, 4.6 writes them.
        assert_eq!(tables[..8], [0x71, 0xe8, 0x68, 0x88, 0xf1, 0xe4, 0xd3, 0x11]);
        assert_eq!(u64_at(&tables, 16), layout::ACPI_RSDP.0);
        assert_eq!(tables[24..32], [0x8a, 0x91, 0x66, 0xeb, 0xef, 0x7e, 0x2a, 0x40]);
        assert_eq!(read(u64_at(&tables, 40), 8), [1, 0, 8, 0, 0, 0, 0, 0]);
        assert_eq!(tables[48..56], [0xc6, 0xb0, 0x8e, 0x88, 0xde, 0x8e, 0xf5, 0x4f]);
        assert_eq!(read(u64_at(&tables, 64), 16), [0; 16], "nothing is reserved yet");

        let map = read(handover.memory_map.start, handover.memory_map.size as usize);
        let mut next = ram.start;
        for descriptor in map.chunks_exact(handover.descriptor_size as usize) {
            assert_eq!(u64_at(descriptor, 8), next, "the ranges follow one another");
            // An operating system may have pages so large.
            assert!(next.is_multiple_of(layout::PAGE_SIZE));
            next += u64_at(descriptor, 24) << 12;
        }
        assert_eq!(next, ram.start + ram.size);
    }
}
