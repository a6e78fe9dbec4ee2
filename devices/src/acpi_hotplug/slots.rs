//! What the controllers of CPUs and of memory have in common: numbered slots, one of which is selected.
//!
//! | offset | register | access |
//! |---|---|---|
//! | 0 | selected | the slot that the others are about |
//! | 4 | status | read: bit 0, it has something; bit 1, that came and was not told; bit 2, it is asked to go and was not told |
//! | | | write: 1 in bit 1 or 2, it was told; 1 in bit 3, the guest lets go of what is in the slot |
//! | 8 | next | read: the lowest slot with something to tell, all ones if there is none |
//! | 12 | event | write: first argument of `_OST` |
//! | 16 | outcome | write: second argument of `_OST`, after the first |

use machine::effect::{Effect, HotplugPart};
use serde::{Deserialize, Serialize};

const SELECTED: u64 = 0;
const STATUS: u64 = 4;
const NEXT: u64 = 8;
const EVENT: u64 = 12;
const OUTCOME: u64 = 16;

const PRESENT: u32 = 1 << 0;
const CAME: u32 = 1 << 1;
const GOING: u32 = 1 << 2;
const EJECT: u32 = 1 << 3;

/// `_OST` of a request to let go (ACPI 6.5, table 6.16).
const EJECT_REQUEST: u32 = 3;
/// Statuses of such a request that refuse nothing: it is done, or about to be (table 6.17).
const NO_REFUSAL: [u32; 2] = [0, 0x84];

/// One slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Slot {
    /// It has something.
    present: bool,
    /// That came, and the guest was not told.
    came: bool,
    /// It is asked to go, and the guest was not told.
    going: bool,
    /// It is asked to go, and the guest has not refused.
    asked: bool,
}

impl Slot {
    const fn has_news(self) -> bool {
        self.came || self.going
    }
}

/// What is saved of the slots.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SavedSlots {
    pub(super) slots: Vec<Slot>,
    selected: u32,
    event: u32,
}

/// All slots of a controller.
pub(super) struct Slots {
    part: HotplugPart,
    slots: Vec<Slot>,
    /// Slots from 0 up whose content stays.
    fixed: u32,
    selected: u32,
    event: u32,
    came: u64,
    asked: u64,
    ejected: u64,
}

