//! The PCI functions of a machine: where they answer, and the workers that run their queues.
//!
//! All of this belongs to the machine thread. Functions ask for changes by effects; what takes time (workers that
//! have requests in flight) is begun here and completed by a later message, so that the machine thread never waits.

use super::workers::{self, FunctionWorkers};
use crate::message::Mailbox;
use anyhow::{Context, Result};
use hypervisor::{AddressSpace, Vm};
use machine::bus::{BusHandle, Range};
use machine::doorbell::DoorbellAddress;
use machine::effect::{DeviceChange, FunctionAddress};
use machine::inspect::{Value, json};
use pci::BarWindow;
use pci::bar::Space;
use pci::function::FunctionHandle;
use pci::placement::{Changes, Placement, Window};
use pci::root::Segment;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use virtio::device::QueueTask;
use virtio::pci_transport::VirtioPci;

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
}

/// The PCI functions of a machine.
pub struct PciBus {
    vm: Arc<dyn Vm>,
    mmio: BusHandle,
    port: BusHandle,
    mailbox: Mailbox,
    segments: Vec<Segment>,
    placement: Placement,
    virtio: BTreeMap<FunctionAddress, VirtioFunction>,
    /// The doorbells attached at the hypervisor, by where they are.
    doorbells: BTreeMap<(FunctionAddress, u8), (AddressSpace, u64, Vec<DoorbellAddress>)>,
}

fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PciBus {
    /// Buses without functions; BARs are mapped only where `allowed_memory` and `allowed_io` say.
    pub fn new(
        vm: Arc<dyn Vm>,
        mmio: BusHandle,
        port: BusHandle,
        mailbox: Mailbox,
        segments: Vec<Segment>,
        allowed_memory: Vec<Range>,
        allowed_io: Vec<Range>,
    ) -> Self {
        let placement = Placement::new(allowed_memory, allowed_io);
        Self {
            vm,
            mmio,
            port,
            mailbox,
            segments,
            placement,
            virtio: BTreeMap::new(),
            doorbells: BTreeMap::new(),
        }
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Adds a virtio device named `id` at the next free device number of its segment.
    ///
    /// # Errors
    /// When the segment is full.
    pub fn add_virtio(
        &mut self,
        id: &str,
        segment: u16,
        transport: VirtioPci,
        options: workers::Options,
    ) -> Result<FunctionAddress> {
        let bus = self
            .segments
            .get(usize::from(segment))
            .with_context(|| format!("device {id}: there is no PCI segment {segment}"))?;
        let device = bus.free_device().with_context(|| {
            format!("device {id}: PCI segment {segment} has no room left; raise --platform num_pci_segments")
        })?;
        let address = FunctionAddress::new(segment, 0, device, 0);
        let transport = Arc::new(Mutex::new(transport));
        let function: FunctionHandle = transport.clone();
        bus.insert(address, function).with_context(|| format!("adding device {id}"))?;
        let workers = FunctionWorkers::new(id, address, options, self.mailbox.clone());
        self.virtio.insert(address, VirtioFunction { id: id.to_owned(), transport, workers });
        Ok(address)
    }

    /// Does what a function asks for about itself.
    ///
    /// # Errors
    /// When the host refuses; the function is left without what it asked for.
    pub fn apply(&mut self, address: FunctionAddress, change: DeviceChange) -> Result<Completion> {
        match change {
            DeviceChange::Remap => self.remap(address).map(|()| Completion::Done),
            DeviceChange::Start | DeviceChange::StartQueue(_) => self.start(address, change),
            DeviceChange::Stop | DeviceChange::StopQueue(_) | DeviceChange::Reset => {
                let Some(function) = self.virtio.get_mut(&address) else { return Ok(Completion::Done) };
                if function.workers.stop(change) {
                    return Ok(Completion::Later);
                }
                // Nothing runs: the answer is the same as if it had stopped at once.
                self.stopped(address, Vec::new())
            }
        }
    }

    fn start(&mut self, address: FunctionAddress, change: DeviceChange) -> Result<Completion> {
        let Some(function) = self.virtio.get_mut(&address) else { return Ok(Completion::Done) };
        let started = {
            let mut transport = lock(&function.transport);
            match change {
                DeviceChange::StartQueue(queue) => transport.start_queue(queue),
                _ => transport.start(),
            }
        };
        let tasks = started.with_context(|| format!("starting device {}", function.id))?;
        function.workers.run(tasks)?;
        Ok(Completion::Done)
    }

    /// Workers of a function gave back what they ran.
    ///
    /// # Errors
    /// As [`PciBus::apply`].
    pub fn stopped(&mut self, address: FunctionAddress, tasks: Vec<QueueTask>) -> Result<Completion> {
        let Some(function) = self.virtio.get_mut(&address) else { return Ok(Completion::Done) };
        let Some((change, tasks)) = function.workers.returned(tasks) else { return Ok(Completion::Later) };
        {
            let mut transport = lock(&function.transport);
            match change {
                DeviceChange::StopQueue(queue) => transport.queue_stopped(queue, tasks),
                _ => transport.stopped(tasks),
            }
            if change == DeviceChange::Reset {
                pci::function::Function::reset(&mut *transport);
            }
        }
        self.remap(address)?;
        Ok(Completion::Done)
    }

    /// Stops all workers, for a reset of the machine. `true`: some are still to stop.
    pub fn stop_all(&mut self) -> bool {
        let mut waiting = false;
        for function in self.virtio.values_mut() {
            waiting |= function.workers.stop(DeviceChange::Reset) || function.workers.stopping();
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
        let functions: Vec<_> = self.segments.iter().flat_map(Segment::functions).collect();
        for (address, function) in functions {
            lock(&function).reset();
            self.remap(address)?;
        }
        Ok(())
    }

    /// Maps a function's windows where its configuration space says they are now.
    ///
    /// # Errors
    /// When the hypervisor refuses a doorbell.
    pub fn remap(&mut self, address: FunctionAddress) -> Result<()> {
        let Some(function) = self.segments.get(usize::from(address.segment)).and_then(|bus| bus.get(address)) else {
            return Ok(());
        };
        let windows = lock(&function).config().bar_windows();
        let changes = self.placement.update(address, windows);
        self.carry_out(&changes)
    }

    fn carry_out(&mut self, changes: &Changes) -> Result<()> {
        for window in &changes.unmap {
            self.detach_doorbells(window)?;
        }
        for (space, handle) in [(Space::Memory, &self.mmio), (Space::Io, &self.port)] {
            let gone = changes.unmap.iter().filter(|window| window.window.space == space);
            let come = changes.map.iter().filter(|window| window.window.space == space);
            let (gone, come): (Vec<_>, Vec<_>) = (gone.collect(), come.collect());
            if gone.is_empty() && come.is_empty() {
                continue;
            }
            handle
                .change(|bus| {
                    for window in gone {
                        bus.remove(window.window.range.start);
                    }
                    for window in come {
                        let Some(function) = self
                            .segments
                            .get(usize::from(window.function.segment))
                            .and_then(|bus| bus.get(window.function))
                        else {
                            continue;
                        };
                        let device = BarWindow::new(function, window.function, window.window.bar);
                        bus.insert(window.window.range, Arc::new(Mutex::new(device)))?;
                    }
                    Ok::<_, machine::bus::BusError>(())
                })
                .context("mapping PCI windows")?;
        }
        for window in &changes.map {
            self.attach_doorbells(window)?;
        }
        Ok(())
    }

    fn attach_doorbells(&mut self, window: &Window) -> Result<()> {
        let Some(function) =
            self.segments.get(usize::from(window.function.segment)).and_then(|bus| bus.get(window.function))
        else {
            return Ok(());
        };
        let doorbells = lock(&function).doorbells(window.window.bar);
        let space = match window.window.space {
            Space::Memory => AddressSpace::Mmio,
            Space::Io => AddressSpace::Port,
        };
        let base = window.window.range.start;
        for doorbell in &doorbells {
            self.vm
                .attach_doorbell(space, base, doorbell)
                .with_context(|| format!("attaching a doorbell of PCI function {}", window.function))?;
        }
        if !doorbells.is_empty() {
            self.doorbells.insert((window.function, window.window.bar), (space, base, doorbells));
        }
        Ok(())
    }

    fn detach_doorbells(&mut self, window: &Window) -> Result<()> {
        let Some((space, base, doorbells)) = self.doorbells.remove(&(window.function, window.window.bar)) else {
            return Ok(());
        };
        for doorbell in &doorbells {
            self.vm
                .detach_doorbell(space, base, doorbell)
                .with_context(|| format!("detaching a doorbell of PCI function {}", window.function))?;
        }
        Ok(())
    }

    /// The functions and their workers, for inspection.
    pub fn inspect(&self) -> Value {
        let functions = self.segments.iter().flat_map(Segment::functions);
        functions
            .map(|(address, function)| {
                let virtio = self.virtio.get(&address);
                let live = lock(&function).inspect();
                let value = json!({
                    "id": virtio.map(|virtio| virtio.id.as_str()),
                    "function": live,
                    "workers": virtio.map(|virtio| virtio.workers.inspect()),
                });
                (address.to_string(), value)
            })
            .collect()
    }
}
