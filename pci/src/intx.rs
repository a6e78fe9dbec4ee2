//! The legacy interrupt pin (PCIe 6.0, 6.1.2): a level-triggered line that the driver may disable, and that
//! falls silent while MSI or MSI-X is enabled.

use machine::interrupt::InterruptLine;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A function's interrupt pin, settable from any thread without a lock. Clones are the same pin.
#[derive(Clone, Debug)]
pub struct Intx(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    line: InterruptLine,
    asserted: AtomicBool,
    blocked: AtomicBool,
}

impl Intx {
    /// A pin that drives `line`, not asserted.
    pub fn new(line: InterruptLine) -> Self {
        Self(Arc::new(Shared { line, asserted: AtomicBool::new(false), blocked: AtomicBool::new(false) }))
    }

    /// Asserts the pin, or no longer. What reaches the line depends on the driver having left it enabled.
    pub fn set(&self, asserted: bool) {
        self.0.asserted.store(asserted, Ordering::SeqCst);
        self.drive();
    }

    /// Whether the function asserts the pin: the interrupt status bit, which a disabled pin has too.
    pub fn asserted(&self) -> bool {
        self.0.asserted.load(Ordering::SeqCst)
    }

    /// The pin's global system interrupt number.
    pub fn gsi(&self) -> u32 {
        self.0.line.gsi()
    }

    /// Keeps the pin from the line: the interrupt disable bit, or MSI or MSI-X being enabled.
    pub(crate) fn block(&self, blocked: bool) {
        self.0.blocked.store(blocked, Ordering::SeqCst);
        self.drive();
    }

    /// Sets the line to what it should be. Two threads may each have changed one of the flags, so the one that
    /// sets the line last must be one that saw both: each looks again after setting it.
    fn drive(&self) {
        let wanted = || self.asserted() && !self.0.blocked.load(Ordering::SeqCst);
        let mut level = wanted();
        loop {
            self.0.line.set(level);
            let now = wanted();
            if now == level {
                return;
            }
            level = now;
        }
    }
}
