//! `--landlock-rules`.

use super::options::{Setting, options};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What may be done below a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum LandlockAccess {
    /// Reading.
    #[default]
    #[serde(rename = "r")]
    Read,
    /// Writing.
    #[serde(rename = "w")]
    Write,
    /// Both.
    #[serde(rename = "rw", alias = "wr")]
    ReadWrite,
}

impl Setting for LandlockAccess {
    const HINT: &'static str = "r|w|rw";
    fn show(&self) -> String {
        match self {
            Self::Read => "r",
            Self::Write => "w",
            Self::ReadWrite => "rw",
        }
        .into()
    }
}

options! {
    /// A file or folder that a machine with --landlock may reach beyond those that its configuration names: for devices
    /// that are added later.
    pub struct LandlockConfig {
        /// The file, or the folder with all that is below it.
        ["path"] path: PathBuf = PathBuf::new(),
        /// What may be done there.
        ["access"] access: LandlockAccess = LandlockAccess::Read,
    }
}
