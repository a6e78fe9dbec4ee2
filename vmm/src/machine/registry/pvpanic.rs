//! The function by which the guest reports its panics.

use super::{Backend, Opened, Part, Seat};
use crate::config::PvpanicConfig;
use anyhow::Result;
use devices::pvpanic::PvpanicFunction;
use pci::function::FunctionHandle;
use std::sync::{Arc, Mutex};

/// Makes it.
///
/// # Errors
/// As [`PvpanicFunction::new`].
pub(super) fn open(config: &PvpanicConfig) -> Result<Opened> {
    let function: FunctionHandle = Arc::new(Mutex::new(PvpanicFunction::new()?));
    Ok(Seat::of(config).with(Backend::Ready(Part::Plain(function.into()))))
}
