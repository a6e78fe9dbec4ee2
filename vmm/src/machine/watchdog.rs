//! The guest's watchdog: when it is looked at, and what is done when the guest was silent for too long.

use super::pci_bus::PciBus;
use super::{Ended, Machine};
use crate::config::{VmConfig, WatchdogAction};
use anyhow::{Context, Result};
use devices::watchdog::Watchdog;
use machine::clock::Clock;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A machine's watchdog.
pub struct GuestWatchdog {
    device: Arc<Mutex<Watchdog>>,
    clock: Arc<dyn Clock>,
    action: WatchdogAction,
}

impl GuestWatchdog {
    /// Adds the watchdog that `config` asks for, if it does.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn add(config: &VmConfig, clock: &Arc<dyn Clock>, pci: &mut PciBus) -> Result<Option<Self>> {
        if !config.watchdog {
            return Ok(None);
        }
        let device = Watchdog::new(Arc::clone(clock)).context("--watchdog")?;
        let device = Arc::new(Mutex::new(device));
        pci.add_function("__watchdog", 0, device.clone()).context("--watchdog")?;
        Ok(Some(Self { device, clock: Arc::clone(clock), action: config.watchdog_action }))
    }

    fn device(&self) -> MutexGuard<'_, Watchdog> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it is to be looked at.
    pub fn deadline(&self) -> Option<Instant> {
        let left = self.device().deadline()?.saturating_sub(self.clock.monotonic_ns());
        Instant::now().checked_add(Duration::from_nanos(left))
    }

    /// Time does not pass for it.
    pub fn pause(&self) {
        self.device().pause();
    }

    /// Time passes again.
    pub fn resume(&self) {
        self.device().resume();
    }
}

impl Machine {
    /// Looks at the watchdog, and does what is to be done when the guest was silent for too long.
    ///
    /// # Errors
    /// When the host fails the machine.
    pub(super) fn look_at_watchdog(&mut self) -> Result<Option<Ended>> {
        let Some(watchdog) = &self.watchdog else { return Ok(None) };
        if self.busy() || self.paused() || !watchdog.device().look() {
            return Ok(None);
        }
        let action = watchdog.action;
        tracing::warn!(?action, "the guest's watchdog was not reloaded in time");
        self.events.emit_with("guest", "watchdog", [("action", action.name().into())]);
        match action {
            WatchdogAction::Reset => self.reset(None),
            WatchdogAction::Poweroff => Ok(self.end(Ended::PoweredOff)),
            WatchdogAction::Pause => self.pause(Box::new(drop)),
            WatchdogAction::None => Ok(None),
        }
    }
}
