//! PCI hotplug: device slots on the root bus of each segment, which the guest's ACPI methods serve.
//!
//! | offset | register | access |
//! |---|---|---|
//! | 0 | segment | the segment that the others are about |
//! | 4 | up | read: one bit for each device that came, which reading clears |
//! | 8 | down | read: one bit for each device that is asked to go, which reading clears |
//! | 12 | eject | write: one bit for each device that the guest has let go |

use super::{read_word, written_word};
use crate::platform::PlatformDevice;
use machine::bus::{BusDevice, Range};
use machine::effect::Effect;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};

const SEGMENT: u64 = 0;
const UP: u64 = 4;
const DOWN: u64 = 8;
const EJECT: u64 = 12;

/// Device number 0 of a root bus is the host bridge, which stays.
const REMOVABLE: u32 = !1;

/// What is to be told about the slots of a segment: one bit for each device number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Slots {
    up: u32,
    down: u32,
}

/// The controller of all segments.
pub struct PciHotplug {
    segments: Vec<Slots>,
    selected: u32,
    plugged: u64,
    unplug_requests: u64,
    ejected: u64,
}

impl PciHotplug {
    /// Where the registers are.
    pub const PORTS: Range = Range { start: 0x620, size: 16 };

    /// A controller of `segments` segments with nothing to tell.
    pub fn new(segments: u16) -> Self {
        let segments = vec![Slots::default(); usize::from(segments)];
        Self { segments, selected: 0, plugged: 0, unplug_requests: 0, ejected: 0 }
    }

    /// A device came at device number `device` of the root bus of `segment`. [`crate::acpi::Event::Pci`] is to be raised
    /// after this.
    pub fn plug(&mut self, segment: u16, device: u8) {
        let bit = slot_bit(device);
        if let Some(slots) = self.segments.get_mut(usize::from(segment)) {
            // What was there before is gone, and with it a request that it goes.
            slots.down &= !bit;
            slots.up |= bit;
            self.plugged = self.plugged.saturating_add(1);
        }
    }

    /// Asks the guest to let go of a device. It may never answer, and may be asked again.
    /// [`crate::acpi::Event::Pci`] is to be raised after this.
    pub fn request_unplug(&mut self, segment: u16, device: u8) {
        if let Some(slots) = self.segments.get_mut(usize::from(segment)) {
            slots.down |= slot_bit(device);
            self.unplug_requests = self.unplug_requests.saturating_add(1);
        }
    }

    /// The device is gone without the guest's doing: there is nothing to tell of it any more.
    pub fn forget(&mut self, segment: u16, device: u8) {
        if let Some(slots) = self.segments.get_mut(usize::from(segment)) {
            slots.up &= !slot_bit(device);
            slots.down &= !slot_bit(device);
        }
    }

    fn selected(&mut self) -> Option<&mut Slots> {
        self.segments.get_mut(usize::try_from(self.selected).ok()?)
    }
}

/// The bit of a device number; none for one that is not removable or not there.
fn slot_bit(device: u8) -> u32 {
    1u32.checked_shl(device.into()).unwrap_or(0) & REMOVABLE
}

