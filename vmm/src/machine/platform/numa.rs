//! NUMA nodes, as tables of either kind tell of them.

use crate::config::NumaConfig;

/// The node that has something; 0 where none does.
pub fn node_of(numa: &[NumaConfig], has: impl Fn(&NumaConfig) -> bool) -> u32 {
    numa.iter().find(|node| has(node)).map_or(0, |node| node.guest_numa_id)
}

/// The matrix of distances: what is not given is 20, or what the other way is.
pub fn distances(numa: &[NumaConfig]) -> Vec<Vec<u8>> {
    let count = numa.iter().map(|node| node.guest_numa_id + 1).max().unwrap_or(0);
    let given = |from: u32, to: u32| {
        let node = numa.iter().find(|node| node.guest_numa_id == from)?;
        node.distances.iter().find(|distance| distance.destination == to).map(|distance| distance.distance)
    };
    let distance = |from, to| {
        if from == to { 10 } else { given(from, to).or_else(|| given(to, from)).unwrap_or(20) }
    };
    (0..count).map(|from| (0..count).map(|to| distance(from, to)).collect()).collect()
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
