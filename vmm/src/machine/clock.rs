//! The guest's clock: when it wants to be looked at, so that its alarms ring.

use super::Machine;
use std::time::{Duration, Instant};

impl Machine {
    /// When the clock is to be looked at. While the machine stands still or comes to rest, it waits.
    pub(super) fn clock_deadline(&self) -> Option<Instant> {
        if !self.runs() {
            return None;
        }
        let left = self.platform.clock_deadline()?.saturating_sub(self.clock.monotonic_ns());
        Instant::now().checked_add(Duration::from_nanos(left))
    }

    /// Raises the clock's interrupt if it is due.
    pub(super) fn look_at_clock(&self) {
        if self.runs() {
            self.platform.look_at_clock();
        }
    }
}
