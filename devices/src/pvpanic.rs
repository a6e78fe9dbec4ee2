//! pvpanic: how a guest kernel tells that it crashed (QEMU's docs/specs/pvpanic), on the mainboard and as a PCI function.
//!
//! One register: reading gives the events understood, writing reports events.

use crate::platform::PlatformDevice;
use machine::bus::{BusDevice, Range};
use machine::effect::{DeviceChange, Effect};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use pci::bar::BarKind;
use pci::config::{ConfigError, ConfigSpace, ConfigState, Identity};
use pci::function::Function;
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

machine::inspect!(Pvpanic { panics });

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

/// The device as a PCI function.
pub struct PvpanicFunction {
    config: ConfigSpace,
    panics: u64,
}

impl PvpanicFunction {
    /// The register is the first byte of this BAR.
    pub const BAR: u8 = 0;
    /// No BAR is smaller (PCI 3.0, 6.2.5.1).
    const BAR_SIZE: u64 = 16;

    /// A function that has heard of no panic.
    ///
    /// # Errors
    /// Never, unless configuration spaces cannot hold its BAR.
    pub fn new() -> Result<Self, ConfigError> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0011,
            class: 0x08_80_00,
            revision: 1,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config.add_bar(Self::BAR, BarKind::Memory32 { prefetchable: false }, Self::BAR_SIZE)?;
        Ok(Self { config, panics: 0 })
    }
}

impl Function for PvpanicFunction {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, _bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(register)) = (offset, data.first_mut()) {
            *register = EVENTS;
        }
    }

    fn bar_write(&mut self, _bar: u8, offset: u64, data: &[u8]) -> Option<DeviceChange> {
        let events = data.first()? & EVENTS;
        (offset == 0 && events != 0).then(|| {
            self.panics = self.panics.saturating_add(1);
            DeviceChange::Panicked(events)
        })
    }

    fn reset(&mut self) {
        self.config.reset();
    }
}

machine::inspect!(PvpanicFunction, this => {
    panics,
    pci: this.config,
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedPvpanicFunction {
    config: ConfigState,
}

impl SavedFields for SavedPvpanicFunction {
    const KIND: &'static str = "pvpanic-pci";
    const VERSION: u32 = 1;
}

impl Saved for PvpanicFunction {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedPvpanicFunction { config: self.config.save() })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedPvpanicFunction = state.read()?;
        self.config.restore(&saved.config)?;
        Ok(())
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

    #[test]
    fn the_function_has_the_register_in_its_bar() {
        let mut device = PvpanicFunction::new().unwrap();
        let mut data = [0xff; 4];
        device.config_read(0, &mut data);
        assert_eq!(data, [0x36, 0x1b, 0x11, 0x00]);
        device.bar_read(PvpanicFunction::BAR, 0, &mut data);
        assert_eq!(data, [3, 0, 0, 0]);
        assert_eq!(device.bar_write(0, 0, &[1]), Some(DeviceChange::Panicked(PANICKED)));
        assert_eq!(device.bar_write(0, 0, &[0xfe, 0, 0, 0]), Some(DeviceChange::Panicked(CRASH_LOADED)));
        assert_eq!((device.bar_write(0, 0, &[0xfc]), device.bar_write(0, 4, &[1])), (None, None));
        device.config_write(4, &[2, 0]);
        let state = device.save().unwrap();
        let mut other = PvpanicFunction::new().unwrap();
        other.restore(&state).unwrap();
        assert_eq!(other.save().unwrap(), state);
        device.reset();
        assert_ne!(device.save().unwrap(), state);
    }
}
