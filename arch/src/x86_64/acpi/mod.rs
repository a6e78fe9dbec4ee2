//! ACPI tables (ACPI 6.5) of a hardware-reduced machine: what Linux and others learn of it without probing.
//!
//! [`AcpiConfig`] says what there is, [`build`] makes the tables for the addresses they will have, and
//! [`Tables::write`] puts them into guest memory. There are an RSDP, XSDT, FADT, DSDT, MADT and MCFG, and with
//! NUMA nodes an SRAT and a SLIT. There is no PPTT: on x86_64 an operating system takes the CPU topology from
//! CPUID.

mod dsdt;
mod fixed;
mod hotplug;
pub mod loader;
mod numa;
mod table;

use crate::layout::SegmentWindows;
use crate::wiring::InterruptPins;
use machine::bus::Range;
use machine::memory::{Bytes, GuestAddress, Memory};
use table::{TableWriter, aligned};
use thiserror::Error;

/// What the tables describe.
#[derive(Clone, Debug, Default)]
pub struct AcpiConfig {
    /// The CPUs, the first of which boots. A CPU's place here is its ACPI processor UID.
    pub cpus: Vec<Cpu>,
    /// Address of the CPUs' local APICs.
    pub local_apic: u32,
    /// The I/O APIC.
    pub io_apic: IoApic,
    /// The PCI segments, by number.
    pub segments: Vec<SegmentWindows>,
    /// Where the PCI interrupt pins are wired.
    pub interrupt_pins: InterruptPins,
    /// Which memory belongs to which NUMA node. Without any there is no SRAT.
    pub memory: Vec<NodeMemory>,
    /// Row by row, how far one NUMA node's memory is from another's: 10 to itself, 255 for unreachable. All rows
    /// have as many entries as there are rows. Without any there is no SLIT.
    pub distances: Vec<Vec<u8>>,
    /// The sleep, reset and timer registers.
    pub registers: Registers,
    /// What reports hardware events, such as the power button.
    pub events: EventDevice,
    /// The first port of the PCI hotplug controller, if functions may come and go.
    pub pci_hotplug: Option<u16>,
    /// The first port of the CPU hotplug controller, if CPUs may come and go.
    pub cpu_hotplug: Option<u16>,
    /// The memory hotplug controller, if memory may come and go.
    pub memory_hotplug: Option<MemorySlots>,
    /// Guest-physical address of the virtual machine's generation id, if it has one.
    pub generation_id: Option<u64>,
    /// The first port of the firmware configuration device, if there is one.
    pub fw_cfg: Option<u16>,
    /// The 16550A serial ports.
    pub serial: Vec<IsaDevice>,
    /// The first of the CMOS clock's two ports. It has a century register at `0x32`, and no interrupt.
    pub rtc: Option<u16>,
    /// The pvpanic device's port.
    pub pvpanic: Option<u16>,
}

/// One CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// (x2)APIC id.
    pub apic_id: u32,
    /// It is there; otherwise it may be added while the machine runs.
    pub enabled: bool,
    /// NUMA node.
    pub node: u32,
}

/// The I/O APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoApic {
    /// Its APIC id.
    pub id: u8,
    /// Where its registers are.
    pub address: u32,
    /// The global system interrupt of its first pin.
    pub first_gsi: u32,
}

/// Memory of a NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    /// NUMA node.
    pub node: u32,
    /// Where it is.
    pub range: Range,
    /// It may be added while the machine runs.
    pub hotplug: bool,
}

/// The memory hotplug controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySlots {
    /// The first I/O port of its registers.
    pub port: u16,
    /// How many slots it has, at most 4096.
    pub count: u32,
}

/// I/O ports of the registers for sleep, reset and time (ACPI 6.5, 4.8.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Sleep status, 1 byte.
    pub sleep_status: u16,
    /// Sleep control, 1 byte.
    pub sleep_control: u16,
    /// Reset, 1 byte.
    pub reset: u16,
    /// What to write there.
    pub reset_value: u8,
    /// The power management timer, 4 bytes, if there is one.
    pub pm_timer: Option<u16>,
}

/// The generic event device (ACPI 6.5, 5.6.9): an interrupt, and a register that says what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventDevice {
    /// I/O port of the register, 4 bytes. Reading it takes the events: see [`EVENT_POWER_BUTTON`] and its like.
    pub port: u16,
    /// Its interrupt, an edge.
    pub gsi: u32,
}

