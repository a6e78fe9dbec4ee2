//! CPU hotplug: which CPUs there are, and which come and go. The registers are those of the module `slots`; a CPU's
//! slot is its number.

use super::slots::{SavedSlots, Slots};
use super::{read_word, written_word};
use crate::platform::PlatformDevice;
use machine::bus::{BusDevice, Range};
use machine::effect::{Effect, HotplugPart};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};

/// The controller.
pub struct CpuHotplug {
    slots: Slots,
}

impl CpuHotplug {
    /// Where the registers are.
    pub const PORTS: Range = Range { start: 0x640, size: 20 };

    /// A controller of a machine that can have `limit` CPUs and starts with the first `present` ones. CPU 0 stays.
    pub fn new(limit: u32, present: u32) -> Self {
        let mut slots = Slots::new(HotplugPart::Cpu, limit, 1);
        for cpu in 0..present.min(limit) {
            slots.fill(cpu);
        }
        Self { slots }
    }

    /// A CPU came. [`crate::acpi::Event::Cpu`] is to be raised after this.
    pub fn plug(&mut self, cpu: u32) {
        self.slots.plug(cpu);
    }

    /// Asks the guest to let go of a CPU. It may never answer, and may be asked again. [`crate::acpi::Event::Cpu`] is to
    /// be raised after this.
    pub fn request_unplug(&mut self, cpu: u32) {
        self.slots.request_unplug(cpu);
    }

    /// Takes a request back, if the guest has not been told.
    pub fn withdraw_request(&mut self, cpu: u32) {
        self.slots.withdraw_request(cpu);
    }

    /// A CPU is gone without the guest's doing.
    pub fn remove(&mut self, cpu: u32) {
        self.slots.remove(cpu);
    }

    /// Whether the guest is shown that CPU.
    pub fn is_present(&self, cpu: u32) -> bool {
        self.slots.is_present(cpu)
    }
}

impl BusDevice for CpuHotplug {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_word(offset, data, |at| self.slots.read(at));
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let (at, value) = written_word(offset, data)?;
        self.slots.write(at, value)
    }
}

impl PlatformDevice for CpuHotplug {
    fn reset(&mut self) {
        self.slots.reset();
    }
}

machine::inspect!(CpuHotplug, this => { ..this.slots });

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedCpuHotplug {
    #[serde(flatten)]
    slots: SavedSlots,
}

impl SavedFields for SavedCpuHotplug {
    const KIND: &'static str = "acpi-cpu-hotplug";
    const VERSION: u32 = 1;
}

impl Saved for CpuHotplug {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedCpuHotplug { slots: self.slots.save() })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedCpuHotplug = state.read()?;
        self.slots
            .restore(&saved.slots)
            .map_err(|reason| StateError::Value { kind: SavedCpuHotplug::KIND, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Which CPUs there are is no register, and the guest can let go of some.
    crate::conformance!(conformance, CpuHotplug::PORTS.size, CpuHotplug::new(4, 2), keeps["slots"]);

    #[test]
    fn a_state_of_more_cpus_is_refused() {
        let state = CpuHotplug::new(8, 2).save().unwrap();
        let error = CpuHotplug::new(4, 2).restore(&state).unwrap_err().to_string();
        assert!(error.contains("8 slots"), "{error}");
        let mut same = CpuHotplug::new(8, 1);
        same.restore(&state).unwrap();
        assert!(same.is_present(1) && !same.is_present(2));
    }

    #[test]
    fn registers_are_whole_words() {
        let mut controller = CpuHotplug::new(4, 2);
        controller.plug(2);
        let mut next = [0xff; 4];
        controller.read(8, &mut next);
        assert_eq!(next, [2, 0, 0, 0]);
        let mut byte = [0xff];
        controller.read(8, &mut byte);
        assert_eq!(byte, [0]);
        controller.write(0, &[1, 0, 0, 0]);
        assert_eq!(controller.write(4, &[8]), None);
        assert_eq!(controller.write(4, &[8, 0, 0, 0]), Some(Effect::EjectCpu(1)));
    }
}
