//! Watchdogs.

use super::{Backend, Opened, Part, Seat, Site};
use crate::config::{Device, WatchdogAction, WatchdogConfig, WatchdogModel};
use crate::machine::control::Control;
use crate::machine::platform;
use crate::message::Message;
use anyhow::{Result, ensure};
use devices::virtio::watchdog::Watchdog as VirtioWatchdog;
use devices::watchdog::Watchdog;
use pci::function::FunctionHandle;
use std::sync::{Arc, Mutex};

/// Makes a watchdog.
///
/// # Errors
/// When its action is one that CPUs do not have.
pub(super) fn open(site: &Site, config: &WatchdogConfig) -> Result<Opened> {
    ensure!(
        config.action != WatchdogAction::InjectNmi || platform::RAISE_NMI.is_some(),
        "CPUs of this architecture have no non-maskable interrupt that the host can raise; use action=reset, poweroff, pause or \
         none"
    );
    let seat = Seat::of(config);
    if config.model == WatchdogModel::Virtio {
        let (mailbox, id) = (site.mailbox.clone(), config.id().unwrap_or_default().to_owned());
        let device = VirtioWatchdog::new(move || mailbox.post(Message::WatchdogExpired(id.clone())));
        let seat = Seat { control: Some(Control::VirtioWatchdog(device.hold())), ..seat };
        return Ok(seat.with_virtio(device));
    }
    let device = Arc::new(Mutex::new(Watchdog::new(Arc::clone(&site.clock))?));
    let function: FunctionHandle = device.clone();
    let seat = Seat { control: Some(Control::Watchdog(device)), ..seat };
    Ok(seat.with(Backend::Ready(Part::Plain(function.into()))))
}
