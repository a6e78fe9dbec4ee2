//! The devices by which a guest's memory grows and shrinks: a balloon, and virtio-mem for zones that can grow.

use super::control::Control;
use super::pci_bus::PciBus;
use crate::config::{BalloonConfig, MemConfig, MemoryConfig, NumaConfig, VmConfig};
use crate::host_pages;
use crate::memory::{GuestMemory, ZoneExtent};
use anyhow::{Context, Result};
use devices::virtio::balloon::{Balloon, BalloonControl, BalloonOptions};
use devices::virtio::mem::{Mem, MemControl, MemOptions};
use machine::inspect::{Value, json};
use machine::memory::HostPages;
use std::sync::Arc;
use std::time::Duration;

/// Memory that can be added to a zone, by a device that comes and goes.
pub struct GrowingZone {
    /// The zone's name; empty if there are no zones.
    pub id: String,
    /// What it has from the start, in bytes.
    pub boot: u64,
    /// What its device is made with, without anything requested.
    options: MemOptions,
}

/// What balloons and virtio-mem devices are made of.
pub struct MemoryDevices {
    /// The zones that can grow.
    pub zones: Vec<GrowingZone>,
    /// The host's pages behind the memory that the machine began with, and what it can grow by.
    pages: Arc<dyn HostPages>,
    /// All of that, in bytes.
    most: u64,
}

impl MemoryDevices {
    /// For this memory.
    ///
    /// # Errors
    /// When the host does not say what kind of pages it has there.
    pub fn new(config: &VmConfig, memory: &GuestMemory) -> Result<Self> {
        let pages = host_pages::of(&memory.ram).context("--memory: asking the host for its kind of pages")?;
        let size: u64 = memory.zones.iter().map(ZoneExtent::most).sum();
        let most = size.saturating_add(memory.modules.map_or(0, |range| range.size));
        let growing = |zone: &ZoneExtent| {
            let extent = zone.hotplug?;
            let options = MemOptions {
                region: extent.range,
                block_size: extent.block_size,
                requested: 0,
                node: node_of(&config.numa, &zone.id),
                populate: extent.hugepages,
            };
            Some(GrowingZone { id: zone.id.clone(), boot: zone.boot(), options })
        };
        Ok(Self { zones: memory.zones.iter().filter_map(growing).collect(), pages, most })
    }

    /// The device by which a zone grows, with nothing requested.
    ///
    /// # Errors
    /// When the zone cannot grow.
    pub fn mem(&self, config: &MemConfig) -> Result<Mem> {
        let zone = self.zones.iter().find(|zone| zone.id == config.zone);
        let zone = zone.context("nothing can be added to this memory")?;
        Ok(Mem::new(zone.options, Arc::clone(&self.pages))?)
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
    pub fn reset(&self, pci: &PciBus) {
        for zone in &self.zones {
            match of_zone(pci, &zone.id) {
                Some(control) => control.unplug_all(),
                // What a guest has touched all the same. If the host does not take it back, it finds it again.
                None => drop(self.pages.release(zone.options.region)),
            }
        }
    }

    /// The devices, for inspection. The guest's statistics are those that it told last; who looks has it tell anew.
    pub fn inspect(&self, pci: &PciBus, balloon: Option<&BalloonControl>) -> Value {
        if let Some(balloon) = balloon {
            balloon.request_statistics();
        }
        let zones = self.zones.iter().filter_map(|zone| {
            let name = if zone.id.is_empty() { "memory" } else { zone.id.as_str() };
            Some((name.to_owned(), of_zone(pci, &zone.id)?.inspect()))
        });
        json!({
            "balloon": balloon.map(BalloonControl::inspect),
            "zones": zones.collect::<Value>(),
        })
    }
}

/// The devices by which zones grow, and their zones.
fn all(pci: &PciBus) -> impl Iterator<Item = (&str, &MemControl)> {
    pci.controls().filter_map(|(_, control)| match control {
        Control::Mem { zone, device } => Some((zone.as_str(), device)),
        _ => None,
    })
}

/// The device by which a zone grows.
pub fn of_zone<'a>(pci: &'a PciBus, zone: &str) -> Option<&'a MemControl> {
    all(pci).find(|(known, _)| *known == zone).map(|(_, device)| device)
}

/// What the guest has by all of them, in bytes.
pub fn plugged(pci: &PciBus) -> u64 {
    all(pci).fold(0, |sum, (_, device)| sum.saturating_add(device.plugged()))
}

/// Has the guest get what is to be added to its memory from the start.
///
/// # Errors
/// When a zone cannot have so much, naming its option.
pub fn request_first(config: &VmConfig, pci: &PciBus) -> Result<()> {
    for (zone, device) in all(pci) {
        let first = config.memory.hotplugged_size(zone);
        let option = || format!("{} hotplugged_size={first}", MemoryConfig::option_of(zone));
        device.resize(first.0).with_context(option)?;
    }
    Ok(())
}

/// The NUMA node of a zone. Numbers are at most 255.
fn node_of(numa: &[NumaConfig], zone: &str) -> u16 {
    let node = numa.iter().find(|node| node.memory_zones.iter().any(|known| known == zone));
    node.map_or(0, |node| node.guest_numa_id as u16)
}
