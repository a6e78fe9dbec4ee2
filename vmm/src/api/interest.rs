//! Whether anybody waits for a call's answer. A call that nobody waits for any more, and whose turn has not come, is not made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether whoever made a call waits for its answer. Clones are of the same call.
#[derive(Clone, Debug, Default)]
pub struct Interest(Arc<AtomicBool>);

/// Takes the interest away when it is dropped: whoever waits for an answer has it.
#[derive(Debug)]
pub struct Waits(Interest);

impl Interest {
    /// Held by the one who waits.
    pub fn waits(&self) -> Waits {
        Waits(self.clone())
    }

    /// Nobody waits any more.
    pub fn lose(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether nobody waits any more.
    pub fn is_lost(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether both are of the same call.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.lose();
    }
}