impl Slots {
    /// `count` slots. What is in the first `fixed` cannot be let go.
    pub(super) fn new(part: HotplugPart, count: u32, fixed: u32) -> Self {
        let slots = (0..count).map(|_| Slot::default()).collect();
        Self { part, slots, fixed, selected: 0, event: 0, came: 0, asked: 0, ejected: 0 }
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(number).ok()?)
    }

    /// The slot that the registers are about.
    pub(super) fn selected(&self) -> u32 {
        self.selected
    }

    pub(super) fn is_present(&self, number: u32) -> bool {
        usize::try_from(number).ok().and_then(|at| self.slots.get(at)).is_some_and(|slot| slot.present)
    }

    /// The slot has something from the start.
    pub(super) fn fill(&mut self, number: u32) {
        if let Some(slot) = self.get_mut(number) {
            *slot = Slot { present: true, ..Slot::default() };
        }
    }

    /// Something came.
    pub(super) fn plug(&mut self, number: u32) {
        if let Some(slot) = self.get_mut(number) {
            *slot = Slot { present: true, came: true, ..Slot::default() };
            self.came = self.came.saturating_add(1);
        }
    }

    /// Asks the guest to let go of what is in the slot.
    pub(super) fn request_unplug(&mut self, number: u32) {
        let fixed = number < self.fixed;
        if let Some(slot) = self.get_mut(number).filter(|slot| slot.present && !fixed) {
            (slot.going, slot.asked) = (true, true);
            self.asked = self.asked.saturating_add(1);
        }
    }

    /// Takes a request back. A guest that was told may let go all the same.
    pub(super) fn withdraw_request(&mut self, number: u32) {
        if let Some(slot) = self.get_mut(number) {
            (slot.going, slot.asked) = (false, false);
        }
    }

    /// What is in the slot is gone.
    pub(super) fn remove(&mut self, number: u32) {
        if let Some(slot) = self.get_mut(number) {
            *slot = Slot::default();
        }
    }

    pub(super) fn read(&self, at: u64) -> u32 {
        let selected = usize::try_from(self.selected).ok().and_then(|at| self.slots.get(at));
        match at {
            SELECTED => self.selected,
            STATUS => selected.map_or(0, |slot| {
                let bit = |set: bool, bit: u32| if set { bit } else { 0 };
                bit(slot.present, PRESENT) | bit(slot.came, CAME) | bit(slot.going, GOING)
            }),
            NEXT => {
                let next = (0u32..).zip(&self.slots).find(|(_, slot)| slot.has_news());
                next.map_or(u32::MAX, |(number, _)| number)
            }
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, at: u64, value: u32) -> Option<Effect> {
        match at {
            SELECTED => self.selected = value,
            STATUS => return self.write_status(value),
            EVENT => self.event = value,
            OUTCOME => return self.write_outcome(value),
            _ => {}
        }
        None
    }

    /// A refusal counts once for each request.
    fn write_outcome(&mut self, status: u32) -> Option<Effect> {
        let (part, number, event) = (self.part, self.selected, self.event);
        let slot = self.get_mut(number)?;
        if !slot.asked || event != EJECT_REQUEST || NO_REFUSAL.contains(&status) {
            return None;
        }
        slot.asked = false;
        Some(Effect::ReleaseRefused { part, number, status })
    }

    fn write_status(&mut self, value: u32) -> Option<Effect> {
        let number = self.selected;
        let fixed = number < self.fixed;
        let slot = self.get_mut(number)?;
        if value & CAME != 0 {
            slot.came = false;
        }
        if value & GOING != 0 {
            slot.going = false;
        }
        if value & EJECT == 0 || !slot.present || fixed {
            return None;
        }
        *slot = Slot::default();
        self.ejected = self.ejected.saturating_add(1);
        Some(match self.part {
            HotplugPart::Cpu => Effect::EjectCpu(number),
            HotplugPart::Memory => Effect::EjectMemory(number),
        })
    }

    /// The operating system that starts finds what there is by itself, so that there is nothing to tell it.
    pub(super) fn reset(&mut self) {
        for slot in &mut self.slots {
            (slot.came, slot.going, slot.asked) = (false, false, false);
        }
        self.selected = 0;
        self.event = 0;
    }

    pub(super) fn save(&self) -> SavedSlots {
        SavedSlots { slots: self.slots.clone(), selected: self.selected, event: self.event }
    }

    /// Takes a saved state of at most as many slots; `Err` says what is wrong with it.
    pub(super) fn restore(&mut self, saved: &SavedSlots) -> Result<(), String> {
        let (found, own) = (saved.slots.len(), self.slots.len());
        if found > own {
            return Err(format!("it has {found} slots, and this machine {own}"));
        }
        self.slots.fill(Slot::default());
        for (slot, saved) in self.slots.iter_mut().zip(&saved.slots) {
            *slot = *saved;
        }
        self.selected = saved.selected;
        self.event = saved.event;
        Ok(())
    }

    /// The numbers of the slots that are `chosen`.
    fn numbers(&self, chosen: fn(&Slot) -> bool) -> Vec<u32> {
        (0u32..).zip(&self.slots).filter(|(_, slot)| chosen(slot)).map(|(number, _)| number).collect()
    }
}

