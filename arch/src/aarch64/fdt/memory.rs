//! RAM, and how far the memory of NUMA nodes is apart (Linux, `Documentation/devicetree/bindings/numa.txt`).

use super::{FdtConfig, Result, Tree};

/// Adds memory, and the distances between nodes where there are some.
pub(super) fn nodes(tree: &mut Tree, config: &FdtConfig) -> Result<()> {
    for (range, node) in &config.memory {
        tree.node(&format!("memory@{:x}", range.start), |tree| {
            tree.0.property_string("device_type", "memory")?;
            tree.registers(&[*range])?;
            tree.numa(config, *node)
        })?;
    }
    if config.distances.is_empty() {
        return Ok(());
    }
    tree.node("distance-map", |tree| {
        tree.0.property_string("compatible", "numa-distance-map-v1")?;
        let rows = config.distances.iter().zip(0u32..);
        let cells: Vec<u32> = rows
            .flat_map(|(row, from)| {
                row.iter().zip(0..).flat_map(move |(far, to)| [from, to, u32::from(*far)])
            })
            .collect();
        Ok(tree.0.property_array_u32("distance-matrix", &cells)?)
    })
}
