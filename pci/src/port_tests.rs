//! A port as Linux's port driver and pciehp see it.

use super::*;
use crate::express::slot::*;
use machine::interrupt::InterruptLine;
use machine::interrupt::recording::{Pins, Sources};
use proptest::prelude::*;

struct Rig {
    port: Port,
    sources: Arc<Sources>,
    pins: Arc<Pins>,
}

const MSI: u16 = 0x84;

impl Rig {
    fn new(slot: Option<u16>) -> Self {
        let (sources, pins) = (Arc::new(Sources::default()), Arc::new(Pins::default()));
        let options = PortOptions { kind: PortKind::Root, port: 1, slot, io: false };
        let intx = Intx::new(InterruptLine::new(pins.clone(), 17));
        Self { port: Port::new(options, sources.clone(), Some(intx)).unwrap(), sources, pins }
    }

    /// Finds a capability as a guest does.
    fn capability(&self, wanted: u8) -> u16 {
        let config = self.port.config();
        let mut at = config.dword(0x34) as u8;
        while at != 0 {
            let header = config.dword(at.into());
            if header as u8 == wanted {
                return at.into();
            }
            at = (header >> 8) as u8;
        }
        panic!("capability {wanted:#x} is not there");
    }

    fn write(&mut self, offset: u16, value: u16) -> Option<DeviceChange> {
        self.port.config_write(offset, &value.to_le_bytes())
    }

    fn control(&mut self, value: u16) -> Option<DeviceChange> {
        let at = self.port.slot_register();
        self.write(at, value)
    }

    /// Clears what the status shows, and returns it.
    fn events(&mut self) -> u16 {
        let status = self.port.slot_status() & STATUS_CLEAR;
        let at = self.port.slot_register() + 2;
        assert_eq!(self.write(at, status), None);
        status
    }

    fn link(&self) -> bool {
        self.port.config().word(self.port.link_register() + 2) & LINK_ACTIVE != 0
    }

    fn enable_msi(&mut self) {
        let at = self.capability(id::MSI);
        assert_eq!(at, MSI);
        self.port.config_write(at + 4, &0xfee0_0000u32.to_le_bytes());
        self.port.config_write(at + 12, &[0x41, 0]);
        self.write(at + 2, 1);
    }
}

/// What pciehp writes when it starts (pcie_enable_notification): button and link, with command completed. Where there is a button, it
/// does not listen to presence.
const NOTIFY: u16 = 0x1031;

#[test]
fn the_capabilities_are_those_pciehp_looks_for() {
    let rig = Rig::new(Some(5));
    let express = rig.capability(id::EXPRESS);
    let config = rig.port.config();
    assert_eq!(config.word(express + 2), 0x0142, "version 2, root port, with a slot");
    let slot = config.dword(express + 0x14);
    assert_eq!((slot >> 19, slot & 0x7f), (5, 0x7b));
    assert_eq!(slot & 1 << 18, 0, "commands complete, and say so");
    assert_ne!(config.dword(express + 0x0c) & 1 << 20, 0, "the link tells that it is up");
    assert_eq!(config.dword(0x100) & 0xffff, 1, "errors can be reported");
    assert_eq!(config.dword((config.dword(0x100) >> 20) as u16) & 0xffff, 0xd, "access control");
    let plain = Rig::new(None);
    let express = plain.capability(id::EXPRESS);
    assert_eq!(plain.port.config().word(express + 2), 0x0042);
    assert_eq!(plain.port.config().dword(express + 0x14), 0);
}

#[test]
fn an_empty_slot_is_off_and_one_that_starts_full_is_on() {
    let mut rig = Rig::new(Some(1));
    assert_eq!(rig.port.slot_control() & (POWER_OFF | POWER_INDICATOR), POWER_OFF | POWER_INDICATOR);
    assert!(!rig.link() && rig.port.slot_status() == 0);
    assert_eq!(rig.port.config().forwarding().unwrap().secondary, 0);
    rig.port.occupy();
    assert_eq!(rig.port.slot_control() & (POWER_OFF | POWER_INDICATOR), POWER_INDICATOR_ON);
    assert!(rig.link());
    assert_eq!(rig.port.slot_status(), PRESENT);
}

