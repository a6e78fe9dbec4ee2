//! What a simulated machine has taken of its hypervisor, for tests that count it.

use super::{Board, Sim, lock};
use std::sync::atomic::Ordering;

/// Counts of what a machine has taken and not given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Pieces of memory that the guest has.
    pub memory_slots: usize,
    /// Doorbells that are attached.
    pub doorbells: usize,
    /// Sources of message-signalled interrupts.
    pub interrupt_sources: usize,
}

impl Sim {
    /// What the machine that was made last has taken; nothing, if it is gone.
    pub fn resources(&self) -> Resources {
        lock(&self.last).upgrade().map_or_else(Resources::default, |board| board.resources())
    }
}

impl Board {
    fn resources(&self) -> Resources {
        Resources {
            memory_slots: self.slots.count(),
            doorbells: lock(&self.doorbells).len(),
            interrupt_sources: self.sources.load(Ordering::SeqCst),
        }
    }
}
