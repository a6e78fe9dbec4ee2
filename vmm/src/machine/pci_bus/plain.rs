//! Functions that are no virtio devices: ports, and devices that need no queues.

use super::{Completion, PciBus, Presence, lock};
use crate::config::PciPlace;
use crate::machine::control::Control;
use crate::machine::shared_memory::SharedMemory;
use crate::machine::workers::{self, FunctionWorkers, Purpose};
use anyhow::{Context, Result};
use machine::effect::FunctionAddress;
use pci::function::FunctionHandle;
use std::sync::Arc;
use virtio::device::QueueTask;

/// A function that is no virtio device.
pub(super) struct PlainFunction {
    pub(super) id: String,
    pub(super) presence: Presence,
    pub(super) control: Option<Control>,
    /// What runs beside it.
    pub(super) beside: Option<FunctionWorkers>,
}

impl PlainFunction {
    /// One that nothing runs beside.
    pub(super) fn named(id: &str) -> Self {
        Self { id: id.to_owned(), presence: Presence::There, control: None, beside: None }
    }
}

/// What a function that is no virtio device is made of.
pub struct PlainDevice {
    /// The function.
    pub function: FunctionHandle,
    /// The memory that one of its BARs is.
    pub memory: Option<(u8, SharedMemory)>,
    /// What runs beside it, and has no queues.
    pub task: Option<QueueTask>,
}

impl From<FunctionHandle> for PlainDevice {
    fn from(function: FunctionHandle) -> Self {
        Self { function, memory: None, task: None }
    }
}

impl PciBus {
    /// Adds a function that is no virtio device, for something named `id`.
    ///
    /// # Errors
    /// When there is no room where it is to be, or the host gives no thread for what runs beside it.
    pub fn add_function(
        &mut self,
        id: &str,
        place: impl Into<PciPlace>,
        device: impl Into<PlainDevice>,
        options: workers::Options,
    ) -> Result<FunctionAddress> {
        let PlainDevice { function, memory, task } = device.into();
        let address = self.place(id, &place.into())?;
        let mut plain = PlainFunction::named(id);
        if let Some(task) = task {
            let surroundings = &self.surroundings;
            let (clock, mailbox) = (Arc::clone(&surroundings.clock), surroundings.mailbox.clone());
            let mut workers = FunctionWorkers::new(id, address, options, clock, mailbox);
            workers.run(&mut vec![(task, Vec::new())])?;
            plain.beside = Some(workers);
        }
        self.insert(address, function).with_context(|| format!("adding device {id}"))?;
        if let Some((bar, mut memory)) = memory {
            memory.set_number(self.free_memory_number());
            self.shared_memory.insert((address, bar), memory);
        }
        self.plain.insert(address, plain);
        Ok(address)
    }

    /// A number that no shared memory of the machine has.
    fn free_memory_number(&self) -> u32 {
        let taken = |number| self.shared_memory.values().any(|memory| memory.number() == number);
        (0..).find(|number| !taken(*number)).unwrap_or(u32::MAX)
    }

    /// As [`PciBus::withdraw`], of a function that is no virtio device: what is left of it has nothing of the host.
    pub(super) fn withdraw_plain(&mut self, address: FunctionAddress) -> Result<Completion> {
        let Some(function) = self.plain.get_mut(&address) else { return Ok(Completion::Done) };
        function.presence = Presence::Going;
        self.ports.forget_name(address);
        self.stop_plain(address, Purpose::Rest)
    }

    /// As [`PciBus::remove`], of a function that is no virtio device.
    pub(super) fn remove_plain(&mut self, address: FunctionAddress) -> Result<Completion> {
        self.stop_plain(address, Purpose::Remove)
    }

    fn stop_plain(&mut self, address: FunctionAddress, purpose: Purpose) -> Result<Completion> {
        let beside = self.plain.get_mut(&address).and_then(|function| function.beside.as_mut());
        if beside.is_some_and(|workers| workers.stop(purpose)) {
            return Ok(Completion::Later);
        }
        self.plain_at_rest(address, purpose).map(|()| Completion::Done)
    }

    /// What ran beside a function gave back what it ran.
    pub(super) fn plain_stopped(
        &mut self,
        address: FunctionAddress,
        tasks: Vec<QueueTask>,
    ) -> Result<Completion> {
        let Some(function) = self.plain.get_mut(&address) else { return Ok(Completion::Done) };
        let Some(workers) = &mut function.beside else { return Ok(Completion::Done) };
        let Some((purpose, tasks)) = workers.returned(tasks) else { return Ok(Completion::Later) };
        self.closing.close(tasks, &function.id, &self.surroundings.work);
        self.plain_at_rest(address, purpose).map(|()| Completion::Done)
    }

    fn plain_at_rest(&mut self, address: FunctionAddress, purpose: Purpose) -> Result<()> {
        let Some(function) = self.plain.get_mut(&address) else { return Ok(()) };
        function.beside = None;
        if function.presence == Presence::Going {
            function.presence = Presence::Gone;
            if let Some(Control::SharedMemory(device)) = function.control.take() {
                lock(&device).withdraw();
            }
        }
        self.give_up_memory(address)?;
        if purpose == Purpose::Remove { self.take_out(address) } else { Ok(()) }
    }

    /// Takes the memory that a function's BARs are from the guest, and lets go of it.
    fn give_up_memory(&mut self, address: FunctionAddress) -> Result<()> {
        let vm = Arc::clone(&self.surroundings.vm);
        let bars: Vec<_> = self.shared_memory.keys().filter(|(at, _)| *at == address).copied().collect();
        for bar in bars {
            // What the guest keeps, the host has to.
            self.shared_memory.get_mut(&bar).map_or(Ok(()), |memory| memory.unmap(&*vm))?;
            if let Some(memory) = self.shared_memory.remove(&bar) {
                let id = self.plain.get(&address).map(|function| function.id.as_str());
                self.closing.close(memory, id.unwrap_or_default(), &self.surroundings.work);
            }
        }
        Ok(())
    }
}
