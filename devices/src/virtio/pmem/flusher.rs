//! The thread that flushes, one flush at a time.

use super::Flush;
use machine::doorbell::Doorbell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Gives orders to the thread, which ends with this once it has carried out the last of them.
pub(super) struct Flusher {
    orders: Sender<()>,
    results: Receiver<io::Result<()>>,
    bell: Doorbell,
}

impl Flusher {
    /// Starts the thread, which calls `thread_start` first.
    pub(super) fn start(flush: Arc<dyn Flush>, thread_start: fn()) -> io::Result<Self> {
        let bell = Doorbell::new()?;
        let (orders, ordered) = channel::<()>();
        let (finished, results) = channel();
        let ring = bell.clone();
        std::thread::Builder::new().name("pmem-flush".into()).stack_size(128 << 10).spawn(move || {
            thread_start();
            while ordered.recv().is_ok() {
                // When nobody waits for the result any more, the next order will not come either.
                let _ = finished.send(flush.flush());
                ring.ring();
            }
        })?;
        Ok(Self { orders, results, bell })
    }

    /// Has all that is written now made stable.
    pub(super) fn begin(&self) {
        // The thread is there as long as this.
        let _ = self.orders.send(());
    }

    /// How the flush that was begun ended, if it has.
    pub(super) fn finished(&self) -> Option<io::Result<()>> {
        self.bell.take();
        self.results.try_recv().ok()
    }

    /// Readable when a flush has ended.
    pub(super) fn descriptor(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}
