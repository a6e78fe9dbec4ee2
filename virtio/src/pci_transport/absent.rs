//! What stands in for a device that was taken out of its function.

use crate::device::{ActivateError, Activation, QueueTask, VirtioDevice};
use machine::state::{Saved, SavedFields, SavedState, StateError};

/// A device that offers nothing and cannot start. A CPU may still reach it through a map that was in force when the device was
/// taken out.
pub(super) struct Absent;

impl VirtioDevice for Absent {
    fn device_type(&self) -> u16 {
        0
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        Vec::new()
    }

    fn config_read(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        Err(ActivateError::Unsupported("the device was removed"))
    }

    fn reset(&mut self) {}
}

machine::inspect!(Absent, this => {
    kind: AbsentState::KIND,
});

/// Nothing is saved of it.
#[derive(Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct AbsentState {}

impl SavedFields for AbsentState {
    const KIND: &'static str = "virtio-absent";
    const VERSION: u32 = 1;
}

impl Saved for Absent {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&AbsentState {})
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.read::<AbsentState>().map(drop)
    }
}
