//! The PCI functions of a machine: where they answer, and the workers that run their queues.
//!
//! All of this belongs to the machine thread. Functions ask for changes by effects; what takes time (workers that
//! have requests in flight) is begun here and completed by a later message, so that the machine thread never waits.

mod late_ports;
pub mod observe;
mod plain;
mod ports;
mod windows;

use super::closing::Closing;
use super::control::Control;
use super::shared_memory::SharedMemory;
use super::workers::{self, FunctionWorkers, Purpose};
use crate::config::PciPlace;
use crate::message::{Mailbox, Work};
use anyhow::{Context, Result};
use arch::layout::SegmentWindows;
use arch::wiring::InterruptPins;
use hypervisor::{AddressSpace, Vm};
use machine::bus::{BusHandle, Range};
use machine::clock::Clock;
use machine::doorbell::DoorbellAddress;
use machine::effect::{DeviceChange, FunctionAddress};
use machine::interrupt::InterruptController;
use machine::memory::Memory;
use pci::capability::ExpressKind;
use pci::function::FunctionHandle;
use pci::placement::Placement;
use pci::root::{CONFIG_PORTS, CONFIG_PORTS_SIZE};
use pci::segment::Segment;
pub use plain::PlainDevice;
use plain::PlainFunction;
use ports::Ports;
pub use ports::{Plugged, ReleaseRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use virtio::device::{QueueTask, VirtioDevice};
use virtio::pci_transport::{self, VirtioPci};

/// Whether an effect is complete, or will be when workers have stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// It is complete.
    Done,
    /// A [`crate::message::Message::TasksStopped`] will complete it.
    Later,
}

/// A virtio function, and what runs its queues.
struct VirtioFunction {
    id: String,
    transport: Arc<Mutex<VirtioPci>>,
    workers: FunctionWorkers,
    control: Option<Control>,
    presence: Presence,
}

/// Whether the device of a function is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// It is.
    There,
    /// It is taken away when the workers have stopped.
    Going,
    /// It is gone, and something stands in for it until the guest lets go.
    Gone,
}

/// What functions are given of the machine.
pub struct Surroundings {
    /// The hypervisor's machine: doorbells and interrupts.
    pub vm: Arc<dyn Vm>,
    /// Memory-mapped devices.
    pub mmio: BusHandle,
    /// Devices at I/O ports.
    pub port: BusHandle,
    /// Where workers tell that they have stopped.
    pub mailbox: Mailbox,
    /// Guest memory.
    pub memory: Memory,
    /// Where interrupt pins end.
    pub pins: Arc<dyn InterruptController>,
    /// Which interrupt a pin is wired to.
    pub wiring: InterruptPins,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What is done for the machine.
    pub work: Work,
}

/// The PCI functions of a machine.
pub struct PciBus {
    surroundings: Surroundings,
    segments: Vec<Segment>,
    placement: Placement,
    virtio: BTreeMap<FunctionAddress, VirtioFunction>,
    /// What else has a name: ports, and functions that need no workers.
    plain: BTreeMap<FunctionAddress, PlainFunction>,
    ports: Ports,
    /// The memory that BARs are, by function and BAR.
    shared_memory: BTreeMap<(FunctionAddress, u8), SharedMemory>,
    closing: Closing,
    /// No worker is started.
    paused: bool,
    /// The doorbells attached at the hypervisor, by where they are.
    doorbells: BTreeMap<(FunctionAddress, u8), (AddressSpace, u64, Vec<DoorbellAddress>)>,
}

fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A segment's windows, as they are given to a plan.
fn of_plan(windows: &SegmentWindows) -> pci::plan::Windows {
    pci::plan::Windows { memory32: Some(windows.bars_32), memory64: Some(windows.bars_64), io: windows.io }
}

