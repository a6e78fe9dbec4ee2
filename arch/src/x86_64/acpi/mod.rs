//! ACPI tables (ACPI 6.5) of a hardware-reduced machine: what Linux and others learn of it without probing.
//!
//! [`AcpiConfig`] says what there is, [`build`] makes the tables for the addresses they will have, and
//! [`Tables::write`] puts them into guest memory. There are an RSDP, XSDT, FADT, DSDT, MADT and MCFG, and with
//! NUMA nodes an SRAT and a SLIT. Where CPUs are grouped as the user chose there is a PPTT, which says what CPUID says.

mod dsdt;
mod fixed;
mod numa;

use crate::acpi::{numa as shared_numa, pci, pptt};
use crate::caches::Cache;
use crate::layout::SegmentWindows;
use crate::topology::Topology;
use crate::wiring::InterruptPins;
use machine::bus::Range;
use machine::memory::GuestAddress;

pub use crate::acpi::{AcpiError, NodeMemory, Tables, events, loader};

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
    /// The NUMA node of each of them that belongs to one.
    pub segment_nodes: Vec<Option<u32>>,
    /// Where the PCI interrupt pins are wired.
    pub interrupt_pins: InterruptPins,
    /// Which memory belongs to which NUMA node. Without any there is no SRAT.
    pub memory: Vec<NodeMemory>,
    /// How the CPUs are grouped. Without it there is no PPTT.
    pub processors: Option<Processors>,
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
    /// The CMOS clock, which has two ports, and a century register at `0x32`.
    pub rtc: Option<IsaDevice>,
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

/// How CPUs are grouped, and what they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processors {
    /// Their groups.
    pub topology: Topology,
    /// Every kind of cache that CPUs have.
    pub caches: Vec<Cache>,
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
    /// I/O port of the register, 4 bytes. Reading it takes the events: see [`events`].
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

/// Makes the tables, all but the RSDP to lie in `place`, which begins at a multiple of 16.
///
/// # Errors
/// When they do not fit.
pub fn build(config: &AcpiConfig, place: Range, rsdp: GuestAddress) -> Result<Tables, AcpiError> {
    let mut tables = Tables::new(place, rsdp);
    let dsdt = tables.add(dsdt::dsdt(config));
    tables.list(fixed::fadt(config, dsdt));
    tables.list(fixed::madt(config));
    tables.list(pci::mcfg(&config.segments));
    if !config.memory.is_empty() {
        tables.list(numa::srat(config));
    }
    if !config.distances.is_empty() {
        tables.list(shared_numa::slit(&config.distances));
    }
    if let Some(processors) = &config.processors {
        // CPUID says the same: where very many CPUs and segments leave no room, the others go first.
        let pptt = pptt::pptt(processors.topology, config.cpus.len() as u32, &processors.caches);
        tables.list_if_it_fits(pptt);
    }
    tables.finish()
}

#[cfg(test)]
mod tests;