machine::inspect!(Slots, this => {
    slots: this.slots.len(),
    present: this.numbers(|slot| slot.present),
    untold_came: this.numbers(|slot| slot.came),
    untold_going: this.numbers(|slot| slot.going),
    came,
    asked_to_go: this.asked,
    ejected,
});

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const COUNT: u32 = 5;

    fn status(slots: &mut Slots, number: u32) -> u32 {
        slots.write(SELECTED, number);
        slots.read(STATUS)
    }

    #[test]
    fn a_cpu_comes_and_goes() {
        let mut slots = Slots::new(HotplugPart::Cpu, COUNT, 1);
        slots.fill(0);
        assert_eq!((status(&mut slots, 0), slots.read(NEXT)), (PRESENT, u32::MAX));
        slots.plug(3);
        assert_eq!(slots.read(NEXT), 3);
        assert_eq!(status(&mut slots, 3), PRESENT | CAME);
        slots.write(STATUS, CAME);
        assert_eq!((slots.read(STATUS), slots.read(NEXT)), (PRESENT, u32::MAX));
        slots.request_unplug(3);
        assert_eq!(slots.read(STATUS), PRESENT | GOING);
        assert_eq!(slots.write(STATUS, GOING), None);
        assert_eq!(slots.write(STATUS, EJECT), Some(Effect::EjectCpu(3)));
        assert_eq!(slots.write(STATUS, EJECT), None, "it is gone");
    }

    #[test]
    fn a_guest_refuses_what_it_is_asked_for_and_that_once() {
        let mut slots = Slots::new(HotplugPart::Memory, COUNT, 0);
        slots.fill(3);
        let refuse = |slots: &mut Slots, event, status| {
            slots.write(SELECTED, 3);
            slots.write(EVENT, event);
            slots.write(OUTCOME, status)
        };
        assert_eq!(refuse(&mut slots, EJECT_REQUEST, 1), None, "nobody asked");
        for status in [1, 0x81] {
            slots.request_unplug(3);
            assert_eq!(refuse(&mut slots, EJECT_REQUEST, 0x84), None, "it is about to");
            assert_eq!(refuse(&mut slots, 1, status), None, "that is about something that came");
            let refused = Effect::ReleaseRefused { part: HotplugPart::Memory, number: 3, status };
            assert_eq!(refuse(&mut slots, EJECT_REQUEST, status), Some(refused));
            assert_eq!(refuse(&mut slots, EJECT_REQUEST, status), None, "that is known");
        }
        slots.request_unplug(3);
        slots.withdraw_request(3);
        assert_eq!(refuse(&mut slots, EJECT_REQUEST, 1), None, "nobody asks any more");
        slots.request_unplug(3);
        slots.remove(3);
        assert_eq!(refuse(&mut slots, EJECT_REQUEST, 1), None, "the slot is empty");
    }

    #[test]
    fn the_first_is_not_let_go_and_those_that_do_not_exist_neither() {
        let mut slots = Slots::new(HotplugPart::Cpu, COUNT, 1);
        slots.fill(0);
        slots.request_unplug(0);
        for number in [0, COUNT, u32::MAX] {
            slots.write(SELECTED, number);
            assert_eq!(slots.write(STATUS, EJECT), None);
            assert_eq!(slots.read(NEXT), u32::MAX);
        }
        assert_eq!(slots.write(OUTCOME, 1), None, "of no slot");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Plug(u32),
        Request(u32),
        Withdraw(u32),
        Remove(u32),
        Tell(u32, u32),
        Eject(u32),
        Reset,
        SaveRestore,
    }

    fn step() -> impl Strategy<Value = Step> {
        let number = || 0..COUNT + 1;
        prop_oneof![
            3 => number().prop_map(Step::Plug),
            2 => number().prop_map(Step::Request),
            1 => number().prop_map(Step::Withdraw),
            1 => number().prop_map(Step::Remove),
            2 => (number(), 0..8u32).prop_map(|(number, bits)| Step::Tell(number, bits)),
            2 => number().prop_map(Step::Eject),
            1 => Just(Step::Reset),
            1 => Just(Step::SaveRestore),
        ]
    }

    proptest! {
        /// Against a model that is three sets of numbers.
        #[test]
        fn it_knows_what_is_there_and_what_is_untold(steps in prop::collection::vec(step(), 0..80)) {
            let mut slots = Slots::new(HotplugPart::Memory, COUNT, 0);
            let mut present = BTreeSet::new();
            let (mut came, mut going) = (BTreeSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Plug(number) => {
                        slots.plug(number);
                        if number < COUNT {
                            present.insert(number);
                            came.insert(number);
                            going.remove(&number);
                        }
                    }
                    Step::Request(number) => {
                        slots.request_unplug(number);
                        if present.contains(&number) {
                            going.insert(number);
                        }
                    }
                    Step::Withdraw(number) => {
                        slots.withdraw_request(number);
                        going.remove(&number);
                    }
                    Step::Remove(number) => {
                        slots.remove(number);
                        for set in [&mut present, &mut came, &mut going] {
                            set.remove(&number);
                        }
                    }
                    Step::Tell(number, bits) => {
                        slots.write(SELECTED, number);
                        prop_assert_eq!(slots.write(STATUS, bits), None);
                        if bits & CAME != 0 {
                            came.remove(&number);
                        }
                        if bits & GOING != 0 {
                            going.remove(&number);
                        }
                    }
                    Step::Eject(number) => {
                        slots.write(SELECTED, number);
                        let expected = present.remove(&number).then_some(Effect::EjectMemory(number));
                        prop_assert_eq!(slots.write(STATUS, EJECT), expected);
                        came.remove(&number);
                        going.remove(&number);
                    }
                    Step::Reset => {
                        slots.reset();
                        came.clear();
                        going.clear();
                    }
                    Step::SaveRestore => {
                        let saved = slots.save();
                        slots = Slots::new(HotplugPart::Memory, COUNT, 0);
                        slots.restore(&saved).unwrap();
                    }
                }
                let next = came.union(&going).min().copied().unwrap_or(u32::MAX);
                prop_assert_eq!(slots.read(NEXT), next);
                for number in 0..COUNT + 1 {
                    let bit = |set: &BTreeSet<u32>, bit| if set.contains(&number) { bit } else { 0 };
                    let expected = bit(&present, PRESENT) | bit(&came, CAME) | bit(&going, GOING);
                    prop_assert_eq!(status(&mut slots, number), expected);
                }
            }
        }
    }
}
