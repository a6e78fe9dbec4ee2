//! PCI Express ports and what is below them: bus numbers, where a device goes, and how it is plugged in and out there.
//!
//! A device on a root bus comes and goes through the machine's hotplug controller. One below a port does through the
//! port's slot, whose registers the guest drives itself.

use super::{Completion, PciBus, PlainFunction, lock};
use crate::config::{PciPlace, PciPortConfig, PciPortKind, VmConfig};
use anyhow::{Context, Result, bail, ensure};
use machine::effect::{DeviceChange, FunctionAddress};
use machine::interrupt::InterruptLine;
use pci::function::FunctionHandle;
use pci::intx::Intx;
use pci::plan::Reserve;
use pci::port::{Port, PortKind, PortOptions, UnplugRequest};
use pci::segment::Segment;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

/// What a port with a slot keeps below 4 GiB, unless told otherwise: a few devices' registers.
const MEMORY_RESERVE: u64 = 2 << 20;
/// What a port with a slot keeps of prefetchable memory, unless told otherwise.
const PREFETCHABLE_RESERVE: u64 = 1 << 30;

/// Who tells the guest that a device was plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugged {
    /// The port told it.
    BelowPort,
    /// The hotplug controller is to tell it.
    OnRootBus,
}

/// Who asks the guest for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseRequest {
    /// The port has asked.
    Asked,
    /// Nobody uses it.
    Released,
    /// The hotplug controller is to ask.
    OnRootBus,
}

/// The ports of a machine.
#[derive(Default)]
pub(super) struct Ports {
    ports: BTreeMap<FunctionAddress, PortEntry>,
    /// Device numbers on root buses that some device was told to have, by segment.
    taken: BTreeSet<(u16, u8)>,
    /// Functions below a bridge whose workers are to stop before the bridge's reset of them is complete.
    resets: BTreeMap<FunctionAddress, BTreeSet<FunctionAddress>>,
    /// Where devices that are part of the machine were told to be, by their names.
    places: BTreeMap<String, PciPlace>,
    /// The guest has started: devices come and go by slots.
    started: bool,
}

pub(super) struct PortEntry {
    /// Its name; none, if it is gone and the guest has not let go of it.
    id: Option<String>,
    /// Which of the machine's ports it is, from 0: no other has the number.
    number: usize,
    /// The bus right below.
    bus: u8,
    /// What it keeps for what comes later.
    pub(super) reserve: Reserve,
    port: Arc<Mutex<Port>>,
}

impl Ports {
    /// Whether there is a port at `address`.
    pub(super) fn has(&self, address: FunctionAddress) -> bool {
        self.ports.contains_key(&address)
    }

    /// From now on the guest is told what comes and goes.
    pub(super) fn start(&mut self) {
        self.started = true;
    }

    /// The machine is reset: nobody waits for what bridges reset.
    pub(super) fn forget_resets(&mut self) {
        self.resets.clear();
    }

    pub(super) fn named(&self, id: &str) -> Option<(&FunctionAddress, &PortEntry)> {
        self.ports.iter().find(|(_, entry)| entry.id.as_deref() == Some(id))
    }

    /// A number that no port has.
    pub(super) fn free_number(&self) -> usize {
        let taken = |number| self.ports.values().any(|entry| entry.number == number);
        (0..).find(|number| !taken(*number)).unwrap_or(usize::MAX)
    }

    /// If there is a port at `address`, it is gone, though the guest has not let go of it: nothing comes below it any more.
    pub(super) fn forget_name(&mut self, address: FunctionAddress) {
        if let Some(entry) = self.ports.get_mut(&address) {
            entry.id = None;
        }
    }

    /// If there was a port at `address`, it is out.
    pub(super) fn remove(&mut self, address: FunctionAddress) {
        self.ports.remove(&address);
    }

    /// The port right above a function.
    fn above(&self, segment: &Segment, address: FunctionAddress) -> Option<(FunctionAddress, &PortEntry)> {
        let above = segment.bridge_above(address)?;
        self.ports.get(&above).map(|entry| (above, entry))
    }
}

