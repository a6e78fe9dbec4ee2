//! Watchdog by the protocol that cloud-hypervisor's guests have a driver for: device type 35, one queue.
//!
//! The driver makes a buffer available again and again, and the device answers each with a 1. The first buffer starts the
//! watch. When none comes for 20 seconds (drivers send one every 15), the guest is taken for dead.

use machine::clock::Clock;
use machine::inspect::{Inspect, Value, json};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use virtio::chain::Chain;
use virtio::device::{ActivateError, Activation, Progress, QueueHandler, QueueTask, VirtioDevice};
use virtio::queue::{Queue, QueueError};

const DEVICE_TYPE: u16 = 35;
const QUEUE_SIZE: u16 = 8;
/// How long a guest may be silent, in nanoseconds.
const LIMIT_NS: u64 = 20_000_000_000;
/// How many buffers one run answers at most.
const BUDGET: u32 = 16;

/// What is kept while the driver's queue goes from one handler to another.
#[derive(Default)]
struct Watch {
    /// The driver has begun.
    running: AtomicBool,
    pings: AtomicU64,
    expirations: AtomicU64,
}

/// The device.
pub struct Watchdog {
    watch: Arc<Watch>,
    expired: Arc<dyn Fn() + Send + Sync>,
}

impl Watchdog {
    /// A watchdog that calls `expired`, which must not block, when the guest was silent for too long. Then it rests until the
    /// guest speaks again.
    pub fn new(expired: impl Fn() + Send + Sync + 'static) -> Self {
        Self { watch: Arc::default(), expired: Arc::new(expired) }
    }
}

impl VirtioDevice for Watchdog {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config_read(&self, _offset: u64, _data: &mut [u8]) {}

    /// A guest that was paused has all of its time again.
    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let Some((0, queue)) = activation.queues.into_iter().next() else {
            return Err(ActivateError::QueueMissing(0));
        };
        let clock = activation.clock;
        let running = self.watch.running.load(Ordering::Relaxed);
        let deadline = running.then(|| clock.monotonic_ns().saturating_add(LIMIT_NS));
        let handler = Handler {
            queue,
            clock,
            watch: Arc::clone(&self.watch),
            expired: Arc::clone(&self.expired),
            deadline,
            chain: Chain::new(),
        };
        Ok(vec![QueueTask { name: "watchdog".to_owned(), queues: vec![0], handler: Box::new(handler) }])
    }

    fn reset(&mut self) {
        self.watch.running.store(false, Ordering::Relaxed);
    }
}

impl Inspect for Watchdog {
    fn inspect(&self) -> Value {
        let Watch { running, pings, expirations } = &*self.watch;
        json!({
            "enabled": running.load(Ordering::Relaxed),
            "reloads": pings.load(Ordering::Relaxed),
            "expirations": expirations.load(Ordering::Relaxed),
        })
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedWatchdog {
    running: bool,
}

impl SavedFields for SavedWatchdog {
    const KIND: &'static str = "virtio-watchdog";
    const VERSION: u32 = 1;
}

impl Saved for Watchdog {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedWatchdog { running: self.watch.running.load(Ordering::Relaxed) })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedWatchdog = state.read()?;
        self.watch.running.store(saved.running, Ordering::Relaxed);
        Ok(())
    }
}

struct Handler {
    queue: Queue,
    clock: Arc<dyn Clock>,
    watch: Arc<Watch>,
    expired: Arc<dyn Fn() + Send + Sync>,
    /// When the guest's time is over: monotonic, in nanoseconds.
    deadline: Option<u64>,
    chain: Chain,
}

impl Handler {
    /// Answers the driver. `true`: there may be more.
    fn answer(&mut self) -> bool {
        for _ in 0..BUDGET {
            // A broken queue has told the driver already.
            let Ok(true) = self.queue.pop(&mut self.chain) else { return false };
            if self.chain.write_at(0, &[1]) == 0 {
                self.queue.fail(QueueError::Request("to the watchdog has no room for an answer"));
                return false;
            }
            self.deadline = Some(self.clock.monotonic_ns().saturating_add(LIMIT_NS));
            self.watch.running.store(true, Ordering::Relaxed);
            self.watch.pings.fetch_add(1, Ordering::Relaxed);
            self.queue.push(self.chain.token(), 1);
        }
        true
    }
}

impl QueueHandler for Handler {
    fn run(&mut self) -> Progress {
        self.queue.disable_notifications();
        let more = self.answer();
        self.queue.notify();
        match self.deadline {
            _ if more => Progress::More,
            None => Progress::Idle,
            Some(deadline) if self.clock.monotonic_ns() < deadline => Progress::Until(deadline),
            Some(_) => {
                self.deadline = None;
                self.watch.running.store(false, Ordering::Relaxed);
                self.watch.expirations.fetch_add(1, Ordering::Relaxed);
                (self.expired)();
                Progress::Idle
            }
        }
    }

    fn arm(&mut self) -> bool {
        self.queue.enable_notifications()
    }

    fn has_work(&self) -> bool {
        self.queue.has_available()
    }

    fn quiesce(&mut self) -> bool {
        true
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        vec![self.queue]
    }
}

impl Inspect for Handler {
    fn inspect(&self) -> Value {
        json!({ "deadline_ns": self.deadline })
    }
}

#[cfg(test)]
mod tests;
