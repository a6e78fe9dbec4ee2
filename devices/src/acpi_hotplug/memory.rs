//! Memory hotplug: slots that memory is put in, like the memory modules of a PC. The first registers are those of the
//! module `slots`, then there are of the selected slot's memory:
//!
//! | offset | register, read-only |
//! |---|---|
//! | 20, 24 | guest-physical address, low and high word |
//! | 28, 32 | size in bytes, low and high word |
//! | 36 | NUMA node |

use super::slots::{SavedSlots, Slots};
use super::{read_word, written_word};
use crate::platform::PlatformDevice;
use machine::bus::{BusDevice, Range};
use machine::effect::{Effect, HotplugPart};
use machine::inspect::{Inspect, Value};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};

const ADDRESS: u64 = 20;
const ADDRESS_HIGH: u64 = 24;
const SIZE: u64 = 28;
const SIZE_HIGH: u64 = 32;
const NODE: u64 = 36;

/// The memory in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Module {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// NUMA node.
    pub node: u32,
}

/// The controller.
pub struct MemoryHotplug {
    slots: Slots,
    modules: Vec<Module>,
}

impl MemoryHotplug {
    /// Where the registers are.
    pub const PORTS: Range = Range { start: 0x660, size: 40 };

    /// A controller of `count` empty slots.
    pub fn new(count: u32) -> Self {
        let modules = (0..count).map(|_| Module::default()).collect();
        Self { slots: Slots::new(HotplugPart::Memory, count, 0), modules }
    }

    /// Memory is in a slot from the start.
    pub fn fill(&mut self, slot: u32, module: Module) {
        if let Some(place) = usize::try_from(slot).ok().and_then(|at| self.modules.get_mut(at)) {
            *place = module;
            self.slots.fill(slot);
        }
    }

    /// Memory was put in a slot. [`crate::acpi::Event::Memory`] is to be raised after this.
    pub fn plug(&mut self, slot: u32, module: Module) {
        if let Some(place) = usize::try_from(slot).ok().and_then(|at| self.modules.get_mut(at)) {
            *place = module;
            self.slots.plug(slot);
        }
    }

    /// Asks the guest to let go of the memory in a slot. It may never answer, and may be asked again.
    /// [`crate::acpi::Event::Memory`] is to be raised after this.
    pub fn request_unplug(&mut self, slot: u32) {
        self.slots.request_unplug(slot);
    }

    /// Takes a request back, if the guest has not been told.
    pub fn withdraw_request(&mut self, slot: u32) {
        self.slots.withdraw_request(slot);
    }

    /// The memory is gone without the guest's doing.
    pub fn remove(&mut self, slot: u32) {
        self.slots.remove(slot);
    }

    /// The memory in a slot.
    pub fn module(&self, slot: u32) -> Option<Module> {
        let module = usize::try_from(slot).ok().and_then(|at| self.modules.get(at));
        module.copied().filter(|_| self.slots.is_present(slot))
    }
}

impl BusDevice for MemoryHotplug {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let module = self.module(self.slots.selected()).unwrap_or_default();
        read_word(offset, data, |at| match at {
            ADDRESS => module.address as u32,
            ADDRESS_HIGH => (module.address >> 32) as u32,
            SIZE => module.size as u32,
            SIZE_HIGH => (module.size >> 32) as u32,
            NODE => module.node,
            _ => self.slots.read(at),
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let (at, value) = written_word(offset, data)?;
        self.slots.write(at, value)
    }
}

impl PlatformDevice for MemoryHotplug {
    fn reset(&mut self) {
        self.slots.reset();
    }
}

machine::inspect!(MemoryHotplug, this => {
    ..this.slots,
    modules: this.module_trees(),
});

machine::inspect!(Module { hex address, size, node });

impl MemoryHotplug {
    fn module_trees(&self) -> Value {
        let slots = (0u32..).zip(&self.modules);
        slots.filter_map(|(slot, _)| Some((slot.to_string(), self.module(slot)?.inspect()))).collect()
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedMemoryHotplug {
    #[serde(flatten)]
    slots: SavedSlots,
    modules: Vec<Module>,
}

impl SavedFields for SavedMemoryHotplug {
    const KIND: &'static str = "acpi-memory-hotplug";
    const VERSION: u32 = 1;
}

impl Saved for MemoryHotplug {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedMemoryHotplug { slots: self.slots.save(), modules: self.modules.clone() })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedMemoryHotplug = state.read()?;
        self.slots
            .restore(&saved.slots)
            .map_err(|reason| StateError::Value { kind: SavedMemoryHotplug::KIND, reason })?;
        self.modules.fill(Module::default());
        for (module, saved) in self.modules.iter_mut().zip(saved.modules) {
            *module = saved;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> MemoryHotplug {
        let mut controller = MemoryHotplug::new(4);
        controller.plug(1, Module { address: 0x1_2345_6000, size: 3 << 32, node: 7 });
        controller.reset();
        controller
    }

    // The guest can let go of memory.
    crate::conformance!(conformance, MemoryHotplug::PORTS.size, controller(), keeps["slots"]);

    fn read(controller: &mut MemoryHotplug, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        controller.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_slot_tells_its_memory_until_it_is_let_go() {
        let mut controller = controller();
        controller.write(0, &[1, 0, 0, 0]);
        let told = |controller: &mut MemoryHotplug| {
            [ADDRESS, ADDRESS_HIGH, SIZE, SIZE_HIGH, NODE].map(|at| read(controller, at))
        };
        assert_eq!(told(&mut controller), [0x2345_6000, 1, 0, 3, 7]);
        assert_eq!(controller.write(4, &[8, 0, 0, 0]), Some(Effect::EjectMemory(1)));
        assert_eq!(told(&mut controller), [0; 5]);
        assert_eq!(controller.module(1), None);
    }
}
