//! The devices by which a guest's memory grows and shrinks: a balloon, and virtio-mem for each zone that can grow.

use super::pci_bus::PciBus;
use super::registry;
use crate::config::{BalloonConfig, NumaConfig, VmConfig};
use crate::host_pages;
use crate::memory::{GuestMemory, ZoneExtent};
use anyhow::{Context, Result};
use devices::virtio::balloon::{Balloon, BalloonControl, BalloonOptions};
use devices::virtio::mem::{Mem, MemControl, MemOptions};
use machine::inspect::{Value, json};
use machine::memory::HostPages;
use std::sync::Arc;
use std::time::Duration;
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

/// The devices' controls, and what balloons are made of.
pub struct MemoryDevices {
    /// The zones that can grow.
    pub zones: Vec<GrowingZone>,
    /// The host's pages behind the memory that the machine began with, and what it can grow by.
    pages: Arc<dyn HostPages>,
    /// All of that, in bytes.
    most: u64,
}

impl MemoryDevices {
    /// For this memory, without devices.
    ///
    /// # Errors
    /// When the host does not say what kind of pages it has there.
    pub fn new(memory: &GuestMemory) -> Result<Self> {
        let pages = host_pages::of(&memory.ram).context("--memory: asking the host for its kind of pages")?;
        let zones: u64 = memory.zones.iter().map(ZoneExtent::most).sum();
        let most = zones.saturating_add(memory.modules.map_or(0, |range| range.size));
        Ok(Self { zones: Vec::new(), pages, most })
    }

    /// Adds the devices by which zones grow.
    ///
    /// # Errors
    /// When one cannot be had, naming its option.
    pub fn add(&mut self, config: &VmConfig, memory: &GuestMemory, pci: &mut PciBus) -> Result<()> {
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
            let mem = Mem::new(options, Arc::clone(&self.pages)).with_context(|| option.clone())?;
            let control = mem.control();
            let boot = zone.boot();
            let id = if zone.id.is_empty() { "__mem".to_owned() } else { format!("__mem_{}", zone.id) };
            let (transport, workers) = (pci_transport::Options::default(), registry::worker_options());
            pci.add_virtio(&id, 0, Box::new(mem), transport, workers).context(option)?;
            self.zones.push(GrowingZone { id: zone.id.clone(), boot, control });
        }
        Ok(())
    }

    /// A balloon.
    ///
    /// # Errors
    /// When the host is out of descriptors.
    pub fn balloon(&self, config: &BalloonConfig) -> Result<Balloon> {
        let options = BalloonOptions {
            size: config.size.0,
            ram: self.most,
            deflate_on_oom: config.deflate_on_oom,
            free_page_reporting: config.free_page_reporting,
            statistics_interval: Duration::from_secs(config.statistics_interval.into()),
        };
        Balloon::new(options, Arc::clone(&self.pages)).context("making an event")
    }

    /// The machine restarts: what was added is taken away, until the guest asks for it again. No worker runs.
    pub fn reset(&self) {
        for zone in &self.zones {
            zone.control.unplug_all();
        }
    }

    /// What the guest has with what was added to `boot` bytes of memory.
    pub fn with_added(&self, boot: u64) -> u64 {
        let added = self.zones.iter().map(|zone| zone.control.plugged());
        added.fold(boot, u64::saturating_add)
    }

    /// The devices, for inspection. The guest's statistics are those that it told last; who looks has it tell anew.
    pub fn inspect(&self, balloon: Option<&BalloonControl>) -> Value {
        if let Some(balloon) = balloon {
            balloon.request_statistics();
        }
        let zones = self.zones.iter().map(|zone| {
            let name = if zone.id.is_empty() { "memory" } else { zone.id.as_str() };
            (name.to_owned(), zone.control.inspect())
        });
        json!({
            "balloon": balloon.map(BalloonControl::inspect),
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
