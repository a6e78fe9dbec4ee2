//! What targets do with any device of a platform.

use devices::platform::PlatformDevice;
use machine::state::Saved;
use std::hint::black_box;

/// A device takes back the state that it saves, and has the same afterwards.
pub(crate) fn restore_own_state(device: &mut (impl Saved + ?Sized)) {
    let state = device.save().expect("the state can be saved");
    device.restore(&state).expect("a device takes its own state");
    assert_eq!(device.save().expect("the state can be saved"), state);
}

/// Resets a device, or looks at it.
pub(crate) fn reset_or_look(device: &mut dyn PlatformDevice, reset: bool) {
    if reset {
        device.reset();
    } else {
        black_box(device.inspect());
    }
}
