//! Persistent memory that comes and goes while the machine runs.
//!
//! Devices may be told to read and write there too, so each of them is given guest memory anew: its workers stop, and go on with
//! it. Only when all have is the guest told of memory that came, and a file that went in nobody's hands any more.

use super::Machine;
use crate::api::{ApiError, Respond};
use crate::pmem::PmemFile;
use anyhow::{Context, Result};
use block::virtio_pmem::Pmem;
use hypervisor::MemorySlot;
use machine::effect::FunctionAddress;
use machine::memory::GuestAddress;
use std::collections::BTreeSet;
use std::sync::Arc;
use virtio::device::VirtioDevice;
use vm_memory::GuestMemoryBackend;

/// What is done when all devices have gone on with other memory.
pub enum AfterRestart {
    /// A device came: the guest is told.
    Added {
        /// Its name.
        id: String,
        /// Where it is.
        address: FunctionAddress,
        /// Takes the answer.
        respond: Respond,
    },
    /// A device is gone: that is told.
    Removed {
        /// Its name.
        id: String,
    },
    /// Nothing.
    Nothing,
}

impl Machine {
    /// Gives the guest and the devices the memory of a file. Returns the device that tells the guest of it, and the functions
    /// that have to stop before they go on with it.
    pub(super) fn map_pmem(
        &mut self,
        id: &str,
        file: PmemFile,
    ) -> Result<(Box<dyn VirtioDevice>, BTreeSet<FunctionAddress>)> {
        let (slot, range) = self.pmem.take(id, file.size())?;
        let flush = file.flush.clone();
        let mapped = file.at(range.start).and_then(|region| {
            let ram = self.memory.ram.insert_region(Arc::new(region));
            self.memory.ram = Arc::new(ram.context("persistent memory overlaps other memory")?);
            let region =
                self.memory.ram.find_region(GuestAddress(range.start)).context("it was just put there")?;
            let slot = MemorySlot {
                slot,
                guest_address: range.start,
                size: range.size,
                host_address: region.as_ptr(),
                readonly: false,
                log_dirty: false,
            };
            self.watched.add(region)?;
            // SAFETY: the region stays mapped until the slot was taken back, or the machine is dropped before its memory.
            unsafe { self.vm.map_memory(slot) }.context("giving it to the guest")
        });
        if let Err(error) = mapped {
            self.forget_region(range.start, range.size);
            self.pmem.give_back(id);
            return Err(error);
        }
        let device = Pmem::new(range, flush);
        Ok((Box::new(device), self.pci.change_memory(&self.memory.ram)))
    }

    /// Takes the memory of the device named `id` from the guest and from the devices, if it has any. Returns the functions that
    /// have to stop before the file is in nobody's hands.
    pub(super) fn unmap_pmem(&mut self, id: &str) -> BTreeSet<FunctionAddress> {
        let Some((slot, range)) = self.pmem.give_back(id) else { return BTreeSet::new() };
        if let Err(error) = self.vm.unmap_memory(slot) {
            // The guest keeps it, and so the host has to.
            tracing::error!("device {id}: its memory cannot be taken from the guest: {error}");
            return BTreeSet::new();
        }
        self.forget_region(range.start, range.size);
        self.pci.change_memory(&self.memory.ram)
    }

    fn forget_region(&mut self, start: u64, size: u64) {
        let (ram, watched) = (Arc::clone(&self.memory.ram), self.watched.take(start));
        self.memory_in_use.push((watched, ram));
        if let Ok((ram, _)) = self.memory.ram.remove_region(GuestAddress(start), size) {
            self.memory.ram = Arc::new(ram);
        }
    }

    /// Does `then` when all of `restarting` have stopped.
    pub(super) fn after_restart(&mut self, restarting: BTreeSet<FunctionAddress>, then: AfterRestart) {
        self.restarts.push((restarting, then));
        self.complete_restarts();
    }

    /// The workers of a function have stopped.
    pub(super) fn note_stopped(&mut self, function: FunctionAddress) {
        for (restarting, _) in &mut self.restarts {
            restarting.remove(&function);
        }
        self.complete_restarts();
    }

    /// No worker runs, so that none has to be waited for.
    pub(super) fn all_stopped(&mut self) {
        self.restarts.iter_mut().for_each(|(restarting, _)| restarting.clear());
        self.complete_restarts();
    }

    fn complete_restarts(&mut self) {
        while let Some(index) = self.restarts.iter().position(|(restarting, _)| restarting.is_empty()) {
            let (_, then) = self.restarts.remove(index);
            if self.restarts.is_empty() {
                self.memory_in_use.clear();
            }
            self.restarted(then);
        }
    }

    fn restarted(&mut self, then: AfterRestart) {
        match then {
            AfterRestart::Added { id, address, respond } => self.added(id, address, respond),
            AfterRestart::Removed { id } => self.removed(id),
            AfterRestart::Nothing => {}
        }
    }

    /// Whether the device named `id` is in its place and the guest was not told yet.
    pub(super) fn is_coming(&self, id: &str) -> bool {
        self.restarts
            .iter()
            .any(|(_, then)| matches!(then, AfterRestart::Added { id: coming, .. } if coming == id))
    }

    /// The machine ends: answers those who wait.
    pub(super) fn refuse_restarts(&mut self, refused: impl Fn() -> ApiError) {
        for (_, then) in std::mem::take(&mut self.restarts) {
            if let AfterRestart::Added { respond, .. } = then {
                respond(Err(refused()));
            }
        }
    }
}
