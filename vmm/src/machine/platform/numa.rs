//! NUMA nodes, as tables of either kind tell of them.

use crate::config::{NumaConfig, VmConfig};
use crate::memory::{self, ZoneExtent};
use arch::acpi::NodeMemory;
use arch::native::layout::MemoryLayout;
use machine::bus::Range;

/// The node that has something; 0 where none does.
pub fn node_of(numa: &[NumaConfig], has: impl Fn(&NumaConfig) -> bool) -> u32 {
    numa.iter().find(|node| has(node)).map_or(0, |node| node.guest_numa_id)
}

/// The node of each PCI segment that belongs to one.
pub fn segment_nodes(config: &VmConfig) -> Vec<Option<u32>> {
    let of = |segment| config.numa.iter().find(|node| node.pci_segments.contains(&segment));
    (0..config.platform.num_pci_segments).map(|number| of(number).map(|node| node.guest_numa_id)).collect()
}

/// The matrix of distances: what is not given is 20, or what the other way is.
pub fn distances(numa: &[NumaConfig]) -> Vec<Vec<u8>> {
    let count = numa.iter().map(|node| node.guest_numa_id.saturating_add(1)).max().unwrap_or(0);
    let given = |from: u32, to: u32| {
        let node = numa.iter().find(|node| node.guest_numa_id == from)?;
        node.distances.iter().find(|distance| distance.destination == to).map(|distance| distance.distance)
    };
    let distance = |from, to| {
        if from == to { 10 } else { given(from, to).or_else(|| given(to, from)).unwrap_or(20) }
    };
    (0..count).map(|from| (0..count).map(|to| distance(from, to)).collect()).collect()
}

/// Which memory belongs to which node. Also without nodes, if memory can be added: Linux learns from this up to where there
/// may be memory.
pub fn node_memory(config: &VmConfig, zones: &[ZoneExtent], layout: &MemoryLayout) -> Vec<NodeMemory> {
    if config.numa.is_empty() && memory::hotplug_space(&config.memory) == 0 {
        return Vec::new();
    }
    let node = |zone: &ZoneExtent| node_of(&config.numa, |node| node.memory_zones.contains(&zone.id));
    let boot = zones.iter().flat_map(|zone| {
        let ranges = zone.ranges.iter().map(|&(start, size)| Range { start, size });
        ranges.map(move |range| NodeMemory { node: node(zone), range, hotplug: false })
    });
    let added = zones
        .iter()
        .filter_map(|zone| Some(NodeMemory { node: node(zone), range: zone.hotplug?.range, hotplug: true }));
    // Memory modules are those of the first node: there are others only where memory is in zones.
    let size = config.memory.modules_size();
    let modules = layout.hotplug().filter(|_| size > 0).map(|space| Range { size, ..space });
    let modules = modules.map(|range| NodeMemory { node: 0, range, hotplug: true });
    boot.chain(added).chain(modules).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NumaDistance;

    #[test]
    fn a_distance_given_one_way_holds_both_ways() {
        let node = |id, distances: &[(u32, u8)]| NumaConfig {
            guest_numa_id: id,
            distances: distances
                .iter()
                .map(|&(destination, distance)| NumaDistance { destination, distance })
                .collect(),
            ..NumaConfig::default()
        };
        let matrix = distances(&[node(0, &[(1, 15)]), node(1, &[]), node(2, &[(0, 30)])]);
        assert_eq!(matrix, [[10, 15, 30], [15, 10, 20], [30, 20, 10]]);
    }
}
