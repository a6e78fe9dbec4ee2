//! What a queue did.

use machine::metrics::{Counter, Reading};

/// Counters of one queue, over all times it was set up. Whoever runs the queue counts.
#[derive(Debug, Default)]
pub struct QueueCounters {
    /// Chains taken from the driver.
    pub popped: Counter,
    /// Chains given back.
    pub used: Counter,
    /// Bytes that the device could read of those.
    pub read_bytes: Counter,
    /// Bytes that it wrote to those.
    pub written_bytes: Counter,
    /// Interrupts sent.
    pub interrupts: Counter,
    /// Times that the driver wanted none.
    pub interrupts_suppressed: Counter,
    /// Times that the driver's ring made no sense.
    pub errors: Counter,
}

machine::inspect!(QueueCounters {
    popped,
    used,
    read_bytes,
    written_bytes,
    interrupts,
    interrupts_suppressed,
    errors
});

impl QueueCounters {
    /// For the metrics.
    pub fn readings(&self) -> Vec<Reading> {
        vec![
            Reading::total("requests", self.used.get()),
            Reading::total("read_bytes", self.read_bytes.get()),
            Reading::total("written_bytes", self.written_bytes.get()),
            Reading::total("interrupts", self.interrupts.get()),
            Reading::total("interrupts_suppressed", self.interrupts_suppressed.get()),
            Reading::total("errors", self.errors.get()),
        ]
    }
}
