//! `--numa`.

use super::options::{Setting, options};
use serde::{Deserialize, Serialize};

options! {
    /// A NUMA node of the guest.
    pub struct NumaConfig {
        /// The node's number.
        ["guest_numa_id", 0..=255] guest_numa_id: u32 = 0,
        /// Its CPUs.
        ["cpus"] cpus: Vec<u32> = Vec::new(),
        /// How far it is to other nodes, such as `[1@15,2@25]`; 10 is near, 20 is usual.
        ["distances"] distances: Vec<NumaDistance> = Vec::new(),
        /// The memory zones it has.
        ["memory_zones"] memory_zones: Vec<String> = Vec::new(),
        /// The PCI segments that belong to it.
        ["pci_segments"] pci_segments: Vec<u16> = Vec::new(),
    }
}

/// How far it is to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NumaDistance {
    /// The other node.
    pub destination: u32,
    /// 10 to 254; 255 is unreachable.
    pub distance: u8,
}

impl Setting for NumaDistance {
    const HINT: &'static str = "<node>@<distance>";
    fn show(&self) -> String {
        format!("{}@{}", self.destination, self.distance)
    }
}
