//! Watchdog by the protocol that cloud-hypervisor's guests have a driver for: device type 35, one queue.
//!
//! The driver makes a buffer available again and again, and the device answers each with a 1. The first buffer starts the
//! watch. When none comes for 20 seconds (drivers send one every 15), the guest is taken for dead.

use machine::clock::Clock;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use virtio::chain::Chain;
use virtio::device::{ActivateError, Activation, Progress, QueueTask, VirtioDevice};
use virtio::queue::QueueError;
use virtio::service::{self, Service};

const DEVICE_TYPE: u16 = 35;
const QUEUE_SIZE: u16 = 8;
/// How long a guest may be silent, in nanoseconds.
const LIMIT_NS: u64 = 20_000_000_000;

/// What is kept while the driver's queue goes from one handler to another.
#[derive(Default)]
struct Watch {
    /// The driver has begun.
    running: AtomicBool,
    /// The guest cannot speak.
    held: AtomicBool,
    /// When a guest that was held has had all of its time again: monotonic.
    released_until_ns: AtomicU64,
    pings: AtomicU64,
    expirations: AtomicU64,
}

/// Keeps a watchdog from expiring while the guest's CPUs stand still and its workers do not.
#[derive(Clone)]
pub struct Hold(Arc<Watch>);

impl Hold {
    /// The guest cannot speak: it is not taken for dead.
    pub fn hold(&self) {
        self.0.held.store(true, Ordering::Release);
    }

    /// The guest goes on, at `now_ns` of the machine's monotonic clock, and has all of its time again.
    pub fn release(&self, now_ns: u64) {
        self.0.released_until_ns.store(now_ns.saturating_add(LIMIT_NS), Ordering::Relaxed);
        self.0.held.store(false, Ordering::Release);
    }
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

    /// What holds it.
    pub fn hold(&self) -> Hold {
        Hold(Arc::clone(&self.watch))
    }
}

impl VirtioDevice for Watchdog {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    /// A guest that was paused has all of its time again.
    fn activate(&mut self, mut activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let queue = activation.only_queue()?;
        let clock = activation.clock;
        let running = self.watch.running.load(Ordering::Relaxed);
        let deadline = running.then(|| clock.monotonic_ns().saturating_add(LIMIT_NS));
        let guard = Guard {
            clock,
            watch: Arc::clone(&self.watch),
            expired: Arc::clone(&self.expired),
            deadline_ns: deadline,
        };
        Ok(vec![service::task("watchdog", 0, queue, guard)])
    }

    fn reset(&mut self) {
        self.watch.running.store(false, Ordering::Relaxed);
    }
}

machine::inspect!(Watchdog, this => {
    enabled: this.watch.running,
    held: this.watch.held,
    reloads: this.watch.pings,
    expirations: this.watch.expirations,
});

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

/// Answers the driver, and notes when it stays silent.
struct Guard {
    clock: Arc<dyn Clock>,
    watch: Arc<Watch>,
    expired: Arc<dyn Fn() + Send + Sync>,
    /// When the guest's time is over: monotonic.
    deadline_ns: Option<u64>,
}

impl Service for Guard {
    fn answer(&mut self, request: &Chain) -> Result<u32, QueueError> {
        if request.write_at(0, &[1]) == 0 {
            return Err(QueueError::Request("to the watchdog has no room for an answer"));
        }
        self.deadline_ns = Some(self.clock.monotonic_ns().saturating_add(LIMIT_NS));
        self.watch.running.store(true, Ordering::Relaxed);
        self.watch.pings.fetch_add(1, Ordering::Relaxed);
        Ok(1)
    }

    fn rest(&mut self) -> Progress {
        let Some(deadline) = self.deadline_ns else { return Progress::Idle };
        let now = self.clock.monotonic_ns();
        // Whoever releases the guest says until when before it lets go.
        let excused = if self.watch.held.load(Ordering::Acquire) {
            now.saturating_add(LIMIT_NS)
        } else {
            self.watch.released_until_ns.load(Ordering::Relaxed)
        };
        let deadline = if now < deadline { deadline } else { deadline.max(excused) };
        if now < deadline {
            self.deadline_ns = Some(deadline);
            return Progress::Until(deadline);
        }
        self.deadline_ns = None;
        self.watch.running.store(false, Ordering::Relaxed);
        self.watch.expirations.fetch_add(1, Ordering::Relaxed);
        (self.expired)();
        Progress::Idle
    }
}

machine::inspect!(Guard { deadline_ns });

#[cfg(test)]
mod tests;
