//! What split and packed rings have in common: slots, chains, notifications.
//!
//! A ring has a fixed number of slots; each holds at most one chain at a time and owns its descriptors, so that
//! nothing is allocated per request and a completion says at once whose it is.

use super::packed::PackedRing;
use super::split::SplitRing;

/// The two kinds of ring.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RingKind {
    /// Descriptor table, available ring, used ring (2.7).
    Split,
    /// One descriptor ring with two event areas (2.8).
    Packed,
}

/// Where a ring's three areas are.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Descriptors.
    pub size: u16,
    /// Descriptor area.
    pub descriptors: u64,
    /// Driver area: available ring or driver event suppression.
    pub driver: u64,
    /// Device area: used ring or device event suppression.
    pub device: u64,
}

/// One part of a chain.
#[derive(Clone, Copy)]
pub struct Buffer {
    /// Its address.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A part that the device reads.
    pub fn readable(address: u64, length: u32) -> Buffer {
        Buffer { address, length, writable: false }
    }

    /// A part that the device writes.
    pub fn writable(address: u64, length: u32) -> Buffer {
        Buffer { address, length, writable: true }
    }
}

/// A descriptor of a split ring or an indirect table; that of a packed ring has its last two fields the other way.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Descriptor {
    /// Address of the buffer.
    pub address: u64,
    /// Its length.
    pub length: u32,
    /// Flags (split), or the buffer's ID (packed).
    pub third: u16,
    /// The next descriptor's index (split), or flags (packed).
    pub fourth: u16,
}

/// Descriptor flags of both kinds.
pub mod flag {
    /// Another descriptor follows.
    pub const NEXT: u16 = 1;
    /// The device writes the buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// A ring of either kind.
pub enum Ring {
    /// Split.
    Split(SplitRing),
    /// Packed.
    Packed(PackedRing),
}

macro_rules! either {
    ($self:ident, $ring:ident => $body:expr) => {
        match $self {
            Ring::Split($ring) => $body,
            Ring::Packed($ring) => $body,
        }
    };
}

impl Ring {
    /// A ring of `size` descriptors in memory of its own, with chains of at most `stride` parts.
    pub fn new(kind: RingKind, size: u16, stride: u16, event_idx: bool, indirect: bool) -> Ring {
        match kind {
            RingKind::Split => Ring::Split(SplitRing::new(size, stride, event_idx, indirect)),
            RingKind::Packed => Ring::Packed(PackedRing::new(size, stride, event_idx, indirect)),
        }
    }

    /// Where it is.
    pub fn layout(&self) -> Layout {
        either!(self, ring => ring.layout())
    }

    /// How many chains it holds.
    pub fn slots(&self) -> u16 {
        either!(self, ring => ring.slots())
    }

    /// Puts a chain into a free slot; the device may see it before [`Ring::publish`].
    pub fn add(&mut self, slot: u16, chain: &[Buffer]) {
        either!(self, ring => ring.add(slot, chain));
    }

    /// Shows the device all that was added; says whether it asks for a notification.
    pub fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    /// Whether a chain has been completed that [`Ring::take`] has not returned.
    pub fn has_completion(&self) -> bool {
        either!(self, ring => ring.has_completion())
    }

    /// The next completed chain: its slot and the number of bytes the device says it wrote. A slot that is none of
    /// this ring's comes back as it is.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        either!(self, ring => ring.take())
    }

    /// Asks for an interrupt at the next completion, or for none.
    pub fn want_interrupt(&mut self, want: bool) {
        either!(self, ring => ring.want_interrupt(want));
    }
}

/// Whether an event at index `event` lies between `old` and `new` (2.7.7.2).
pub fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
