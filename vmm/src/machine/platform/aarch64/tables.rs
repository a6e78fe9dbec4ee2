//! What the ACPI tables say of a machine.

use super::super::numa::{distances, node_memory, node_of, segment_nodes};
use super::{EVENT_GSI, PCI_WIRING, serial_port};
use crate::config::VmConfig;
use crate::machine::platform::MEMORY_SLOTS;
use crate::memory::ZoneExtent;
use anyhow::Result;
use arch::aarch64::acpi::{self, AcpiConfig, Tables};
use arch::aarch64::cpu::CpuModel;
use arch::aarch64::layout::{self, MemoryLayout};

/// Makes the tables of a machine, to lie where a kernel that is loaded directly finds them. Firmware that chooses their place
/// itself takes [`Tables::loader_files`].
///
/// # Errors
/// When they are too large.
pub fn tables(
    config: &VmConfig,
    zones: &[ZoneExtent],
    layout: &MemoryLayout,
    model: &CpuModel,
) -> Result<Tables> {
    let described = acpi_config(config, zones, layout, model);
    Ok(acpi::build(&described, layout::ACPI_TABLES, layout::ACPI_RSDP)?)
}

fn acpi_config(
    config: &VmConfig,
    zones: &[ZoneExtent],
    layout: &MemoryLayout,
    model: &CpuModel,
) -> AcpiConfig {
    AcpiConfig {
        topology: model.topology(),
        caches: model.caches().to_vec(),
        cpu_nodes: (0..config.cpus.limit())
            .map(|index| node_of(&config.numa, |node| node.cpus.contains(&index)))
            .collect(),
        present: config.cpus.boot_vcpus,
        pmu: model.has_pmu(),
        gic: layout.gic(config.cpus.limit()),
        segments: layout.segments().to_vec(),
        segment_nodes: segment_nodes(config),
        interrupt_pins: PCI_WIRING,
        memory: node_memory(config, zones, layout),
        distances: distances(&config.numa),
        serial: serial_port(config),
        events: EVENT_GSI,
        memory_slots: if config.memory.modules_size() > 0 { MEMORY_SLOTS } else { 0 },
        // Firmware does not know of its place in memory, and would give that away.
        generation_id: config.payload.firmware.is_none().then_some(layout::GENERATION_ID.0),
        fw_cfg: config.payload.fw_cfg().is_some(),
        pvpanic: config.hears_panics(),
    }
}
