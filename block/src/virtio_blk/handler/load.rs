//! How much a queue has the host do at once.
//!
//! A pause, a reset and a removal wait for what was begun, and a worker looks at them between two runs of a handler. A driver
//! can ask for 4 GiB with each request, and for 8 GiB of zeroes: what is begun is therefore limited by its bytes. Long
//! transfers are made in pieces. A request beyond the limit is begun alone, when nothing else is in flight, so that it can
//! be put back into the ring between two of its parts, and begun anew later: reading, writing and zeroing can be repeated.
//! It is then begun from its start, also by the same handler, since a saved queue has no place for how far it came; what
//! the rate limit took for it is given back before. A machine that is paused again and again has to run in between for as
//! long as such a request takes.
//!
//! Zeroing transfers nothing where the host can do it without: it has a limit of its own, and transfers go
//! beside it until that is reached. Where the host must write zeroes, it is slow: what is behind a request beyond the limit
//! waits, and a pause puts zeroing back between two pieces, newest first, as long as nothing was answered that was taken
//! from the queue later.

use crate::image::SECTOR;
use crate::virtio_blk::config::ZERO_SECTORS_MAX;

/// Bytes that all queues of a disk transfer at once, each the same share: what slow storage does in a few seconds.
const TRANSFERS: u64 = 256 << 20;
/// The least that one queue may transfer at once.
const TRANSFERS_LEAST: u64 = 32 << 20;
/// Bytes that all queues of a disk zero at once, each the same share.
const ZEROES: u64 = 512 << 20;
/// The least that one queue may zero at once: the longest range.
const ZEROES_LEAST: u64 = (ZERO_SECTORS_MAX as u64).saturating_mul(SECTOR);
/// The most bytes that are transferred by one operation. Linux makes requests of up to 4 MiB of its own accord.
pub(super) const PIECE: u64 = 4 << 20;
/// The most bytes that are zeroed by one operation. The longest range takes few of them, and storage that must write
/// zeroes does one in a short time.
pub(super) const ZERO_PIECE: u64 = 8 << 20;
/// A run ends once it has begun so many bytes.
const RUN: u64 = 64 << 20;

/// What a request counts as while in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cost {
    #[default]
    Nothing,
    /// So many bytes transferred.
    Transfer(u64),
    /// So many bytes zeroed.
    Zeroes(u64),
    /// The same for whatever length: it is a hint, and transfers nothing.
    Discard,
}

impl Cost {
    /// The bytes that the rate limit takes for it.
    pub(super) fn limited(self) -> u64 {
        match self {
            Self::Transfer(bytes) => bytes,
            _ => 0,
        }
    }

    /// The bytes that may be zeroed.
    pub(super) fn zeroes(self) -> u64 {
        match self {
            Self::Zeroes(bytes) => bytes,
            _ => 0,
        }
    }
}

/// A queue's share of a limit, in bytes.
#[derive(Debug)]
struct Share {
    limit: u64,
    in_flight: u64,
}

impl Share {
    fn of(all: u64, queues: usize, least: u64) -> Self {
        let share = all.checked_div(queues as u64).unwrap_or(all);
        Self { limit: share.max(least), in_flight: 0 }
    }
}

/// What one queue has in flight.
#[derive(Debug)]
pub(super) struct Load {
    transfers: Share,
    zeroes: Share,
    /// A request beyond its limit is in flight.
    alone: bool,
    /// Bytes begun in this run.
    begun: u64,
}

impl Load {
    /// Of one of so many queues of a disk.
    pub(super) fn new(queues: usize) -> Self {
        Self {
            transfers: Share::of(TRANSFERS, queues, TRANSFERS_LEAST),
            zeroes: Share::of(ZEROES, queues, ZEROES_LEAST),
            alone: false,
            begun: 0,
        }
    }

    /// The share that a request takes from, and how many bytes.
    fn share(&mut self, cost: Cost) -> (&mut Share, u64) {
        match cost {
            Cost::Nothing => (&mut self.transfers, 0),
            Cost::Transfer(bytes) => (&mut self.transfers, bytes),
            Cost::Discard => {
                let bytes = self.transfers.limit >> 6;
                (&mut self.transfers, bytes)
            }
            Cost::Zeroes(bytes) => (&mut self.zeroes, bytes),
        }
    }

    /// Whether a request may be begun. `idle`: nothing is in flight.
    pub(super) fn admits(&mut self, cost: Cost, idle: bool) -> bool {
        let (share, bytes) = self.share(cost);
        let room = share.limit.saturating_sub(share.in_flight);
        !self.alone && (idle || bytes <= room)
    }

    pub(super) fn take(&mut self, cost: Cost) {
        let (share, bytes) = self.share(cost);
        share.in_flight = share.in_flight.saturating_add(bytes);
        self.alone = bytes > share.limit;
    }

    pub(super) fn give_back(&mut self, cost: Cost) {
        let (share, bytes) = self.share(cost);
        share.in_flight = share.in_flight.saturating_sub(bytes);
        self.alone &= bytes == 0;
    }

    /// Whether what is in flight is one request beyond the limit, the last one that was popped.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }

    pub(super) fn begin_run(&mut self) {
        self.begun = 0;
    }

    /// A request, or a part of it, is begun.
    pub(super) fn begin(&mut self, bytes: u64) {
        self.begun = self.begun.saturating_add(bytes);
    }

    /// Whether it is others' turn.
    pub(super) fn ends_run(&self) -> bool {
        self.begun >= RUN
    }
}
