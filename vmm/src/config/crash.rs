//! `--on-crash`.

use super::options::{Setting, options};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

options! {
    /// What is done when the guest's kernel panics (told by a pvpanic device, which the option adds) or a CPU cannot go on.
    pub struct CrashConfig {
        /// The file that the memory and the CPUs' registers are written to, before anything else is done. One that is there
        /// already is kept, and none is written.
        ["coredump"] coredump: Option<PathBuf> = None,
        /// What is done then. With `none`, a guest that panicked does as it was set up (`panic=` of Linux), and a CPU that cannot
        /// go on ends the machine.
        ["action"] action: CrashAction = CrashAction::None,
        /// Add a pvpanic device, if there is none. Off when it was removed: what is done is then done only for a CPU.
        ["pvpanic"] pvpanic: bool = true,
    }
}

/// What is done with a machine that crashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CrashAction {
    /// Nothing but what the guest itself does.
    #[default]
    None,
    /// Restart the machine.
    Reset,
    /// End the machine.
    Poweroff,
    /// Pause the machine.
    Pause,
}

impl Setting for CrashAction {
    const HINT: &'static str = "none|reset|poweroff|pause";
    fn show(&self) -> String {
        match self {
            Self::None => "none",
            Self::Reset => "reset",
            Self::Poweroff => "poweroff",
            Self::Pause => "pause",
        }
        .into()
    }
}