impl PciBus {
    /// Segments with the address windows `windows`, without functions.
    ///
    /// # Errors
    /// When a segment's configuration space overlaps another device.
    pub fn new(surroundings: Surroundings, windows: &[SegmentWindows]) -> Result<Self> {
        let mut segments = Vec::new();
        let (mut allowed_memory, mut allowed_io) = (Vec::new(), Vec::new());
        for (number, windows) in (0u16..).zip(windows) {
            let segment = Segment::with_last_bus(number, windows.last_bus());
            let place = || format!("placing PCI segment {number}");
            let ecam = Arc::new(Mutex::new(segment.ecam()));
            surroundings.mmio.change(|bus| bus.insert(windows.ecam, ecam)).with_context(place)?;
            if windows.io.is_some() {
                let range = Range { start: CONFIG_PORTS, size: CONFIG_PORTS_SIZE };
                let ports = Arc::new(Mutex::new(segment.config_ports()));
                surroundings.port.change(|bus| bus.insert(range, ports)).with_context(place)?;
            }
            allowed_memory.extend([windows.bars_32, windows.bars_64]);
            allowed_io.extend(windows.io);
            segments.push(segment);
        }
        let placement = Placement::new(allowed_memory, allowed_io);
        Ok(Self {
            surroundings,
            segments,
            placement,
            virtio: BTreeMap::new(),
            plain: BTreeMap::new(),
            ports: Ports::default(),
            shared_memory: BTreeMap::new(),
            closing: Closing::default(),
            paused: false,
            doorbells: BTreeMap::new(),
        })
    }

    /// Adds a virtio device named `id` where it is to be, or at the next free device number of its segment. While the
    /// guest runs, it is then to be told: see [`PciBus::plug`].
    ///
    /// # Errors
    /// When the segment or the port is full, or the device does not fit in a function.
    pub fn add_virtio(
        &mut self,
        id: &str,
        place: impl Into<PciPlace>,
        device: Box<dyn VirtioDevice>,
        mut transport: pci_transport::Options,
        workers: workers::Options,
    ) -> Result<FunctionAddress> {
        let address = self.place(id, &place.into())?;
        if address.bus() != 0 {
            transport.express = ExpressKind::Endpoint;
        }
        let intx = self.interrupt_pin(address);
        let surroundings = &self.surroundings;
        let capabilities = pci_transport::Capabilities {
            memory: Arc::clone(&surroundings.memory),
            msi: Arc::clone(&surroundings.vm) as _,
            intx: Some(intx),
            clock: Arc::clone(&surroundings.clock),
        };
        let transport =
            VirtioPci::new(device, transport, capabilities).with_context(|| format!("device {id}"))?;
        let transport = Arc::new(Mutex::new(transport));
        let function: FunctionHandle = transport.clone();
        self.insert(address, function).with_context(|| format!("adding device {id}"))?;
        let surroundings = &self.surroundings;
        let clock = Arc::clone(&surroundings.clock);
        let workers = FunctionWorkers::new(id, address, workers, clock, surroundings.mailbox.clone());
        self.virtio.insert(
            address,
            VirtioFunction {
                id: id.to_owned(),
                transport,
                workers,
                control: None,
                presence: Presence::There,
            },
        );
        Ok(address)
    }

    /// Does what a function asks for about itself.
    ///
    /// # Errors
    /// When the host refuses; the function is left without what it asked for.
    pub fn apply(&mut self, address: FunctionAddress, change: DeviceChange) -> Result<Completion> {
        match change {
            // The machine thread asks before it waits again; panics are the machine's.
            DeviceChange::Deadline | DeviceChange::Panicked(_) => Ok(Completion::Done),
            DeviceChange::Remap => {
                self.remap(address)?;
                let unsettled =
                    self.virtio.get(&address).and_then(|function| lock(&function.transport).unsettled());
                unsettled.map_or(Ok(Completion::Done), |change| self.apply(address, change))
            }
            DeviceChange::Start => {
                self.start(address);
                Ok(Completion::Done)
            }
            DeviceChange::Stop
            | DeviceChange::StartQueue(_)
            | DeviceChange::StopQueue(_)
            | DeviceChange::Reset => {
                let Some(function) = self.virtio.get_mut(&address) else {
                    if change == DeviceChange::Reset {
                        self.reset_plain(address)?;
                    }
                    return Ok(Completion::Done);
                };
                let purpose = if change == DeviceChange::Reset { Purpose::Reset } else { Purpose::Rest };
                if function.workers.stop(purpose) {
                    return Ok(Completion::Later);
                }
                self.at_rest(address, purpose, Vec::new()).map(|()| Completion::Done)
            }
            DeviceChange::ResetBelow => self.reset_below(address),
        }
    }

    fn start(&mut self, address: FunctionAddress) {
        if self.paused {
            // It is started when the machine goes on.
            return;
        }
        let Some(function) = self.virtio.get_mut(&address) else { return };
        let mut transport = lock(&function.transport);
        // A driver that set its device up wrongly has been told; that is no failure of the machine.
        let Ok(tasks) = transport.start() else { return };
        let mut tasks: Vec<_> = tasks
            .into_iter()
            .map(|task| {
                let doorbells = transport.doorbells_of(&task);
                (task, doorbells)
            })
            .collect();
        if let Err(error) = function.workers.run(&mut tasks) {
            // A guest starts devices as often as it likes: a host that is short of threads must not end the machine.
            tracing::error!("device {} does not work until its driver resets it: {error:#}", function.id);
            transport.stopped(tasks.into_iter().map(|(task, _)| task).collect());
            transport.need_reset();
        }
    }

