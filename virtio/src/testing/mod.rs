//! For tests and fuzzing: the driver's side of queues and of whole devices, and the conformance tests that every device
//! runs. Behind the feature `testing`. These panic on what only a broken device does.

pub mod conformance;
pub mod driver;
pub mod echo;
pub mod ring;

pub use driver::{Completion, Driver, Layout};
pub use echo::Echo;
pub use ring::{Buffer, DriverRing, Used};

use crate::queue::QueueEvents;
use machine::memory::{GuestAddress, GuestRam, Memory};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Guest RAM of `size` bytes from address 0.
///
/// # Panics
/// When the host has no memory.
pub fn memory(size: usize) -> Memory {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), size)]).expect("the host has memory for a test"))
}

/// Counts what a queue tells about itself.
#[derive(Debug, Default)]
pub struct Events {
    used: AtomicU64,
    broken: AtomicBool,
}

impl Events {
    /// How many interrupts there were.
    pub fn interrupts(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    /// Whether the queue broke.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }
}

impl QueueEvents for Events {
    fn used(&self) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }

    fn broken(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }
}
