//! NUMA nodes: memory in the SRAT (ACPI 6.5, 5.2.16), and the SLIT (5.2.17).

use super::table::TableWriter;
use machine::bus::Range;

/// Flag of all affinity structures: this one counts.
pub(crate) const ENABLED: u32 = 1;
/// Flag of memory: it may be added while the machine runs.
const HOT_PLUGGABLE: u32 = 2;

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

impl NodeMemory {
    /// Adds the memory affinity structure (5.2.16.2).
    pub(crate) fn write(&self, srat: &mut TableWriter) {
        srat.bytes(&[1, 40]);
        srat.u32(self.node);
        srat.u16(0);
        srat.u64(self.range.start);
        srat.u64(self.range.size);
        srat.u32(0);
        srat.u32(if self.hotplug { ENABLED | HOT_PLUGGABLE } else { ENABLED });
        srat.u64(0);
    }
}

/// Makes the SLIT: distances between nodes, row by row.
pub(crate) fn slit(distances: &[Vec<u8>]) -> Vec<u8> {
    let mut slit = TableWriter::new(*b"SLIT", 1);
    slit.u64(distances.len() as u64);
    for row in distances {
        slit.bytes(row);
    }
    slit.finish()
}