#[test]
fn a_device_comes_and_goes_as_pciehp_has_it() {
    let mut rig = Rig::new(Some(1));
    rig.enable_msi();
    rig.control(NOTIFY | POWER_OFF | POWER_INDICATOR | ATTENTION_INDICATOR_OFF);
    assert_eq!(rig.sources.fired(), 1, "the command completed");
    assert_eq!(rig.events(), COMMAND_COMPLETED);

    rig.port.plug();
    assert_eq!(rig.sources.fired(), 2);
    assert_eq!(rig.port.slot_status(), PRESENT | PRESENCE_CHANGED | ATTENTION_BUTTON);
    assert!(!rig.link(), "not before there is power");
    assert_eq!(rig.events(), PRESENCE_CHANGED | ATTENTION_BUTTON);
    // Power on, indicator blinking, then on.
    let on = NOTIFY | ATTENTION_INDICATOR_OFF;
    assert_eq!(rig.control(on | POWER_INDICATOR_BLINKS), Some(DeviceChange::Remap));
    assert_eq!(rig.events(), COMMAND_COMPLETED | LINK_CHANGED);
    assert!(rig.link());
    assert_eq!(rig.control(on | POWER_INDICATOR_ON), None);
    rig.events();

    let fired = rig.sources.fired();
    assert_eq!(rig.port.request_unplug(), UnplugRequest::Asked);
    assert_eq!(rig.port.request_unplug(), UnplugRequest::Asked);
    assert_eq!(rig.sources.fired(), fired + 1, "a second press would call it off");
    assert_eq!(rig.events(), ATTENTION_BUTTON);
    rig.control(on | POWER_INDICATOR_BLINKS);
    rig.events();
    rig.port.request_unplug();
    assert_eq!(rig.events(), 0, "the guest is at it");
    assert!(!rig.port.released());
    assert_eq!(rig.control(on | POWER_INDICATOR_BLINKS | POWER_OFF), Some(DeviceChange::ResetBelow));
    assert!(rig.port.released() && !rig.link());
    rig.port.unplug();
    assert_eq!(rig.events(), COMMAND_COMPLETED | LINK_CHANGED | PRESENCE_CHANGED);
    assert_eq!(rig.port.slot_status(), 0);
    assert_eq!(rig.port.request_unplug(), UnplugRequest::NothingThere);
}

#[test]
fn a_slot_that_the_guest_turns_off_keeps_its_device() {
    let mut rig = Rig::new(Some(1));
    rig.port.occupy();
    assert_eq!(rig.control(POWER_OFF | POWER_INDICATOR), Some(DeviceChange::ResetBelow));
    assert!(!rig.port.released() && rig.port.occupied());
    assert_eq!(rig.control(POWER_INDICATOR_ON), Some(DeviceChange::Remap));
    assert!(rig.link());
    rig.control(POWER_OFF | POWER_INDICATOR);
    assert_eq!(rig.port.request_unplug(), UnplugRequest::Released);
    // Pulled without asking.
    rig.control(POWER_INDICATOR_ON);
    rig.events();
    rig.port.unplug();
    assert_eq!(rig.events(), PRESENCE_CHANGED | LINK_CHANGED);
}

#[test]
fn the_link_can_be_turned_off() {
    let mut rig = Rig::new(None);
    let at = rig.port.link_register();
    assert_eq!(rig.write(at, LINK_DISABLE), Some(DeviceChange::ResetBelow));
    assert_eq!(rig.port.config().forwarding().unwrap(), crate::bridge::Forwarding::default());
    assert_eq!(rig.write(at, 0), Some(DeviceChange::Remap));
}

#[test]
fn without_messages_the_pin_holds_until_events_are_cleared() {
    let mut rig = Rig::new(Some(1));
    rig.control(NOTIFY);
    rig.events();
    assert!(!rig.pins.level(17));
    rig.port.plug();
    assert!(rig.pins.level(17));
    rig.events();
    assert!(!rig.pins.level(17));
}

#[test]
fn a_reset_leaves_the_device_in_its_slot() {
    let mut rig = Rig::new(Some(1));
    rig.port.occupy();
    rig.control(POWER_OFF);
    rig.port.request_unplug();
    rig.port.reset();
    assert!(rig.port.occupied() && rig.link() && !rig.port.released());
    assert_eq!(rig.port.slot_status(), PRESENT);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// Whatever a guest writes and a host does: state is kept by saving and restoring, the link is up only with a device
    /// that has power, and an event that the guest enables and clears comes through again.
    #[test]
    fn hostile_writes(
        steps in prop::collection::vec((0u8..6, any::<u16>(), any::<u32>(), 0usize..3), 1..60)
    ) {
        let mut rig = Rig::new(Some(1));
        for (what, offset, value, size) in steps {
            match what {
                0 => rig.port.plug(),
                1 => rig.port.unplug(),
                2 => {
                    let _ = rig.port.request_unplug();
                }
                3 => {
                    let at = rig.port.express + (offset & 0x3c);
                    rig.port.config_write(at, &value.to_le_bytes()[..1 << size]);
                }
                _ => {
                    let at = offset & 0xfff & !3;
                    rig.port.config_write(at, &value.to_le_bytes()[..1 << size]);
                }
            }
            prop_assert_eq!(rig.link(), rig.port.config.link == Some(true));
            prop_assert!(!rig.link() || (rig.port.occupied && rig.port.slot_powered()));
            prop_assert_eq!(rig.port.slot_status() & PRESENT != 0, rig.port.occupied);
            let saved = rig.port.save().unwrap();
            let mut other = Rig::new(Some(1));
            other.port.restore(&saved).unwrap();
            prop_assert_eq!(other.port.save().unwrap(), saved);
            prop_assert_eq!(other.port.config.forwarding(), rig.port.config.forwarding());
            prop_assert_eq!(other.sources.fired(), 0, "what was told is not told again");
        }
        rig.port.reset();
        rig.enable_msi();
        rig.control(NOTIFY);
        rig.events();
        let fired = rig.sources.fired();
        if rig.port.occupied { rig.port.unplug() } else { rig.port.plug() }
        prop_assert_eq!(rig.sources.fired(), fired + 1);
    }
}
