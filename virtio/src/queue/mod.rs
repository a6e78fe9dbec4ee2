//! A virtqueue as its device sees it (virtio 1.2, 2.6): split (`split`) or packed (`packed`) rings behind one type.
//!
//! Everything in a ring is the guest's to change at any time. Each descriptor is read once, and what was read is checked
//! before it is used. A ring that makes no sense breaks its queue until the driver resets it.

mod counters;
mod descriptor;
mod packed;
mod split;
mod timing;

pub use counters::QueueCounters;

use crate::chain::{Chain, Token};
use crate::features::Features;
use crate::host_memory::RamMap;
use machine::clock::Clock;
use machine::memory::Memory;
use machine::metrics::COUNTED;
use packed::Packed;
use serde::{Deserialize, Serialize};
use split::Split;
use std::sync::Arc;
use thiserror::Error;
use timing::Timing;

/// The largest queue (virtio 1.2, 2.6).
pub const MAX_SIZE: u16 = 1 << 15;

/// Whom a queue tells about itself. Called on the data path, so these must not block, lock or allocate.
pub trait QueueEvents: Send + Sync {
    /// Chains were used, and the driver wants an interrupt.
    fn used(&self);

    /// The driver's ring makes no sense, and the device needs a reset.
    fn broken(&self);
}