    /// Workers of a function gave back what they ran.
    ///
    /// # Errors
    /// As [`PciBus::apply`].
    pub fn stopped(&mut self, address: FunctionAddress, tasks: Vec<QueueTask>) -> Result<Completion> {
        let Some(function) = self.virtio.get_mut(&address) else { return self.plain_stopped(address, tasks) };
        let Some((purpose, tasks)) = function.workers.returned(tasks) else { return Ok(Completion::Later) };
        self.at_rest(address, purpose, tasks).map(|()| Completion::Done)
    }

    /// Nothing runs for a function any more: completes what was asked for.
    fn at_rest(&mut self, address: FunctionAddress, purpose: Purpose, tasks: Vec<QueueTask>) -> Result<()> {
        let Some(function) = self.virtio.get_mut(&address) else { return Ok(()) };
        let mut transport = lock(&function.transport);
        let again = transport.stopped(tasks);
        let mut leaving = Vec::new();
        if function.presence == Presence::Going {
            function.presence = Presence::Gone;
            function.control = None;
            leaving.push(transport.withdraw_device());
        }
        match purpose {
            Purpose::Rest => {}
            Purpose::Reset => pci::function::Function::reset(&mut *transport),
            // What it holds of the host is given back now. The function itself goes when no CPU has the old map any more.
            Purpose::Remove => leaving.push(transport.take_device()),
        }
        drop(transport);
        if !leaving.is_empty() {
            self.closing.close(leaving, &function.id, &self.surroundings.work);
        }
        match purpose {
            Purpose::Rest if again => {
                self.start(address);
                Ok(())
            }
            Purpose::Rest => Ok(()),
            Purpose::Reset => self.remap(address),
            Purpose::Remove => self.take_out(address),
        }
    }

    /// Takes a device away from a guest that has not let go of it, and has something stand in for it until it does. The
    /// workers first complete what they have begun.
    ///
    /// # Errors
    /// When the host refuses a change of the map.
    pub fn withdraw(&mut self, address: FunctionAddress) -> Result<Completion> {
        let Some(function) = self.virtio.get_mut(&address) else { return self.withdraw_plain(address) };
        if let Some(Control::Net(net)) = &function.control {
            net.set_link_up(false);
        }
        function.presence = Presence::Going;
        if function.workers.stop(Purpose::Rest) {
            return Ok(Completion::Later);
        }
        self.at_rest(address, Purpose::Rest, Vec::new())?;
        Ok(Completion::Done)
    }

    /// The functions at which something stands in for a device that is gone.
    pub fn stand_ins(&self) -> Vec<FunctionAddress> {
        let gone = self.named().filter(|(_, _, presence)| *presence == Presence::Gone);
        gone.map(|(address, ..)| address).collect()
    }

    /// Takes a function out of the machine. Its workers first complete what they have begun.
    ///
    /// # Errors
    /// When the host refuses a change of the map.
    pub fn remove(&mut self, address: FunctionAddress) -> Result<Completion> {
        let Some(function) = self.virtio.get_mut(&address) else { return self.remove_plain(address) };
        if function.workers.stop(Purpose::Remove) {
            return Ok(Completion::Later);
        }
        self.at_rest(address, Purpose::Remove, Vec::new())?;
        Ok(Completion::Done)
    }

    fn take_out(&mut self, address: FunctionAddress) -> Result<()> {
        let changes = self.placement.update(address, Vec::new());
        self.carry_out(&changes)?;
        self.shared_memory.retain(|(function, _), _| *function != address);
        self.virtio.remove(&address);
        self.plain.remove(&address);
        self.ports.remove(address);
        if let Some(segment) = self.segments.get(usize::from(address.segment)) {
            segment.remove(address);
        }
        self.taken_out(address)
    }

    /// Gives all functions other guest memory. Those whose workers run go on with it when these have stopped; they are
    /// returned.
    pub fn change_memory(&mut self, memory: &Memory) -> BTreeSet<FunctionAddress> {
        self.surroundings.memory = Arc::clone(memory);
        let mut restarting = BTreeSet::new();
        for (address, function) in &mut self.virtio {
            lock(&function.transport).set_memory(Arc::clone(memory));
            if function.workers.stop(Purpose::Rest) {
                restarting.insert(*address);
            }
        }
        restarting
    }

