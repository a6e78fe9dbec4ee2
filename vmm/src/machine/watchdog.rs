//! The guest's watchdogs: when they are looked at, and what is done when the guest was silent for too long.

use super::pci_bus::PciBus;
use super::{Ended, Machine, platform, registry};
use crate::config::{VmConfig, WatchdogAction, WatchdogModel};
use crate::message::{Mailbox, Message};
use anyhow::{Context, Result, ensure};
use devices::virtio::watchdog::{Hold, Watchdog as VirtioWatchdog};
use devices::watchdog::Watchdog;
use machine::clock::Clock;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use virtio::pci_transport;

/// A machine's watchdogs.
pub struct GuestWatchdog {
    /// Intel's, which is looked at. That of virtio tells by itself.
    device: Option<Arc<Mutex<Watchdog>>>,
    /// Holds that of virtio.
    hold: Option<Hold>,
    clock: Arc<dyn Clock>,
    action: WatchdogAction,
    mailbox: Mailbox,
    /// What was told while the guest came to rest or stood still, and waits until it goes on.
    late: bool,
}

impl GuestWatchdog {
    /// Adds the watchdogs that `config` asks for, if it does.
    ///
    /// # Errors
    /// When there is no room for them, or their action is one that CPUs do not have.
    pub fn add(
        config: &VmConfig,
        clock: &Arc<dyn Clock>,
        mailbox: &Mailbox,
        pci: &mut PciBus,
    ) -> Result<Option<Self>> {
        if !config.watchdog {
            return Ok(None);
        }
        ensure!(
            config.watchdog_action != WatchdogAction::InjectNmi || platform::RAISE_NMI.is_some(),
            "--watchdog action=inject-nmi: CPUs of this architecture have no non-maskable interrupt that the host can raise; use \
             action=reset, poweroff, pause or none"
        );
        let mut device = None;
        if config.watchdog_model != WatchdogModel::Virtio {
            let intel = Watchdog::new(Arc::clone(clock)).context("--watchdog")?;
            let intel = Arc::new(Mutex::new(intel));
            pci.add_function("__watchdog", 0, intel.clone()).context("--watchdog")?;
            device = Some(intel);
        }
        let mut hold = None;
        if config.watchdog_model != WatchdogModel::I6300esb {
            let told = mailbox.clone();
            let device = VirtioWatchdog::new(move || told.post(Message::WatchdogExpired));
            hold = Some(device.hold());
            let (transport, workers) = (pci_transport::Options::default(), registry::worker_options());
            pci.add_virtio("__watchdog_virtio", 0, Box::new(device), transport, workers)
                .context("--watchdog")?;
        }
        let (action, mailbox) = (config.watchdog_action, mailbox.clone());
        Ok(Some(Self { device, hold, clock: Arc::clone(clock), action, mailbox, late: false }))
    }

    fn device(&self) -> Option<MutexGuard<'_, Watchdog>> {
        let device = self.device.as_ref()?;
        Some(device.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When it is to be looked at.
    pub fn deadline(&self) -> Option<Instant> {
        let left = self.device()?.deadline()?.saturating_sub(self.clock.monotonic_ns());
        Instant::now().checked_add(Duration::from_nanos(left))
    }

    /// Time does not pass for it.
    pub fn pause(&self) {
        if let Some(mut device) = self.device() {
            device.pause();
        }
        if let Some(hold) = &self.hold {
            hold.hold();
        }
    }

    /// Time passes again.
    pub fn resume(&mut self) {
        if let Some(mut device) = self.device() {
            device.resume();
        }
        if let Some(hold) = &self.hold {
            hold.release(self.clock.monotonic_ns());
        }
        if std::mem::take(&mut self.late) {
            self.mailbox.post(Message::WatchdogExpired);
        }
    }

    /// The guest begins anew: what was told of it before is void.
    pub fn forget(&mut self) {
        self.late = false;
    }
}

impl Machine {
    /// Time does not pass for the watchdog: the guest stands still.
    pub(super) fn hold_watchdog(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.pause();
        }
    }

    /// Time passes for the watchdog again, if the guest neither is paused nor stands still for a debugger.
    pub(super) fn release_watchdog(&mut self) {
        let still = self.paused() || self.stopped_by_debugger();
        if let Some(watchdog) = self.watchdog.as_mut().filter(|_| !still) {
            watchdog.resume();
        }
    }

    /// Looks at the watchdog, and does what is to be done when the guest was silent for too long.
    ///
    /// # Errors
    /// When the host fails the machine.
    pub(super) fn look_at_watchdog(&mut self) -> Result<Option<Ended>> {
        let Some(watchdog) = &self.watchdog else { return Ok(None) };
        if !self.runs()
            || self.stopped_by_debugger()
            || !watchdog.device().is_some_and(|mut device| device.look())
        {
            return Ok(None);
        }
        self.watchdog_expired()
    }

    /// Does what is to be done when the guest was silent for too long.
    ///
    /// # Errors
    /// When the host fails the machine.
    pub(super) fn watchdog_expired(&mut self) -> Result<Option<Ended>> {
        let still = !self.runs() || self.stopped_by_debugger();
        let resetting = self.resetting();
        let Some(watchdog) = &mut self.watchdog else { return Ok(None) };
        if still {
            watchdog.late = !resetting;
            return Ok(None);
        }
        let action = watchdog.action;
        tracing::warn!(?action, "the guest's watchdog was not reloaded in time");
        self.events.emit_for_guest("guest", "watchdog", [("action", action.name().into())]);
        match action {
            WatchdogAction::Reset => self.reset(None),
            WatchdogAction::Poweroff => Ok(self.end(Ended::PoweredOff)),
            WatchdogAction::Pause => self.pause(Box::new(drop)),
            WatchdogAction::None => Ok(None),
            WatchdogAction::InjectNmi => {
                if let Err(error) = self.nmi() {
                    tracing::error!("the guest's watchdog could not raise an NMI: {}", error.message);
                }
                Ok(None)
            }
        }
    }
}