impl PciBus {
    /// Adds the ports of `config`, before any device.
    ///
    /// # Errors
    /// When one cannot be where it was told to be, naming it.
    pub fn add_ports(&mut self, config: &VmConfig) -> Result<()> {
        let told = config.placed().filter(|(_, place)| place.bus.is_none());
        self.ports.taken = told.filter_map(|(_, place)| Some((place.segment, place.device?))).collect();
        self.ports.places = config.pci_places.iter().map(|place| (place.id.clone(), place.place())).collect();
        let buses = config.port_buses()?;
        for (port, buses) in config.pci_ports.iter().zip(buses) {
            let added = self.resolve(&port.place()).and_then(|address| self.add_port(port, address, buses));
            added.with_context(|| format!("--pci-port id={}", port.id))?;
        }
        Ok(())
    }

    /// Adds a port that has `buses` below it.
    pub(super) fn add_port(
        &mut self,
        config: &PciPortConfig,
        address: FunctionAddress,
        buses: RangeInclusive<u8>,
    ) -> Result<()> {
        let number = self.ports.free_number();
        let slot =
            (config.hotplug && config.kind != PciPortKind::Upstream).then_some(number.saturating_add(1));
        let options = PortOptions {
            kind: match config.kind {
                PciPortKind::Root => PortKind::Root,
                PciPortKind::Upstream => PortKind::Upstream,
                PciPortKind::Downstream => PortKind::Downstream,
            },
            port: u8::try_from(number).unwrap_or(u8::MAX),
            slot: slot.map(u16::try_from).transpose()?,
            io: config.io_reserve.0 > 0,
        };
        let usual = |bytes| if slot.is_some() { bytes } else { 0 };
        let reserve = Reserve {
            io: config.io_reserve.0,
            memory: config.mem_reserve.map_or(usual(MEMORY_RESERVE), |size| size.0),
            prefetchable: config.pref_reserve.map_or(usual(PREFETCHABLE_RESERVE), |size| size.0),
        };
        let port =
            Port::new(options, Arc::clone(&self.surroundings.vm) as _, Some(self.interrupt_pin(address)))?;
        let port = Arc::new(Mutex::new(port));
        let bus = *buses.start();
        self.segment(address.segment)?.insert_bridge(address, port.clone(), buses, reserve)?;
        self.occupy_slot_above(address);
        let entry = PortEntry { id: Some(config.id.clone()), number, bus, reserve, port };
        self.ports.ports.insert(address, entry);
        self.plain.insert(address, PlainFunction::named(&config.id));
        Ok(())
    }

    /// Where the device named `id` goes: to `place`, if it was not told to be elsewhere.
    ///
    /// # Errors
    /// When there is no such place, or no free one.
    pub(super) fn place(&self, id: &str, place: &PciPlace) -> Result<FunctionAddress> {
        match self.ports.places.get(id) {
            Some(told) => self.resolve(told).with_context(|| format!("--pci-place id={id}")),
            None => self.resolve(place).with_context(|| format!("device {id}")),
        }
    }

    /// The device named `id` is gone: another of that name can be anywhere.
    pub fn forget_place(&mut self, id: &str) {
        self.ports.places.remove(id);
    }

    /// Checks that every device that was told where to be is there. All devices are.
    ///
    /// # Errors
    /// When one is not, saying which ones there are.
    pub fn check_places(&self) -> Result<()> {
        let absent = self.ports.places.keys().find(|id| self.address_of(id).is_none());
        let Some(absent) = absent else { return Ok(()) };
        let names = self.ids().map(|(id, _)| id).filter(|id| id.starts_with("__")).collect::<Vec<_>>();
        bail!("--pci-place id={absent}: the machine has no device of that name; it has {}", names.join(", "))
    }

    pub(super) fn segment(&self, number: u16) -> Result<&Segment> {
        self.segments.get(usize::from(number)).with_context(|| format!("there is no PCI segment {number}"))
    }

