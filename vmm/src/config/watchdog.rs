//! `--watchdog`.

use super::options::{Setting, options};
use serde::{Deserialize, Serialize};

options! {
    /// A watchdog timer (Intel 6300ESB; Linux: module `i6300esb`), with `--watchdog` alone one that restarts the machine.
    pub struct WatchdogConfig {
        /// What is done when the guest does not reload it in time. An event tells of it in any case.
        ["action"] action: WatchdogAction = WatchdogAction::Reset,
    }
}

/// What is done when a guest does not reload its watchdog in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WatchdogAction {
    /// Restart the machine.
    #[default]
    Reset,
    /// End the machine.
    Poweroff,
    /// Pause the machine.
    Pause,
    /// Nothing.
    None,
}

impl WatchdogAction {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Poweroff => "poweroff",
            Self::Pause => "pause",
            Self::None => "none",
        }
    }
}

impl Setting for WatchdogAction {
    const HINT: &'static str = "reset|poweroff|pause|none";
    fn show(&self) -> String {
        self.name().into()
    }
}