    /// Keeps what controls the device at `address` while it works.
    pub fn set_control(&mut self, address: FunctionAddress, control: Control) {
        if let Some(function) = self.virtio.get_mut(&address) {
            function.control = Some(control);
        } else if let Some(function) = self.plain.get_mut(&address) {
            function.control = Some(control);
        }
    }

    /// Has every queue of a device looked at: something that it waits for may have changed.
    pub fn ring(&self, id: &str) {
        if let Some(function) = self.address_of(id).and_then(|address| self.virtio.get(&address)) {
            lock(&function.transport).ring_all();
        }
    }

    /// What controls the device named `id`.
    pub fn control(&self, id: &str) -> Option<&Control> {
        self.controls().find(|(name, _)| *name == id).map(|(_, control)| control)
    }

    /// What controls devices, by their names.
    pub fn controls(&self) -> impl Iterator<Item = (&str, &Control)> {
        let virtio = self.virtio.values().map(|function| (&function.id, &function.control));
        let all = virtio.chain(self.plain.values().map(|function| (&function.id, &function.control)));
        all.filter_map(|(id, control)| Some((id.as_str(), control.as_ref()?)))
    }

    /// Where the device named `id` is.
    pub fn address_of(&self, id: &str) -> Option<FunctionAddress> {
        self.ids().find(|(name, _)| *name == id).map(|(_, address)| address)
    }

    /// The name of the device at `address`.
    pub fn id_of(&self, address: FunctionAddress) -> Option<&str> {
        self.ids().find(|(_, at)| *at == address).map(|(id, _)| id)
    }

    /// The devices that have names, and where they are.
    pub fn ids(&self) -> impl Iterator<Item = (&str, FunctionAddress)> {
        let there = self.named().filter(|(_, _, presence)| *presence != Presence::Gone);
        there.map(|(address, id, _)| (id, address))
    }

    /// All functions that are or were devices with names.
    fn named(&self) -> impl Iterator<Item = (FunctionAddress, &str, Presence)> {
        let virtio = self.virtio.iter().map(|(at, function)| (*at, function.id.as_str(), function.presence));
        let plain = self.plain.iter().map(|(at, function)| (*at, function.id.as_str(), function.presence));
        virtio.chain(plain)
    }

    /// The functions below that at `address`, those further down last.
    pub fn below(&self, address: FunctionAddress) -> Vec<FunctionAddress> {
        let segment = self.segments.get(usize::from(address.segment));
        segment.map(|segment| segment.below(address)).unwrap_or_default()
    }

    /// The other functions of the device that the function at `address` is one of.
    pub fn beside(&self, address: FunctionAddress) -> Vec<FunctionAddress> {
        let functions = (0..8)
            .map(|function| FunctionAddress::new(address.segment, address.bus(), address.device(), function));
        functions.filter(|other| *other != address && self.has(*other)).collect()
    }

    /// Whether there is a function at `address`.
    pub fn has(&self, address: FunctionAddress) -> bool {
        self.segments.get(usize::from(address.segment)).is_some_and(|segment| segment.get(address).is_some())
    }

    /// Starts no more workers, and stops those that run. `true`: some are still to stop.
    pub fn pause(&mut self) -> bool {
        self.paused = true;
        self.stop_all(Purpose::Rest)
    }

    /// Starts the workers of all functions that are to run.
    pub fn resume(&mut self) {
        self.paused = false;
        let addresses: Vec<_> = self.virtio.keys().copied().collect();
        for address in addresses {
            self.start(address);
        }
    }

    /// Stops all workers, for a reset or the end of the machine. `true`: some are still to stop.
    pub fn stop_all(&mut self, purpose: Purpose) -> bool {
        let mut waiting = false;
        for function in self.virtio.values_mut() {
            waiting |= function.workers.stop(purpose);
        }
        waiting
    }

    /// Whether some workers are still to stop.
    pub fn stopping(&self) -> bool {
        self.virtio.values().any(|function| function.workers.stopping())
    }

    /// Returns every function to its state at power-on. No worker runs.
    ///
    /// # Errors
    /// When the host refuses a change of the map.
    pub fn reset(&mut self) -> Result<()> {
        self.paused = false;
        self.ports.forget_resets();
        let functions: Vec<_> = self.segments.iter().flat_map(Segment::functions).collect();
        for (address, function) in functions {
            lock(&function).reset();
            self.remap(address)?;
        }
        Ok(())
    }
}
