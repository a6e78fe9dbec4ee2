//! What a queue did.

use machine::inspect::json;
use machine::metrics::{Counter, Histogram, Latency, Reading};
use std::sync::Arc;

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
    /// How long requests took from when the device took them off the ring to when the driver was told of their answers. All that were
    /// taken together count from the first of them. The time that a buffer waited in the device for something to put into it is
    /// left out. `None`: the device times its requests itself.
    pub latency: Option<Arc<Histogram>>,
}

machine::inspect!(QueueCounters, this => {
    popped,
    used,
    read_bytes,
    written_bytes,
    interrupts,
    interrupts_suppressed,
    errors,
    ..this.latency.as_ref().map(|latency| json!({ "latency": Latency::of([&**latency]).value() })),
});

impl QueueCounters {
    /// Of a queue whose requests are timed here.
    pub fn timed() -> Self {
        Self { latency: Some(Arc::default()), ..Self::default() }
    }

    /// For the metrics.
    pub fn readings(&self) -> Vec<Reading> {
        let mut readings = vec![
            Reading::total("requests", self.used.get()),
            Reading::total("read_bytes", self.read_bytes.get()),
            Reading::total("written_bytes", self.written_bytes.get()),
            Reading::total("interrupts", self.interrupts.get()),
            Reading::total("interrupts_suppressed", self.interrupts_suppressed.get()),
            Reading::total("errors", self.errors.get()),
        ];
        readings.extend(self.latency.iter().map(|latency| Reading::latency("latency", [&**latency])));
        readings
    }
}