    /// Where a device that is to be at `place` goes.
    ///
    /// # Errors
    /// When there is no such place, or no free one.
    pub(super) fn resolve(&self, place: &PciPlace) -> Result<FunctionAddress> {
        let Some(id) = &place.bus else {
            let segment = self.segment(place.segment)?;
            let number = place.segment;
            let device = match place.device {
                Some(device) => device,
                None => {
                    let taken = |device: &u8| self.ports.taken.contains(&(number, *device));
                    segment.free_devices(0).find(|device| !taken(device)).with_context(|| {
                        format!("PCI segment {number} has no room left; raise --platform num_pci_segments")
                    })?
                }
            };
            let address = FunctionAddress::new(number, 0, device, place.function);
            ensure!(segment.get(address).is_none(), "another device is at PCI address {address}");
            let alone = (1..8).all(|function| segment.get(at_function(address, function)).is_none());
            ensure!(
                !(self.ports.started && alone && function_0_is_there(segment, address)),
                "pci_device_id={device}: the guest took what is there for a device of one function; {LAST}"
            );
            return Ok(address);
        };
        let (&port, entry) =
            self.ports.named(id).with_context(|| format!("bus={id}: there is no --pci-port id={id}"))?;
        let segment = self.segment(port.segment)?;
        let (kind, slot) = {
            let port = lock(&entry.port);
            (port.kind(), port.has_slot())
        };
        ensure!(
            // Below an upstream port there are only ports, which come with it.
            slot || !self.ports.started || kind == PortKind::Upstream,
            "bus={id}: devices can be plugged in there only before the guest starts; give the port hotplug=on"
        );
        let device = match (kind, place.device) {
            (PortKind::Upstream, None) => segment
                .free_devices(entry.bus)
                .next()
                .with_context(|| format!("bus={id}: has no room left"))?,
            (PortKind::Upstream, Some(device)) => device,
            _ => 0,
        };
        let address = FunctionAddress::new(port.segment, entry.bus, device, place.function);
        if segment.get(address).is_some() {
            bail!("bus={id}: the port has a device already; name another port, or give pci_function");
        }
        ensure!(
            !(slot && self.ports.started && function_0_is_there(segment, address)),
            "bus={id}: the guest has been told of the device in the slot, and does not look for more functions; {LAST}"
        );
        Ok(address)
    }

    /// The interrupt pin of the function that is to be at `address`.
    pub(super) fn interrupt_pin(&self, address: FunctionAddress) -> Intx {
        let (device, pin) = match self.segments.get(usize::from(address.segment)) {
            Some(segment) => segment.root_pin(address, 1),
            None => (address.device(), 1),
        };
        let gsi = self.surroundings.wiring.gsi(device, pin);
        Intx::new(InterruptLine::new(Arc::clone(&self.surroundings.pins), gsi))
    }

    /// Puts a function into its segment.
    pub(super) fn insert(&self, address: FunctionAddress, function: FunctionHandle) -> Result<()> {
        self.segment(address.segment)?.insert(address, function)?;
        self.occupy_slot_above(address);
        Ok(())
    }

    /// There is something below a port: before the guest starts, it is there at power-on. Later the guest is told.
    fn occupy_slot_above(&self, address: FunctionAddress) {
        if !self.ports.started
            && let Some(port) = self.slot_above(address)
        {
            lock(&port).occupy();
        }
    }

    /// Whether the device at `address` stays where it is while the guest runs: its port has no slot.
    pub fn is_fixed(&self, address: FunctionAddress) -> bool {
        address.bus() != 0 && self.slot_above(address).is_none()
    }

    /// The port right above a function, if it has a slot.
    fn slot_above(&self, address: FunctionAddress) -> Option<Arc<Mutex<Port>>> {
        let segment = self.segments.get(usize::from(address.segment))?;
        let (_, entry) = self.ports.above(segment, address)?;
        lock(&entry.port).has_slot().then(|| Arc::clone(&entry.port))
    }

