//! What a PCI function is to the root complex, whatever is behind it.

use crate::config::ConfigSpace;
use machine::doorbell::DoorbellAddress;
use machine::effect::DeviceChange;
use machine::inspect::Inspect;
use machine::state::Saved;
use std::sync::{Arc, Mutex};

/// A PCI function: configuration space, register windows (BARs), and what the guest does to them.
///
/// Methods never block. What should change outside is returned, see [`DeviceChange`].
pub trait Function: Send + Inspect + Saved {
    /// The configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The configuration space, for the root complex (to place BARs) and the default methods.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// The guest reads configuration space: 1, 2 or 4 bytes at `offset`, not crossing a dword.
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The guest writes configuration space: 1, 2 or 4 bytes at `offset`, not crossing a dword.
    fn config_write(&mut self, offset: u16, data: &[u8]) -> Option<DeviceChange> {
        self.config_mut().write(offset, data)
    }

    /// The guest reads 1 to 8 bytes at `offset` in the window of BAR `bar` (0 to 5, 6 for the expansion ROM).
    /// `data` is all ones on entry.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// The guest writes 1 to 8 bytes at `offset` in the window of BAR `bar`.
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) -> Option<DeviceChange>;

    /// The doorbells in BAR `bar`, to be attached while the BAR is mapped.
    fn doorbells(&self, bar: u8) -> Vec<DoorbellAddress> {
        let _ = bar;
        Vec::new()
    }

    /// Back to the state at power-on, with BARs where they are. No worker runs for the function any more.
    fn reset(&mut self);
}

/// A function as the root complex and its register windows hold it; the lock is its register lock.
pub type FunctionHandle = Arc<Mutex<dyn Function>>;
