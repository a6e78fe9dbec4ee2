//! What a queue did, for looking at.

use machine::metrics::{Counter, Histogram, Reading};
use std::sync::Arc;

/// Counters of one queue. One thread counts, others read.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: Counter,
    pub(super) read_bytes: Counter,
    /// From when a request was taken to when it was answered.
    pub(super) read_latency: Histogram,
    pub(super) writes: Counter,
    pub(super) write_bytes: Counter,
    pub(super) write_latency: Histogram,
    pub(super) flushes: Counter,
    pub(super) flush_latency: Histogram,
    pub(super) discards: Counter,
    pub(super) discard_bytes: Counter,
    pub(super) write_zeroes: Counter,
    pub(super) write_zeroes_bytes: Counter,
    pub(super) get_ids: Counter,
    /// Requests that the host failed.
    pub(super) io_errors: Counter,
    /// Those of them for lack of space.
    pub(super) no_space: Counter,
    /// Requests that make no sense or lie outside of the disk.
    pub(super) refused: Counter,
    /// Times that a rate limit was met.
    pub(super) throttled: Counter,
}

machine::inspect!(Counters {
    reads,
    read_bytes,
    read_latency,
    writes,
    write_bytes,
    write_latency,
    flushes,
    flush_latency,
    discards,
    discard_bytes,
    write_zeroes,
    write_zeroes_bytes,
    get_ids,
    io_errors,
    no_space,
    refused,
    throttled
});

impl Counters {
    /// What the queue counted and timed, for the metrics.
    pub(super) fn readings(&self) -> Vec<Reading> {
        vec![
            Reading::total("read_ops", self.reads.get()),
            Reading::latency("read_latency", [&self.read_latency]),
            Reading::total("write_ops", self.writes.get()),
            Reading::latency("write_latency", [&self.write_latency]),
            Reading::total("flush_ops", self.flushes.get()),
            Reading::latency("flush_latency", [&self.flush_latency]),
            Reading::total("io_errors", self.io_errors.get()),
            Reading::total("throttled", self.throttled.get()),
        ]
    }
}

/// What the queues of a disk counted together, for the metrics.
pub(super) fn readings(queues: &[Arc<Counters>]) -> Vec<Reading> {
    let total = |name, counter: fn(&Counters) -> &Counter| {
        let numbers = queues.iter().map(|counters| counter(counters).get());
        Reading::total(name, numbers.fold(0, u64::wrapping_add))
    };
    let latency = |name, histogram: fn(&Counters) -> &Histogram| {
        Reading::latency(name, queues.iter().map(|counters| histogram(counters)))
    };
    vec![
        total("read_ops", |counters| &counters.reads),
        total("read_bytes", |counters| &counters.read_bytes),
        latency("read_latency", |counters| &counters.read_latency),
        total("write_ops", |counters| &counters.writes),
        total("write_bytes", |counters| &counters.write_bytes),
        latency("write_latency", |counters| &counters.write_latency),
        total("flush_ops", |counters| &counters.flushes),
        latency("flush_latency", |counters| &counters.flush_latency),
        total("discard_ops", |counters| &counters.discards),
        total("discard_bytes", |counters| &counters.discard_bytes),
        total("write_zeroes_ops", |counters| &counters.write_zeroes),
        total("write_zeroes_bytes", |counters| &counters.write_zeroes_bytes),
        total("io_errors", |counters| &counters.io_errors),
        total("no_space", |counters| &counters.no_space),
        total("refused", |counters| &counters.refused),
        total("throttled", |counters| &counters.throttled),
    ]
}
