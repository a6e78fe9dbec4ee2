//! What a queue did, for looking at.

use machine::inspect::{Inspect, Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one queue. One thread counts, others read.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: Counter,
    pub(super) read_bytes: Counter,
    pub(super) writes: Counter,
    pub(super) write_bytes: Counter,
    pub(super) flushes: Counter,
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

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds, by the one thread that does. Returns the sum.
    pub(super) fn add(&self, number: u64) -> u64 {
        // Not an atomic addition, which would cost more: there is one writer.
        let sum = self.get().wrapping_add(number);
        self.0.store(sum, Ordering::Relaxed);
        sum
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Inspect for Counters {
    fn inspect(&self) -> Value {
        json!({
            "reads": self.reads.get(),
            "read_bytes": self.read_bytes.get(),
            "writes": self.writes.get(),
            "write_bytes": self.write_bytes.get(),
            "flushes": self.flushes.get(),
            "discards": self.discards.get(),
            "discard_bytes": self.discard_bytes.get(),
            "write_zeroes": self.write_zeroes.get(),
            "write_zeroes_bytes": self.write_zeroes_bytes.get(),
            "get_ids": self.get_ids.get(),
            "io_errors": self.io_errors.get(),
            "no_space": self.no_space.get(),
            "refused": self.refused.get(),
            "throttled": self.throttled.get(),
        })
    }
}