/// A device at fixed ports with an edge-triggered interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaDevice {
    /// Its first I/O port.
    pub port: u16,
    /// Its interrupt.
    pub gsi: u32,
}

/// Value of the sleep type field that powers the machine off (`_S5`).
pub const SLEEP_TYPE_S5: u8 = 5;

/// Bit of the event device's register: the power button was pressed.
pub const EVENT_POWER_BUTTON: u32 = 1 << 0;
/// Bit of the event device's register: the CPU hotplug controller has something to tell.
pub const EVENT_CPU: u32 = 1 << 1;
/// Bit of the event device's register: the memory hotplug controller has something to tell.
pub const EVENT_MEMORY: u32 = 1 << 2;
/// Bit of the event device's register: the PCI hotplug controller has something to tell.
pub const EVENT_PCI: u32 = 1 << 3;
/// Bit of the event device's register: the machine has a new generation id.
pub const EVENT_GENERATION: u32 = 1 << 4;

/// Why tables could not be put into memory.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// They are larger than the space kept for them.
    #[error(
        "the ACPI tables take {needed} bytes, and {available} are kept for them: use fewer CPUs or PCI segments"
    )]
    TooLarge {
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// The place is not RAM.
    #[error("writing ACPI tables to guest memory at {address:#x}: {source}")]
    Memory {
        /// Where they were to go.
        address: u64,
        /// What guest memory answered.
        source: vm_memory::GuestMemoryError,
    },
}

/// The tables, made for certain addresses.
#[derive(Clone, Debug)]
pub struct Tables {
    place: Range,
    bytes: Vec<u8>,
    rsdp_address: GuestAddress,
    rsdp: Vec<u8>,
    index: Vec<([u8; 4], std::ops::Range<usize>)>,
}

/// Makes the tables, all but the RSDP to lie in `place`, which begins at a multiple of 16.
///
/// # Errors
/// When they do not fit.
pub fn build(config: &AcpiConfig, place: Range, rsdp: GuestAddress) -> Result<Tables, AcpiError> {
    let mut tables =
        Tables { place, bytes: Vec::new(), rsdp_address: rsdp, rsdp: Vec::new(), index: Vec::new() };
    let dsdt = tables.add(dsdt::dsdt(config));
    let mut entries = vec![
        tables.add(fixed::fadt(config, dsdt)),
        tables.add(fixed::madt(config)),
        tables.add(fixed::mcfg(config)),
    ];
    if !config.memory.is_empty() {
        entries.push(tables.add(numa::srat(config)));
    }
    if !config.distances.is_empty() {
        entries.push(tables.add(numa::slit(config)));
    }
    let mut xsdt = TableWriter::new(*b"XSDT", 1);
    for entry in entries {
        xsdt.u64(entry);
    }
    let xsdt = tables.add(xsdt.finish());
    tables.rsdp = table::rsdp(xsdt);
    let needed = tables.bytes.len() as u64;
    if needed > place.size {
        return Err(AcpiError::TooLarge { needed, available: place.size });
    }
    Ok(tables)
}

impl Tables {
    /// Puts them where they were made for.
    ///
    /// # Errors
    /// When that is not RAM.
    pub fn write(&self, memory: &Memory) -> Result<(), AcpiError> {
        let pieces = [(GuestAddress(self.place.start), &self.bytes), (self.rsdp_address, &self.rsdp)];
        for (address, bytes) in pieces {
            memory
                .write_slice(bytes, address)
                .map_err(|source| AcpiError::Memory { address: address.0, source })?;
        }
        Ok(())
    }

    /// The tables but the RSDP, by signature.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
        self.index.iter().map(|(signature, range)| (signature, &self.bytes[range.clone()]))
    }

    /// Adds a table and returns the address it will have.
    fn add(&mut self, table: Vec<u8>) -> u64 {
        self.bytes.resize(aligned(self.bytes.len()), 0);
        let start = self.bytes.len();
        let mut signature = [0; 4];
        signature.copy_from_slice(&table[..4]);
        self.bytes.extend(table);
        self.index.push((signature, start..self.bytes.len()));
        self.place.start + start as u64
    }
}

#[cfg(test)]
mod tests;
