//! pvpanic: how a guest kernel tells that it crashed (QEMU's docs/specs/pvpanic, ISA form).
//!
//! One port: reading gives the events understood, writing reports events.

use crate::platform::PlatformDevice;
use machine::bus::{BusDevice, Range};
use machine::effect::Effect;
use machine::inspect::{Inspect, Value, json};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};

/// The guest kernel panicked.
pub const PANICKED: u8 = 1 << 0;
/// The guest kernel crashed, and its crash kernel takes over: let it run.
pub const CRASH_LOADED: u8 = 1 << 1;

const EVENTS: u8 = PANICKED | CRASH_LOADED;

/// The device.
#[derive(Debug, Default)]
pub struct Pvpanic {
    panics: u64,
}

impl Pvpanic {
    /// Where the port is, as the ACPI device `QEMU0001` says.
    pub const PORTS: Range = Range { start: 0x505, size: 1 };
}

impl BusDevice for Pvpanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(EVENTS);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<Effect> {
        let events = data.first()? & EVENTS;
        (events != 0).then(|| {
            self.panics = self.panics.saturating_add(1);
            Effect::Panicked(events)
        })
    }
}

impl PlatformDevice for Pvpanic {
    fn reset(&mut self) {}
}

impl Inspect for Pvpanic {
    fn inspect(&self) -> Value {
        json!({ "panics": self.panics })
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedPvpanic {}

impl SavedFields for SavedPvpanic {
    const KIND: &'static str = "pvpanic";
    const VERSION: u32 = 1;
}

impl Saved for Pvpanic {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedPvpanic {})
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.read::<SavedPvpanic>().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::conformance!(conformance, Pvpanic::PORTS.size, Pvpanic::default());

    #[test]
    fn known_events_are_offered_and_reported_and_others_are_not() {
        let mut device = Pvpanic::default();
        let mut data = [0xff];
        device.read(0, &mut data);
        assert_eq!(data, [3]);
        assert_eq!(device.write(0, &[1]), Some(Effect::Panicked(PANICKED)));
        assert_eq!(device.write(0, &[0xfe]), Some(Effect::Panicked(CRASH_LOADED)));
        assert_eq!(device.write(0, &[0xfc]), None);
    }
}
