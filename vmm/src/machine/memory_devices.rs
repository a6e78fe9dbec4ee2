//! The devices by which a guest's memory grows and shrinks: a balloon, and virtio-mem for each zone that can grow.

use super::pci_bus::PciBus;
use super::workers;
use crate::config::{NumaConfig, VmConfig};
use crate::host_pages;
use crate::memory::{GuestMemory, ZoneExtent};
use crate::seccomp::{self, ThreadKind};
use anyhow::{Context, Result};
use devices::virtio::balloon::{Balloon, BalloonControl, BalloonOptions};
use devices::virtio::mem::{Mem, MemControl, MemOptions};
use machine::inspect::{Value, json};
use std::time::Duration;
use virtio::device::VirtioDevice;
use virtio::pci_transport;

/// Memory that can be added to a zone.
pub struct GrowingZone {
    /// The zone's name; empty if there are no zones.
    pub id: String,
    /// What it has from the start, in bytes.
    pub boot: u64,
    /// Its device.
    pub control: MemControl,
}

/// The devices' controls.
#[derive(Default)]
pub struct MemoryDevices {
    /// The balloon, if there is one.
    pub balloon: Option<BalloonControl>,
    /// The zones that can grow.
    pub zones: Vec<GrowingZone>,
}

impl MemoryDevices {
    /// Adds the devices that `config` asks for.
    ///
    /// # Errors
    /// When one cannot be had, naming its option.
    pub fn add(config: &VmConfig, memory: &GuestMemory, pci: &mut PciBus) -> Result<Self> {
        let mut devices = Self::default();
        if config.balloon.is_none() && memory.zones.iter().all(|zone| zone.hotplug.is_none()) {
            return Ok(devices);
        }
        let pages = host_pages::of(&memory.ram).context("--memory: asking the host for its kind of pages")?;
        for zone in &memory.zones {
            let Some(extent) = zone.hotplug else { continue };
            let (option, requested) = at_first(config, zone);
            let options = MemOptions {
                region: extent.range,
                block_size: extent.block_size,
                requested,
                node: node_of(&config.numa, &zone.id),
                populate: extent.hugepages,
            };
            let mem = Mem::new(options, pages.clone()).with_context(|| option.clone())?;
            let control = mem.control();
            let boot = zone.boot();
            let id = if zone.id.is_empty() { "__mem".to_owned() } else { format!("__mem_{}", zone.id) };
            add(pci, &id, Box::new(mem)).context(option)?;
            devices.zones.push(GrowingZone { id: zone.id.clone(), boot, control });
        }
        if let Some(balloon) = &config.balloon {
            let options = BalloonOptions {
                size: balloon.size.0,
                ram: (memory.zones.iter().map(ZoneExtent::most).sum::<u64>())
                    .saturating_add(memory.modules.map_or(0, |range| range.size)),
                deflate_on_oom: balloon.deflate_on_oom,
                free_page_reporting: balloon.free_page_reporting,
                statistics_interval: Duration::from_secs(balloon.statistics_interval.into()),
            };
            let balloon = Balloon::new(options, pages).context("--balloon: making an event")?;
            devices.balloon = Some(balloon.control());
            add(pci, "__balloon", Box::new(balloon)).context("--balloon")?;
        }
        Ok(devices)
    }

    /// The machine restarts: what was added is taken away, until the guest asks for it again. No worker runs.
    pub fn reset(&self) {
        for zone in &self.zones {
            zone.control.unplug_all();
        }
    }

    /// What of `boot` bytes of memory the guest has now: with what was added, without what is in the balloon.
    pub fn adjust(&self, boot: u64) -> u64 {
        let added = self.zones.iter().map(|zone| zone.control.plugged());
        let size = added.fold(boot, u64::saturating_add);
        size.saturating_sub(self.balloon.as_ref().map_or(0, BalloonControl::actual))
    }

    /// The devices, for inspection. The guest's statistics are those that it told last; who looks has it tell anew.
    pub fn inspect(&self) -> Value {
        if let Some(balloon) = &self.balloon {
            balloon.request_statistics();
        }
        let zones = self.zones.iter().map(|zone| {
            let name = if zone.id.is_empty() { "memory" } else { zone.id.as_str() };
            (name.to_owned(), zone.control.inspect())
        });
        json!({
            "balloon": self.balloon.as_ref().map(BalloonControl::inspect),
            "zones": zones.collect::<Value>(),
        })
    }
}

/// How much of what can be added to a zone is there at first, and the option that says so.
fn at_first(config: &VmConfig, zone: &ZoneExtent) -> (String, u64) {
    let memory = &config.memory;
    let named = memory.zones.iter().flatten().find(|named| named.id == zone.id);
    let (option, size) = match named {
        Some(named) => (format!("--memory-zone id={}", named.id), named.hotplugged_size),
        None => ("--memory".to_owned(), memory.hotplugged_size),
    };
    let size = size.unwrap_or_default();
    (format!("{option} hotplugged_size={size}"), size.0)
}

/// The NUMA node of a zone. Numbers are at most 255.
fn node_of(numa: &[NumaConfig], zone: &str) -> u16 {
    let node = numa.iter().find(|node| node.memory_zones.iter().any(|known| known == zone));
    node.map_or(0, |node| node.guest_numa_id as u16)
}

fn add(pci: &mut PciBus, id: &str, device: Box<dyn VirtioDevice>) -> Result<()> {
    let workers = workers::Options {
        poll: Duration::ZERO,
        affinity: Vec::new(),
        sharing: None,
        confine: || seccomp::confine(ThreadKind::Worker),
    };
    pci.add_virtio(id, 0, device, pci_transport::Options::default(), workers).map(drop)
}
