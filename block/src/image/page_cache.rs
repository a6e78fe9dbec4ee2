//! What the host's page cache lost.
//!
//! When the kernel cannot write back what is in its cache, it drops it, and tells the next sync: once, whoever makes it. A
//! sync after that succeeds although the data is gone. So that no driver is told so, an image on which a sync failed fails
//! all further ones until it is opened again. Direct I/O leaves nothing in the cache, and its failures say nothing of
//! other requests.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Remembers whether writes were lost.
#[derive(Debug, Default)]
pub(crate) struct PageCache {
    lost: AtomicBool,
}

impl PageCache {
    /// What a sync that went so far comes to.
    pub(crate) fn synced(&self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = result {
            if !self.lost.swap(true, Ordering::SeqCst) {
                tracing::error!(
                    "the host lost what was written to a file of a disk or of persistent memory, whose flushes fail from now on: {error}"
                );
            }
            return Err(error);
        }
        if self.lost() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    /// Whether writes were lost.
    pub(crate) fn lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }
}
