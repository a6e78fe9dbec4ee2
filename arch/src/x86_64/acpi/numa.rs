//! The NUMA tables: SRAT (ACPI 6.5, 5.2.16) and SLIT (5.2.17).

use super::AcpiConfig;
use super::fixed::is_x2apic;
use super::table::TableWriter;

/// Flag of all affinity structures: this one counts.
const ENABLED: u32 = 1;
/// Flag of memory: it may be added while the machine runs.
const HOT_PLUGGABLE: u32 = 2;

/// Makes the SRAT: which CPU and which memory belongs to which node.
pub(super) fn srat(config: &AcpiConfig) -> Vec<u8> {
    // From revision 2 on, all four bytes of a proximity domain are read.
    let mut srat = TableWriter::new(*b"SRAT", 3);
    srat.u32(1);
    srat.u64(0);
    for cpu in &config.cpus {
        if is_x2apic(cpu) {
            srat.bytes(&[2, 24, 0, 0]);
            srat.u32(cpu.node);
            srat.u32(cpu.apic_id);
            srat.u32(ENABLED);
            srat.u64(0);
        } else {
            let node = cpu.node.to_le_bytes();
            srat.bytes(&[0, 16, node[0], cpu.apic_id as u8]);
            srat.u32(ENABLED);
            srat.bytes(&[0, node[1], node[2], node[3]]);
            srat.u32(0);
        }
    }
    for memory in &config.memory {
        srat.bytes(&[1, 40]);
        srat.u32(memory.node);
        srat.u16(0);
        srat.u64(memory.range.start);
        srat.u64(memory.range.size);
        srat.u32(0);
        srat.u32(if memory.hotplug { ENABLED | HOT_PLUGGABLE } else { ENABLED });
        srat.u64(0);
    }
    srat.finish()
}

/// Makes the SLIT: distances between nodes.
pub(super) fn slit(config: &AcpiConfig) -> Vec<u8> {
    let mut slit = TableWriter::new(*b"SLIT", 1);
    slit.u64(config.distances.len() as u64);
    for row in &config.distances {
        slit.bytes(row);
    }
    slit.finish()
}
