//! The guest's watchdogs: when they are looked at, and what is done when the guest was silent for too long.
//!
//! One that is removed is neither looked at nor heard any more, whether or not it ran.

use super::control::Control;
use super::{Ended, Machine};
use crate::config::WatchdogAction;
use crate::message::Message;
use devices::virtio::watchdog::Hold;
use devices::watchdog::Watchdog;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

impl Machine {
    /// Those that are looked at, by their names.
    fn watchdogs(&self) -> impl Iterator<Item = (&str, MutexGuard<'_, Watchdog>)> {
        self.pci.controls().filter_map(|(id, control)| match control {
            Control::Watchdog(device) => Some((id, device.lock().unwrap_or_else(PoisonError::into_inner))),
            _ => None,
        })
    }

    /// What holds those that tell by themselves.
    fn holds(&self) -> impl Iterator<Item = &Hold> {
        self.pci.controls().filter_map(|(_, control)| match control {
            Control::VirtioWatchdog(hold) => Some(hold),
            _ => None,
        })
    }

    /// When they are to be looked at.
    pub(super) fn watchdog_deadline(&self) -> Option<Instant> {
        let first = self.watchdogs().filter_map(|(_, device)| device.deadline()).min()?;
        let left = first.saturating_sub(self.clock.monotonic_ns());
        Instant::now().checked_add(Duration::from_nanos(left))
    }

    /// Time does not pass for watchdogs: the guest stands still.
    pub(super) fn hold_watchdog(&self) {
        self.watchdogs().for_each(|(_, mut device)| device.pause());
        self.holds().for_each(Hold::hold);
    }

    /// Time passes for watchdogs again, if the guest neither is paused nor stands still for a debugger.
    pub(super) fn release_watchdog(&mut self) {
        if self.paused() || self.stopped_by_debugger() {
            return;
        }
        self.watchdogs().for_each(|(_, mut device)| device.resume());
        let now = self.clock.monotonic_ns();
        self.holds().for_each(|hold| hold.release(now));
        for id in std::mem::take(&mut self.watchdogs_told) {
            self.mailbox.post(Message::WatchdogExpired(id));
        }
    }

    /// Looks at watchdogs, and does what is to be done when the guest was silent for too long.
    pub(super) fn look_at_watchdog(&mut self) -> Option<Ended> {
        if !self.runs() || self.stopped_by_debugger() {
            return None;
        }
        let expired = self.watchdogs().filter_map(|(id, mut device)| device.look().then(|| id.to_owned()));
        expired.collect::<Vec<_>>().iter().find_map(|id| self.watchdog_expired(id))
    }

    /// Does what is to be done when the guest was silent for too long for the watchdog named `id`.
    pub(super) fn watchdog_expired(&mut self, id: &str) -> Option<Ended> {
        // One that is gone is not heard.
        let watchdog = self.config.watchdog.iter().find(|watchdog| watchdog.id.as_deref() == Some(id));
        let action = watchdog.map(|watchdog| watchdog.action)?;
        if !self.runs() || self.stopped_by_debugger() {
            if !self.resetting() {
                self.watchdogs_told.insert(id.to_owned());
            }
            return None;
        }
        tracing::warn!(id, ?action, "the guest's watchdog was not reloaded in time");
        let properties = [("id", id.into()), ("action", action.name().into())];
        self.events.emit_for_guest("guest", "watchdog", properties);
        match action {
            WatchdogAction::Reset => self.reset(None),
            WatchdogAction::Poweroff => return self.end(Ended::PoweredOff),
            WatchdogAction::Pause => self.pause(Box::new(drop)),
            WatchdogAction::None => {}
            WatchdogAction::InjectNmi => {
                if let Err(error) = self.nmi() {
                    tracing::error!("the guest's watchdog could not raise an NMI: {}", error.message);
                }
            }
        }
        None
    }
}
