//! The cache mode, and what a change of it leaves to be done.
//!
//! A driver that turns the write-back cache off sends no flush any more (Linux: `cache_type`), and nothing makes it look at
//! the mode again (virtio 1.2, 5.2.5 and 5.2.6). So the device makes stable what it was given before. Until that has
//! succeeded, no further write is answered as stable: each ends with a flush of its own, and fails if that fails.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The cache mode of a disk, for all of its queues.
#[derive(Debug)]
pub(super) struct Cache {
    write_back: AtomicBool,
    /// How often write-back mode was turned off.
    turned_off: AtomicU64,
    /// Up to which of these times a flush was begun, and up to which one has succeeded.
    tried: AtomicU64,
    settled: AtomicU64,
}

impl Cache {
    pub(super) fn new(write_back: bool) -> Self {
        Self {
            write_back: AtomicBool::new(write_back),
            turned_off: AtomicU64::new(0),
            tried: AtomicU64::new(0),
            settled: AtomicU64::new(0),
        }
    }

    /// Whether writes may be answered before they are stable.
    pub(super) fn write_back(&self) -> bool {
        self.write_back.load(Ordering::SeqCst)
    }

    /// Changes the mode. If that turns write-back mode off, `ring` is called, and then [`Self::to_settle`] says so: who wakes up
    /// too early for it finds the bell still rung.
    pub(super) fn set(&self, write_back: bool, ring: impl FnOnce()) {
        // Writes that end after the swap are stable, those that ended before are found by a flush begun after the count.
        if self.write_back.swap(write_back, Ordering::SeqCst) && !write_back {
            ring();
            self.turned_off.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Whether something written in write-back mode is to be made stable and no flush was begun for it.
    pub(super) fn to_settle(&self) -> bool {
        self.tried.load(Ordering::SeqCst) < self.turned_off.load(Ordering::SeqCst)
    }

    /// Takes up what [`Self::to_settle`] says: `true` for one of the queues that ask.
    pub(super) fn take_to_settle(&self) -> bool {
        let turned_off = self.flush_begins();
        self.tried.fetch_max(turned_off, Ordering::SeqCst) < turned_off
    }

    /// Whether something written in write-back mode was not made stable when that was turned off.
    pub(super) fn unsettled(&self) -> bool {
        self.settled.load(Ordering::SeqCst) < self.turned_off.load(Ordering::SeqCst)
    }

    /// A flush begins: what to call [`Self::flushed`] with if it succeeds.
    pub(super) fn flush_begins(&self) -> u64 {
        self.turned_off.load(Ordering::SeqCst)
    }

    /// A flush succeeded.
    pub(super) fn flushed(&self, begun: u64) {
        self.settled.fetch_max(begun, Ordering::SeqCst);
    }

    /// Takes on a saved mode, of a device that no queue uses.
    pub(super) fn restore(&self, write_back: bool, unsettled: bool) {
        self.write_back.store(write_back, Ordering::SeqCst);
        let turned_off = self.turned_off.load(Ordering::SeqCst);
        self.tried.store(turned_off, Ordering::SeqCst);
        self.settled.store(turned_off, Ordering::SeqCst);
        self.turned_off.fetch_add(u64::from(unsettled), Ordering::SeqCst);
    }
}
