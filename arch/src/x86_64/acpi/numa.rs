//! The SRAT (ACPI 6.5, 5.2.16).

use super::AcpiConfig;
use super::fixed::is_x2apic;
use crate::acpi::numa::ENABLED;
use crate::acpi::table::TableWriter;

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
        memory.write(&mut srat);
    }
    srat.finish()
}
