//! How long requests take.

use machine::clock::Clock;
use machine::metrics::Histogram;
use std::sync::Arc;

/// Times the requests of a queue, from when the device takes them off the ring to when the driver has been told of their answers.
///
/// The clock is read for each batch and not for each request, which would cost more than some requests do. A batch begins with the
/// first request that is taken after the driver was last told, and all of it is timed from there. Requests of several batches may be
/// in flight, so each remembers when its own began.
pub(super) struct Timing {
    latency: Arc<Histogram>,
    clock: Arc<dyn Clock>,
    /// When this batch began, if it has.
    begun: Option<u64>,
    /// How many answered requests the driver has not been told of, and when the batch that they were taken in began.
    answered: u64,
    taken: u64,
}

impl Timing {
    pub(super) fn new(latency: Arc<Histogram>, clock: Arc<dyn Clock>) -> Self {
        Self { latency, clock, begun: None, answered: 0, taken: 0 }
    }

    /// A batch begins: what is taken from now on is timed from `now`.
    #[inline]
    pub(super) fn begin(&mut self, now: u64) {
        self.begun = Some(now);
    }

    /// A request is taken. Returns when its batch began.
    #[inline]
    pub(super) fn take(&mut self) -> u64 {
        match self.begun {
            Some(begun) => begun,
            None => *self.begun.insert(self.clock.interval_ns()),
        }
    }

    /// A request is answered whose batch began at `taken`.
    #[inline]
    pub(super) fn answer(&mut self, taken: u64) {
        if taken != self.taken {
            // Of two batches in one, the first is recorded a little early: the driver is told soon.
            self.record();
            self.taken = taken;
        }
        self.answered = self.answered.wrapping_add(1);
    }

    /// The driver has been told of all answers. The next request begins a new batch.
    #[inline]
    pub(super) fn told(&mut self) {
        self.begun = None;
        self.record();
    }

    #[inline]
    fn record(&mut self) {
        let answered = std::mem::take(&mut self.answered);
        if answered > 0 {
            let took = self.clock.interval_ns().saturating_sub(self.taken);
            self.latency.record_many(took, answered);
        }
    }
}
