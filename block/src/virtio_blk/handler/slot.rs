//! What is known of a request in flight.

use super::load::{Cost, ZERO_PIECE};
use crate::virtio_blk::config::SEGMENTS_MAX;
use virtio::chain::Chain;

/// A request in flight.
pub(super) struct Slot {
    pub(super) chain: Chain,
    pub(super) doing: Doing,
    /// When it was taken, in monotonic nanoseconds.
    pub(super) since: u64,
    /// While its flush is in flight: what the cache said when that began.
    pub(super) flush: Option<u64>,
    /// What it counts as while in flight.
    pub(super) cost: Cost,
    /// How many requests had been taken from the queue with it.
    pub(super) order: u64,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self {
            chain: Chain::of_at_most(SEGMENTS_MAX),
            doing: Doing::Nothing,
            since: 0,
            flush: None,
            cost: Cost::Nothing,
            order: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Nothing,
    /// Reading, of which the first `begun` bytes were given to the host.
    Read {
        offset: u64,
        length: u64,
        begun: u64,
    },
    Write {
        offset: u64,
        length: u64,
        begun: u64,
        stable: bool,
    },
    Flush,
    /// Making stable what is in the cache, which the driver turned off; for no chain.
    Settle,
    Ranges(Ranges),
}

/// Discarding or zeroing ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ranges {
    pub(super) zero: bool,
    /// How many there are.
    pub(super) count: u32,
    /// The range that goes on; those before are over.
    pub(super) next: u32,
    /// The bytes at its start that were given to the host.
    pub(super) begun: u64,
    /// The bytes given to the host, of all ranges.
    pub(super) length: u64,
    /// Each part is made stable by itself.
    pub(super) stable: bool,
    /// All parts are to be made stable together, at the end.
    pub(super) flush: bool,
}

impl Ranges {
    pub(super) fn discard(count: u32) -> Self {
        Self { zero: false, count, next: 0, begun: 0, length: 0, stable: false, flush: false }
    }

    /// Zeroing `length` bytes in `count` ranges. One part is made stable by itself, of more it would cost a flush each.
    pub(super) fn zero(count: u32, length: u64, stable: bool) -> Self {
        let single = count == 1 && length <= ZERO_PIECE;
        Self {
            zero: true,
            count,
            next: 0,
            begun: 0,
            length: 0,
            stable: stable && single,
            flush: stable && !single,
        }
    }
}
