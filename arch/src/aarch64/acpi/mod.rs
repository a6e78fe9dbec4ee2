//! ACPI tables (ACPI 6.5, and Arm's Base Boot Requirements 2.1, 8) of a hardware-reduced machine, for guests that are told of
//! it so rather than by a device tree.
//!
//! [`AcpiConfig`] says what there is, [`build`] makes the tables for the addresses they will have, and
//! [`Tables::write`] puts them into guest memory. There is no clock in them: an Arm system's is behind its firmware.

mod dsdt;
mod fixed;

use super::serial::SerialPort;
use crate::acpi::{numa, pci, pptt};
use crate::caches::Cache;
use crate::layout::SegmentWindows;
use crate::topology::Topology;
use crate::wiring::InterruptPins;
use hypervisor::aarch64::{FIRST_SPI, GicConfig};
use machine::bus::Range;
use machine::memory::GuestAddress;

pub use crate::acpi::{AcpiError, NodeMemory, Tables, loader};

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct AcpiConfig {
    /// How CPUs are grouped.
    pub topology: Topology,
    /// The caches of each CPU, nearest first.
    pub caches: Vec<Cache>,
    /// The NUMA node of each CPU that there can be. A CPU's place here is its ACPI processor UID.
    pub cpu_nodes: Vec<u32>,
    /// How many of them are there; the others may be added while the machine runs.
    pub present: u32,
    /// They have a performance monitor.
    pub pmu: bool,
    /// The interrupt controller.
    pub gic: GicConfig,
    /// The PCI segments, by number.
    pub segments: Vec<SegmentWindows>,
    /// The NUMA node of each of them that belongs to one.
    pub segment_nodes: Vec<Option<u32>>,
    /// Where the PCI interrupt pins are wired: shared interrupts, from 0.
    pub interrupt_pins: InterruptPins,
    /// Which memory belongs to which NUMA node. Without any there is no SRAT.
    pub memory: Vec<NodeMemory>,
    /// Row by row, how far one NUMA node's memory is from another's. Without any there is no SLIT.
    pub distances: Vec<Vec<u8>>,
    /// The serial port, if there is one.
    pub serial: Option<SerialPort>,
    /// The shared interrupt of what reports hardware events, such as the power button.
    pub events: u32,
    /// The slots for memory that may come and go, at most 4096. Without any there is no memory hotplug controller.
    pub memory_slots: u32,
    /// Guest-physical address of the virtual machine's generation id, if it has one.
    pub generation_id: Option<u64>,
    /// There is a firmware configuration device.
    pub fw_cfg: bool,
    /// There is a pvpanic device.
    pub pvpanic: bool,
}

/// Makes the tables, all but the RSDP to lie in `place`, which begins at a multiple of 16.
///
/// # Errors
/// When they do not fit.
pub fn build(config: &AcpiConfig, place: Range, rsdp: GuestAddress) -> Result<Tables, AcpiError> {
    let mut tables = Tables::new(place, rsdp);
    let dsdt = tables.add(dsdt::dsdt(config));
    tables.list(fixed::fadt(dsdt));
    tables.list(fixed::madt(config));
    tables.list(fixed::gtdt());
    tables.list(pptt::pptt(config.topology, config.cpu_nodes.len() as u32, &config.caches));
    tables.list(pci::mcfg(&config.segments));
    tables.list(fixed::iort(config));
    if let Some(port) = config.serial {
        tables.list(fixed::spcr(port));
        tables.list(fixed::dbg2(port.model));
    }
    if !config.memory.is_empty() {
        tables.list(fixed::srat(config));
    }
    if !config.distances.is_empty() {
        tables.list(numa::slit(&config.distances));
    }
    tables.finish()
}

/// The number by which ACPI knows a shared interrupt.
fn gsi(shared: u32) -> u32 {
    FIRST_SPI + shared
}

#[cfg(test)]
pub(crate) mod tests;