    /// Tells the guest that the device at `address` was plugged in. Functions other than 0 are told with function 0.
    ///
    /// # Errors
    /// When the host refuses a change of the map.
    pub fn plug(&mut self, address: FunctionAddress) -> Result<Plugged> {
        let Some(port) = self.slot_above(address) else { return Ok(Plugged::OnRootBus) };
        if address.function() == 0 {
            lock(&port).plug();
            self.remap_above(address)?;
        }
        Ok(Plugged::BelowPort)
    }

    /// Whether the device at `address` goes only when the guest releases it.
    pub fn is_held(&self, address: FunctionAddress) -> bool {
        self.slot_above(address).is_none_or(|port| lock(&port).is_held())
    }

    /// Asks the guest to release the device at `address`, with all of its functions.
    pub fn ask_to_release(&mut self, address: FunctionAddress) -> ReleaseRequest {
        let Some(port) = self.slot_above(address) else {
            // The port of a switch goes with what is above it.
            return if address.bus() == 0 { ReleaseRequest::OnRootBus } else { ReleaseRequest::Asked };
        };
        let asked = lock(&port).request_unplug();
        match asked {
            UnplugRequest::Asked => ReleaseRequest::Asked,
            UnplugRequest::Released | UnplugRequest::NothingThere => ReleaseRequest::Released,
        }
    }

    /// The functions below the port at `bridge` that the guest has released, having been asked.
    pub fn released(&self, bridge: FunctionAddress) -> Vec<FunctionAddress> {
        let released = self.ports.ports.get(&bridge).is_some_and(|entry| lock(&entry.port).released());
        if released { self.below(bridge) } else { Vec::new() }
    }

    /// A function was taken out: with the last one, the slot is empty.
    pub(super) fn taken_out(&mut self, address: FunctionAddress) -> Result<()> {
        let Some(port) = self.slot_above(address) else { return Ok(()) };
        let segment = self.segment(address.segment)?;
        if segment.bridge_above(address).is_some_and(|bridge| segment.below(bridge).is_empty()) {
            lock(&port).unplug();
            self.remap_above(address)?;
        }
        Ok(())
    }

    fn remap_above(&mut self, address: FunctionAddress) -> Result<()> {
        let bridge = self.segment(address.segment)?.bridge_above(address);
        bridge.map_or(Ok(()), |bridge| self.remap(bridge))
    }

    /// Resets what is below a bridge.
    pub(super) fn reset_below(&mut self, bridge: FunctionAddress) -> Result<Completion> {
        self.remap(bridge)?;
        let below = self.segment(bridge.segment)?.below(bridge);
        let mut waiting = BTreeSet::new();
        for function in below {
            if self.apply(function, DeviceChange::Reset)? == Completion::Later {
                waiting.insert(function);
            }
        }
        if waiting.is_empty() {
            return Ok(Completion::Done);
        }
        self.ports.resets.entry(bridge).or_default().extend(waiting);
        Ok(Completion::Later)
    }

    /// The bridges whose reset of what is below them is complete now that `function` has come to rest.
    pub fn completed_resets(&mut self, function: FunctionAddress) -> Vec<FunctionAddress> {
        let mut completed = Vec::new();
        self.ports.resets.retain(|bridge, waiting| {
            let was_waiting = waiting.remove(&function);
            if was_waiting && waiting.is_empty() {
                completed.push(*bridge);
            }
            !waiting.is_empty()
        });
        completed
    }

    /// Resets a function that needs no workers.
    pub(super) fn reset_plain(&mut self, address: FunctionAddress) -> Result<()> {
        if let Some(function) = self.segment(address.segment)?.get(address) {
            lock(&function).reset();
        }
        self.remap(address)
    }
}

/// What to do about functions that come while the guest runs.
const LAST: &str = "add function 0 last, or name another place";

fn at_function(address: FunctionAddress, function: u8) -> FunctionAddress {
    FunctionAddress::new(address.segment, address.bus(), address.device(), function)
}

/// Whether there is a function 0 where a device at `address` would be another function.
fn function_0_is_there(segment: &Segment, address: FunctionAddress) -> bool {
    address.function() != 0 && segment.get(at_function(address, 0)).is_some()
}
