//! How much a queue has the host do at once.
//!
//! A pause, a reset and a removal wait for what was begun, and a worker looks at them between two runs of a handler. A driver
//! can ask for 4 GiB with each request, and for 8 GiB of zeroes: what is begun is therefore limited by its bytes. Long
//! transfers are made in pieces. A request beyond the limit is begun alone, when nothing else is in flight, so that it can
//! be put back into the ring between two of its parts, and begun anew later: reading, writing and zeroing can be repeated.
//! It is then begun from its start, also by the same handler, since a saved queue has no place for how far it came; what
//! the rate limit took for it is given back before. A machine that is paused again and again has to run in between for as
//! long as such a request takes.

/// Bytes that all queues of a disk have in flight, each the same share: what slow storage does in a few seconds.
const IN_FLIGHT: u64 = 256 << 20;
/// The least that one queue may have in flight.
const IN_FLIGHT_LEAST: u64 = 32 << 20;
/// The most bytes that are transferred by one operation. Linux makes requests of up to 4 MiB of its own accord.
pub(super) const PIECE: u64 = 4 << 20;
/// A run ends once it has begun so many bytes.
const RUN: u64 = 64 << 20;

/// What one queue has in flight, in bytes.
#[derive(Debug)]
pub(super) struct Load {
    limit: u64,
    in_flight: u64,
    /// A request beyond the limit is in flight.
    alone: bool,
    /// Bytes begun in this run.
    begun: u64,
}

impl Load {
    /// Of one of so many queues of a disk.
    pub(super) fn new(queues: usize) -> Self {
        let share = IN_FLIGHT.checked_div(queues as u64).unwrap_or(IN_FLIGHT);
        Self { limit: share.max(IN_FLIGHT_LEAST), in_flight: 0, alone: false, begun: 0 }
    }

    /// What a request to discard counts as, of whatever length: it is a hint, and transfers nothing.
    pub(super) fn discard(&self) -> u64 {
        self.limit >> 6
    }

    /// Whether a request of `cost` bytes may be begun. `idle`: nothing is in flight.
    pub(super) fn admits(&self, cost: u64, idle: bool) -> bool {
        !self.alone && (idle || cost <= self.limit.saturating_sub(self.in_flight))
    }

    pub(super) fn take(&mut self, cost: u64) {
        self.in_flight = self.in_flight.saturating_add(cost);
        self.alone = cost > self.limit;
    }

    pub(super) fn give_back(&mut self, cost: u64) {
        self.in_flight = self.in_flight.saturating_sub(cost);
        self.alone &= cost == 0;
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