/// What a driver did wrong, or set up wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QueueError {
    /// Queue size 0, over the limit, or not a power of two in a split queue.
    #[error("the queue size {0} is not one a queue can have")]
    Size(u16),
    /// A part of the ring is misaligned or not in RAM.
    #[error("the queue's {part} at {address:#x} is misaligned or not in RAM")]
    Ring {
        /// Which part.
        part: &'static str,
        /// Its guest-physical address.
        address: u64,
    },
    /// More new entries in the available ring than it can hold.
    #[error("the available index moved from {from} to {to} in a queue of {size}")]
    AvailableIndex {
        /// Where the device was.
        from: u16,
        /// What the driver wrote.
        to: u16,
        /// Queue size.
        size: u16,
    },
    /// More chains are available and unused at once than the ring holds.
    #[error("more buffers are in flight than the queue holds")]
    InFlight,
    /// A descriptor number past the end of its table.
    #[error("descriptor {index} is past the end of a table of {len}")]
    DescriptorIndex {
        /// The number.
        index: u16,
        /// Entries in the table.
        len: u32,
    },
    /// A chain has more descriptors than the queue allows; mostly a loop.
    #[error("a descriptor chain loops or is too long")]
    ChainTooLong,
    /// A chain describes more than 4 GiB.
    #[error("a descriptor chain has more than 4 GiB")]
    ChainTooLarge,
    /// A buffer the device reads comes after one it writes.
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// A buffer is not in RAM.
    #[error("a buffer at {address:#x}+{len:#x} is not in RAM")]
    Buffer {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// An indirect descriptor without the feature, within an indirect table, or with a successor.
    #[error("an indirect descriptor is where none may be")]
    Indirect,
    /// An indirect table that is empty, of a bad length, or not in RAM.
    #[error("the indirect table at {address:#x}+{len:#x} is malformed or not in RAM")]
    IndirectTable {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A request that its device cannot even answer, such as one without room for a status.
    #[error("a request {0}")]
    Request(&'static str),
    /// The queue broke before.
    #[error("the queue is broken until it is reset")]
    Broken,
}

/// Where a queue is and how far it got: what the driver set, and what is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueState {
    /// Number of entries.
    pub size: u16,
    /// Guest-physical address of the descriptor table or ring.
    pub descriptor_area: u64,
    /// Guest-physical address of the available ring, or of the driver event suppression.
    pub driver_area: u64,
    /// Guest-physical address of the used ring, or of the device event suppression.
    pub device_area: u64,
    /// The next chain to be popped: the free-running index (split), or slot and, in bit 15, wrap counter (packed).
    pub next_available: u16,
    /// The next place in the used ring, in the same form.
    pub next_used: u16,
}

impl QueueState {
    /// A queue of `size` entries at its beginning.
    pub fn new(size: u16, descriptor_area: u64, driver_area: u64, device_area: u64, packed: bool) -> Self {
        // Both wrap counters of a packed ring start at 1 (virtio 1.2, 2.8.1).
        let start = if packed { 1 << 15 } else { 0 };
        Self { size, descriptor_area, driver_area, device_area, next_available: start, next_used: start }
    }
}

enum Ring {
    Split(Split),
    Packed(Packed),
}

/// Runs the same method of whichever ring it is.
macro_rules! each {
    ($ring:expr, $name:ident => $body:expr) => {
        match $ring {
            Ring::Split($name) => $body,
            Ring::Packed($name) => $body,
        }
    };
}

/// A virtqueue in operation, owned by whoever runs it.
///
/// At most [`size`](Self::size) chains are popped and not yet pushed at any time, whatever the driver does.
pub struct Queue {
    ring: Ring,
    ram: RamMap,
    state: QueueState,
    events: Arc<dyn QueueEvents>,
    indirect: bool,
    /// Ring slots popped and not yet pushed.
    in_flight: u16,
    error: Option<QueueError>,
    counters: Arc<QueueCounters>,
    /// `None`: nobody wants to know, or the device times its requests itself.
    timing: Option<Timing>,
}

impl Queue {
    /// A queue where `state` says, under the negotiated `features` (all bits; those of the ring matter here).
    ///
    /// # Errors
    /// When its size is not possible or a part of it is misaligned or not in RAM.
    pub fn new(
        state: &QueueState,
        features: u64,
        memory: Memory,
        events: Arc<dyn QueueEvents>,
    ) -> Result<Self, QueueError> {
        let features = Features::from_bits_retain(features);
        if state.size == 0 || state.size > MAX_SIZE {
            return Err(QueueError::Size(state.size));
        }
        let event_idx = features.contains(Features::EVENT_IDX);
        let mut ram = RamMap::new(memory);
        let ring = if features.contains(Features::RING_PACKED) {
            Ring::Packed(Packed::new(state, event_idx, &mut ram)?)
        } else {
            Ring::Split(Split::new(state, event_idx, &mut ram)?)
        };
        Ok(Self {
            ring,
            ram,
            state: *state,
            events,
            indirect: features.contains(Features::INDIRECT_DESC),
            in_flight: 0,
            error: None,
            counters: Arc::default(),
            timing: None,
        })
    }

    /// Has the queue count here, where others look, and time requests by the intervals of `clock` if they are to be timed.
    #[must_use]
    pub fn counting(mut self, counters: Arc<QueueCounters>, clock: Arc<dyn Clock>) -> Self {
        self.timing = counters.latency.clone().filter(|_| COUNTED).map(|latency| Timing::new(latency, clock));
        self.counters = counters;
        self
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.state.size
    }

    /// Takes the next chain the driver made available into `chain`. `false`: there is none, and `chain` is as it was.
    ///
    /// # Errors
    /// When the ring or the chain makes no sense. The queue is then broken until it is reset, and the driver
    /// has been told.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.error.is_some() {
            return Err(QueueError::Broken);
        }
        match self.try_pop(chain) {
            Ok(popped) => Ok(popped),
            Err(error) => {
                self.fail(error);
                Err(error)
            }
        }
    }

    #[inline]
    fn try_pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let popped = each!(&mut self.ring, ring => ring.pop(&mut self.ram, self.indirect, chain)?);
        let Some(token) = popped else { return Ok(false) };
        let in_flight = self.in_flight.saturating_add(token.slots);
        if in_flight > self.state.size {
            return Err(QueueError::InFlight);
        }
        self.in_flight = in_flight;
        self.counters.popped.add(1);
        let taken = self.timing.as_mut().map_or(0, Timing::take);
        chain.finish(Token { taken, ..token });
        Ok(true)
    }

    /// Undoes the last [`Self::pop`]: its chain is the next one again. May be repeated for the pops before it, newest
    /// first, as long as none of them was pushed.
    pub fn unpop(&mut self, token: Token) {
        each!(&mut self.ring, ring => ring.unpop(token));
        self.in_flight = self.in_flight.saturating_sub(token.slots);
        self.counters.popped.take_back(1);
    }

    /// Declares the driver's use of the queue nonsense, as [`Self::pop`] does when it finds so: for handlers that
    /// meet a request they cannot even answer.
    pub fn fail(&mut self, error: QueueError) {
        if self.error.is_none() {
            tracing::warn!(%error, "the guest broke a virtqueue");
            self.error = Some(error);
            self.counters.errors.add(1);
            self.events.broken();
        }
    }

    /// Whether the queue is broken until it is reset.
    pub fn is_broken(&self) -> bool {
        self.error.is_some()
    }

    /// Gives a chain back to the driver, with the number of bytes written from the start of its writable part. The driver sees
    /// it after [`Self::flush`] or [`Self::notify`].
    #[inline]
    pub fn push(&mut self, token: Token, written: u32) {
        each!(&mut self.ring, ring => ring.push(token, written));
        self.in_flight = self.in_flight.saturating_sub(token.slots);
        self.counters.used.add(1);
        self.counters.read_bytes.add(token.readable.into());
        self.counters.written_bytes.add(written.into());
        if let Some(timing) = &mut self.timing {
            timing.answer(token.taken);
        }
    }

    /// As [`Self::push`], for a buffer that the device held until there was something to put into it: it is not timed from when it was
    /// popped but from when this batch began, see [`Self::begin_batch`].
    #[inline]
    pub fn push_held(&mut self, token: Token, written: u32) {
        let taken = self.timing.as_mut().map_or(0, Timing::take);
        self.push(Token { taken, ..token }, written);
    }

    /// Requests are timed from `now` on, of the clock's intervals, until the driver is told of their answers, rather than from the first
    /// [`Self::pop`] or [`Self::push_held`] on, which need not look at the clock then.
    #[inline]
    pub fn begin_batch(&mut self, now: u64) {
        if let Some(timing) = &mut self.timing {
            timing.begin(now);
        }
    }

    /// Shows the driver what was pushed, without an interrupt.
    #[inline]
    pub fn flush(&mut self) {
        each!(&mut self.ring, ring => ring.flush());
        self.told();
    }

    /// The driver sees all that was pushed.
    #[inline]
    fn told(&mut self) {
        if let Some(timing) = &mut self.timing {
            timing.told();
        }
    }

    /// Shows the driver what was pushed, and interrupts it if it wants that for anything flushed since the last call. To be
    /// called once for a batch.
    #[inline]
    pub fn notify(&mut self) {
        let wanted = each!(&mut self.ring, ring => {
            ring.flush();
            ring.take_interrupt()
        });
        match wanted {
            Some(true) => {
                self.counters.interrupts.add(1);
                self.events.used();
            }
            Some(false) => {
                self.counters.interrupts_suppressed.add(1);
            }
            None => {}
        }
        // Not before the interrupt, which would come later for it.
        self.told();
    }

    /// Asks the driver to ring the doorbell for the next chain. `true`: there is one already.
    pub fn enable_notifications(&mut self) -> bool {
        each!(&mut self.ring, ring => ring.enable_notifications()) && self.error.is_none()
    }

    /// Tells the driver not to ring the doorbell.
    pub fn disable_notifications(&mut self) {
        each!(&mut self.ring, ring => ring.disable_notifications());
    }

    /// Whether a chain waits to be popped. Costs a look at memory.
    #[inline]
    pub fn has_available(&self) -> bool {
        self.error.is_none() && each!(&self.ring, ring => ring.has_available())
    }

    /// Ring slots of chains that were popped and not yet pushed.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Where the queue is and how far it got. Meaningful for saving when nothing is in flight.
    pub fn state(&self) -> QueueState {
        let (next_available, next_used) = each!(&self.ring, ring => ring.progress());
        QueueState { next_available, next_used, ..self.state }
    }

    /// The memory its chains are in.
    pub fn memory(&self) -> &Memory {
        self.ram.memory()
    }
}

machine::inspect!(Queue, this => {
    layout: if matches!(this.ring, Ring::Packed(_)) { "packed" } else { "split" },
    size: this.state.size,
    hex descriptor_area: this.state.descriptor_area,
    hex driver_area: this.state.driver_area,
    hex device_area: this.state.device_area,
    next_available: this.state().next_available,
    next_used: this.state().next_used,
    in_flight,
    counters,
    error: this.error.map(|error| error.to_string()),
});

#[cfg(test)]
mod tests;