impl BusDevice for PciHotplug {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_word(offset, data, |at| match at {
            SEGMENT => self.selected,
            UP => self.selected().map_or(0, |slots| std::mem::take(&mut slots.up)),
            DOWN => self.selected().map_or(0, |slots| std::mem::take(&mut slots.down)),
            _ => 0,
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        match written_word(offset, data)? {
            (SEGMENT, value) => {
                self.selected = value;
                None
            }
            (EJECT, value) => {
                let devices = value & REMOVABLE;
                let segment = u16::try_from(self.selected).ok()?;
                self.selected()?;
                if devices == 0 {
                    return None;
                }
                self.ejected = self.ejected.saturating_add(devices.count_ones().into());
                Some(Effect::Eject { segment, devices })
            }
            _ => None,
        }
    }
}

impl PlatformDevice for PciHotplug {
    /// The operating system that starts looks at all devices, so there is nothing to tell it.
    fn reset(&mut self) {
        self.segments.fill(Slots::default());
        self.selected = 0;
    }
}

machine::inspect!(PciHotplug { segments, selected, plugged, unplug_requests, ejected });

machine::inspect!(Slots { hex up, hex down });

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedPciHotplug {
    selected: u32,
    segments: Vec<Slots>,
}

impl SavedFields for SavedPciHotplug {
    const KIND: &'static str = "acpi-pci-hotplug";
    const VERSION: u32 = 1;
}

impl Saved for PciHotplug {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedPciHotplug { selected: self.selected, segments: self.segments.clone() })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedPciHotplug = state.read()?;
        if saved.segments.len() > self.segments.len() {
            return Err(StateError::Value {
                kind: SavedPciHotplug::KIND,
                reason: format!(
                    "it has {} PCI segments, and this machine {}",
                    saved.segments.len(),
                    self.segments.len()
                ),
            });
        }
        self.selected = saved.selected;
        for (slots, saved) in self.segments.iter_mut().zip(saved.segments) {
            *slots = Slots { up: saved.up & REMOVABLE, down: saved.down & REMOVABLE };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::inspect::json;
    use proptest::prelude::*;

    fn controller() -> PciHotplug {
        let mut controller = PciHotplug::new(3);
        controller.reset();
        controller
    }

    crate::conformance!(conformance, PciHotplug::PORTS.size, controller());

    fn read(controller: &mut PciHotplug, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        controller.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(controller: &mut PciHotplug, offset: u64, value: u32) -> Option<Effect> {
        controller.write(offset, &value.to_le_bytes())
    }

    #[test]
    fn a_device_comes_is_asked_to_go_and_is_let_go() {
        let mut controller = controller();
        controller.plug(1, 31);
        controller.request_unplug(2, 4);
        assert_eq!((read(&mut controller, UP), read(&mut controller, DOWN)), (0, 0), "segment 0");
        write(&mut controller, SEGMENT, 1);
        assert_eq!((read(&mut controller, UP), read(&mut controller, DOWN)), (1 << 31, 0));
        assert_eq!(read(&mut controller, UP), 0, "told once");
        write(&mut controller, SEGMENT, 2);
        assert_eq!(read(&mut controller, DOWN), 1 << 4);
        let ejected = write(&mut controller, EJECT, 1 << 4);
        assert_eq!(ejected, Some(Effect::Eject { segment: 2, devices: 1 << 4 }));
    }

    #[test]
    fn neither_the_host_bridge_nor_what_does_not_exist_is_ejected() {
        let mut controller = controller();
        assert_eq!(write(&mut controller, EJECT, 1), None);
        for segment in [3, 0x1_0000, u32::MAX] {
            write(&mut controller, SEGMENT, segment);
            assert_eq!(write(&mut controller, EJECT, u32::MAX), None);
            assert_eq!(read(&mut controller, UP), 0);
        }
        controller.plug(7, 1);
        controller.plug(0, 0);
        controller.request_unplug(0, 32);
        assert_eq!(controller.save().unwrap().fields["segments"], json!(vec![Slots::default(); 3]));
    }

    #[test]
    fn only_whole_words_are_registers() {
        let mut controller = controller();
        controller.plug(0, 3);
        for (offset, size) in [(UP, 1), (UP, 2), (UP + 2, 4), (UP, 8)] {
            let mut data = vec![0xff; size];
            controller.read(offset, &mut data);
            assert_eq!(data, vec![0; size]);
        }
        assert_eq!(controller.write(EJECT, &[8]), None);
        assert_eq!(read(&mut controller, UP), 8);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Plug(u16, u8),
        Request(u16, u8),
        Forget(u16, u8),
        Read(u32, bool),
        Eject(u32, u32),
        SaveRestore,
    }

    fn step() -> impl Strategy<Value = Step> {
        let slot = || (0..4u16, 0..40u8);
        prop_oneof![
            slot().prop_map(|(segment, device)| Step::Plug(segment, device)),
            slot().prop_map(|(segment, device)| Step::Request(segment, device)),
            slot().prop_map(|(segment, device)| Step::Forget(segment, device)),
            (0..4u32, any::<bool>()).prop_map(|(segment, up)| Step::Read(segment, up)),
            (0..4u32, any::<u32>()).prop_map(|(segment, devices)| Step::Eject(segment, devices)),
            Just(Step::SaveRestore),
        ]
    }

    proptest! {
        /// Against a model that is two sets of slots.
        #[test]
        fn it_tells_what_happened_once(steps in prop::collection::vec(step(), 0..60)) {
            use std::collections::BTreeSet;
            let mut controller = controller();
            let (mut up, mut down) = (BTreeSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Plug(segment, device) => {
                        controller.plug(segment, device);
                        up.insert((segment, device));
                        down.remove(&(segment, device));
                    }
                    Step::Request(segment, device) => {
                        controller.request_unplug(segment, device);
                        down.insert((segment, device));
                    }
                    Step::Forget(segment, device) => {
                        controller.forget(segment, device);
                        up.remove(&(segment, device));
                        down.remove(&(segment, device));
                    }
                    Step::Read(segment, read_up) => {
                        write(&mut controller, SEGMENT, segment);
                        let found = read(&mut controller, if read_up { UP } else { DOWN });
                        let set = if read_up { &mut up } else { &mut down };
                        for device in 0..40u8 {
                            let told = set.remove(&(segment as u16, device));
                            let exists = segment < 3 && (1..32).contains(&device);
                            let bit = device < 32 && found >> device & 1 == 1;
                            prop_assert_eq!(bit, told && exists, "{}:{}", segment, device);
                        }
                    }
                    Step::Eject(segment, devices) => {
                        write(&mut controller, SEGMENT, segment);
                        let effect = write(&mut controller, EJECT, devices);
                        let wanted = devices & !1;
                        let expected = Effect::Eject { segment: segment as u16, devices: wanted };
                        prop_assert_eq!(effect, (segment < 3 && wanted != 0).then_some(expected));
                    }
                    Step::SaveRestore => {
                        let state = controller.save().unwrap();
                        controller = PciHotplug::new(3);
                        controller.restore(&state).unwrap();
                    }
                }
            }
        }
    }
}
