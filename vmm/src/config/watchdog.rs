//! `--watchdog`.

use super::options::{Setting, options};
use serde::{Deserialize, Serialize};

options! {
    /// A watchdog timer, with `--watchdog` alone one that restarts the machine.
    pub struct WatchdogConfig {
        /// What is done when the guest does not reload it in time. An event tells of it in any case.
        ["action"] action: WatchdogAction = WatchdogAction::Reset,
        /// Which device it is: Intel's 6300ESB (Linux: module `i6300esb`), cloud-hypervisor's virtio-watchdog, or both, so that any guest finds the one it has a driver for.
        ["model"] model: WatchdogModel = WatchdogModel::Any,
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
    /// Raise a non-maskable interrupt, so that the guest tells where it hangs or makes a dump of itself.
    #[serde(rename = "inject-nmi", alias = "inject_nmi")]
    InjectNmi,
}

impl WatchdogAction {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Poweroff => "poweroff",
            Self::Pause => "pause",
            Self::None => "none",
            Self::InjectNmi => "inject-nmi",
        }
    }
}

impl Setting for WatchdogAction {
    const HINT: &'static str = "reset|poweroff|pause|none|inject-nmi";
    fn show(&self) -> String {
        self.name().into()
    }
}

/// Which watchdog device there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum WatchdogModel {
    /// Both.
    #[default]
    Any,
    /// Intel's 6300ESB.
    I6300esb,
    /// The one of virtio.
    Virtio,
}

impl Setting for WatchdogModel {
    const HINT: &'static str = "any|i6300esb|virtio";
    fn show(&self) -> String {
        match self {
            Self::Any => "any",
            Self::I6300esb => "i6300esb",
            Self::Virtio => "virtio",
        }
        .into()
    }
}
