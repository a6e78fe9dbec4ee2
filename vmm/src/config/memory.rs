//! `--memory` and `--memory-zone`.

use super::hotplug::HotplugMethod;
use super::options::{ByteSize, NO_KEYS, options};
use std::path::PathBuf;

options! {
    /// The machine's memory.
    pub struct MemoryConfig {
        /// Size of the memory; 0 when all of it is in zones.
        ["size"] size: ByteSize = ByteSize(512 << 20),
        /// Let the host merge equal pages (KSM).
        ["mergeable"] mergeable: bool = false,
        /// How memory is added while the machine runs.
        ["hotplug_method"] hotplug_method: HotplugMethod = HotplugMethod::Acpi,
        /// How much memory can be added.
        ["hotplug_size"] hotplug_size: Option<ByteSize> = None,
        /// How much of that there is at first.
        ["hotplugged_size"] hotplugged_size: Option<ByteSize> = None,
        /// Make the memory shareable with other processes (memfd), as vhost-user needs.
        ["shared"] shared: bool = false,
        /// Use huge pages, which must be reserved on the host.
        ["hugepages"] hugepages: bool = false,
        /// Size of a huge page; the host's default if not given.
        ["hugepage_size"] hugepage_size: Option<ByteSize> = None,
        /// Take all of the memory from the host before the guest starts.
        ["prefault"] prefault: bool = false,
        /// Let the host use transparent huge pages.
        ["thp"] thp: bool = true,
        /// The zones.
        [nested NO_KEYS] zones: Option<Vec<MemoryZoneConfig>> = None,
    }
}

options! {
    /// A part of the memory with properties of its own; --memory has size=0 then.
    pub struct MemoryZoneConfig {
        /// Name of the zone, for --numa.
        ["id"] id: String = String::new(),
        /// Size of the zone.
        ["size"] size: ByteSize = ByteSize(0),
        /// A file the memory is mapped from, or a directory of a hugetlbfs or tmpfs to make one in.
        ["file"] file: Option<PathBuf> = None,
        /// Let the host merge equal pages (KSM).
        ["mergeable"] mergeable: bool = false,
        /// Make the memory shareable with other processes.
        ["shared"] shared: bool = false,
        /// Use huge pages, which must be reserved on the host.
        ["hugepages"] hugepages: bool = false,
        /// Size of a huge page; the host's default if not given.
        ["hugepage_size"] hugepage_size: Option<ByteSize> = None,
        /// The host's NUMA node the memory is taken from.
        ["host_numa_node"] host_numa_node: Option<u32> = None,
        /// How much memory can be added to the zone, by virtio-mem.
        ["hotplug_size"] hotplug_size: Option<ByteSize> = None,
        /// How much of that there is at first.
        ["hotplugged_size"] hotplugged_size: Option<ByteSize> = None,
        /// Take all of the memory from the host before the guest starts.
        ["prefault"] prefault: bool = false,
    }
}

impl MemoryConfig {
    /// The memory that is there when the machine starts, without what is added to it; in bytes.
    pub fn boot_size(&self) -> u64 {
        match self.zones.as_deref().unwrap_or_default() {
            [] => self.size.0,
            zones => zones.iter().fold(0, |sum: u64, zone| sum.saturating_add(zone.size.0)),
        }
    }

    /// As [`MemoryConfig::boot_size`], with what is added to it from the start.
    pub fn first_size(&self) -> u64 {
        let zones = self.zones.as_deref().unwrap_or_default();
        let added = zones.iter().map(|zone| zone.hotplugged_size).chain([self.hotplugged_size]).flatten();
        added.fold(self.boot_size(), |sum, size| sum.saturating_add(size.0))
    }
}
