//! A BAR's window on the memory or I/O bus.

use crate::function::FunctionHandle;
use machine::bus::BusDevice;
use machine::effect::{Effect, FunctionAddress};
use std::sync::PoisonError;

/// Passes accesses in a window on to the function whose BAR it is.
pub struct BarWindow {
    function: FunctionHandle,
    address: FunctionAddress,
    bar: u8,
}

impl BarWindow {
    /// The window of BAR `bar` of the function at `address`.
    pub fn new(function: FunctionHandle, address: FunctionAddress, bar: u8) -> Self {
        Self { function, address, bar }
    }
}

impl BusDevice for BarWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let mut function = self.function.lock().unwrap_or_else(PoisonError::into_inner);
        function.bar_read(self.bar, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let mut function = self.function.lock().unwrap_or_else(PoisonError::into_inner);
        let change = function.bar_write(self.bar, offset, data)?;
        Some(Effect::Function(self.address, change))
    }
}
