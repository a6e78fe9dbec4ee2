//! What is saved of a console device apart from its queues.

use super::control::Message;
use machine::state::{SavedFields, StateError};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SavedConsole {
    pub(super) ports: Vec<SavedPort>,
    /// Control messages for the driver that it had no buffers for.
    pub(super) messages: Vec<Message>,
    /// The driver said that it is ready for control messages.
    pub(super) driver_ready: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SavedPort {
    /// The driver has set the port up.
    pub(super) ready: bool,
    /// A program in the guest has it open.
    pub(super) guest_open: bool,
    /// The guest was told that the host has it open.
    pub(super) host_open: bool,
    /// Input read on the host that the guest had no buffers for.
    pub(super) held: Vec<u8>,
}

impl SavedFields for SavedConsole {
    const KIND: &'static str = "virtio-console";
    const VERSION: u32 = 1;
}

impl SavedConsole {
    /// Whether a device with this many ports can have this state.
    pub(super) fn check(&self, ports: usize) -> Result<(), StateError> {
        if self.ports.len() > ports {
            return Err(StateError::Value {
                kind: Self::KIND,
                reason: format!("it has {} ports, and this machine's has {ports}", self.ports.len()),
            });
        }
        Ok(())
    }
}
