//! PCI Express ports: root ports, and the upstream and downstream ports of switches (PCIe 6.0, 1.3).
//!
//! A root or downstream port may have a slot, into which devices are plugged while the guest runs (PCIe 6.0, 6.7).
//! Its controls are those that Linux's pciehp and others expect: power controller, indicators, attention button.
//!
//! - In: the owner inserts the functions, then calls [`Port::plug`], which presses the attention button. The guest is told, powers the slot and finds them.
//! - Out: [`Port::request_unplug`] presses the attention button. The guest stops using the device and powers the slot
//!   off, which the owner hears as [`DeviceChange::ResetBelow`]. When that is done, [`Port::released`] says
//!   whether the device may go; the owner removes the functions and calls [`Port::unplug`].
//! - A slot that the guest powers off on its own keeps its device, which is there again when it is powered on.

use crate::capability::id;
use crate::config::{ConfigError, ConfigSpace, ConfigState, Identity};
use crate::express::{ExpressKind, LINK_ACTIVE, LINK_DISABLE, PortCapabilities, express_register, slot};
use crate::function::Function;
use crate::intx::Intx;
use crate::msi::Msi;
use machine::effect::DeviceChange;
use machine::inspect::{Value, hex, json};
use machine::interrupt::MsiAllocator;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which port it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// Of the root complex.
    Root,
    /// Of a switch, towards the root complex.
    Upstream,
    /// Of a switch, away from the root complex.
    Downstream,
}

/// What a port is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortOptions {
    /// Which port it is.
    pub kind: PortKind,
    /// Which of the ports of its root complex or switch it is.
    pub port: u8,
    /// The number of its slot in the machine, 0 to 8191; `None` for a port without a slot.
    pub slot: Option<u16>,
    /// Whether I/O ports pass through it.
    pub io: bool,
}

/// What became of asking the guest to release a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnplugRequest {
    /// The guest was asked, or is at it.
    Asked,
    /// Nobody uses it: it can go at once.
    Released,
    /// The slot is empty, or there is no slot.
    NothingThere,
}

/// A port.
pub struct Port {
    config: ConfigSpace,
    kind: PortKind,
    express: u16,
    /// The slot's number, if there is one.
    slot: Option<u16>,
    occupied: bool,
    unplug_requested: bool,
    /// The hotplug interrupt is due: an MSI is sent when it becomes so.
    interrupting: bool,
    presses: u64,
    completed_commands: u64,
}

impl Port {
    /// A port at power-on, its slot empty. It interrupts through `msi` and, if given, the pin.
    ///
    /// # Errors
    /// Never: the registers fit.
    pub fn new(
        options: PortOptions,
        msi: Arc<dyn MsiAllocator>,
        intx: Option<Intx>,
    ) -> Result<Self, ConfigError> {
        // The ids of ports that guests know from other machine monitors, and that no quirk is for.
        let (vendor, device) = match options.kind {
            PortKind::Root => (0x1b36, 0x000c),
            PortKind::Upstream => (0x104c, 0x8232),
            PortKind::Downstream => (0x104c, 0x8233),
        };
        let identity = Identity { vendor, device, class: 0x06_04_00, ..Identity::default() };
        let mut config = ConfigSpace::bridge(identity, options.io);
        let slot = options.slot.filter(|_| options.kind != PortKind::Upstream);
        let capabilities = PortCapabilities { port: options.port, slot };
        let kind = match options.kind {
            PortKind::Root => ExpressKind::RootPort(capabilities),
            PortKind::Upstream => ExpressKind::UpstreamPort,
            PortKind::Downstream => ExpressKind::DownstreamPort(capabilities),
        };
        config.add_power_management()?;
        let express = config.add_express(kind, false)?;
        config.add_msi(true, Msi::new(1, true, msi))?;
        let [low, high] = 0x1af4u16.to_le_bytes();
        config.add_capability(id::SUBSYSTEM, &[0, 0, low, high, 0, 0], &[])?;
        config.add_error_reporting(options.kind == PortKind::Root)?;
        if options.kind != PortKind::Upstream {
            config.add_access_control()?;
        }
        if let Some(intx) = intx {
            config.add_intx(1, intx);
        }
        let mut port = Self {
            config,
            kind: options.kind,
            express,
            slot,
            occupied: false,
            unplug_requested: false,
            interrupting: false,
            presses: 0,
            completed_commands: 0,
        };
        port.power_on();
        Ok(port)
    }

    /// Which port it is.
    pub fn kind(&self) -> PortKind {
        self.kind
    }

    /// Whether devices can be plugged in and out while the guest runs.
    pub fn has_slot(&self) -> bool {
        self.slot.is_some()
    }

    /// Whether there is a device in the slot.
    pub fn occupied(&self) -> bool {
        self.occupied
    }

    /// Before the guest runs: there is a device in the slot, and it is powered.
    pub fn occupy(&mut self) {
        self.occupied = true;
        self.power_on();
    }

    /// A device is plugged in, and the guest is told. The function below it are in their segment already; their
    /// windows and routes are to be found anew.
    pub fn plug(&mut self) {
        if self.slot.is_none() || self.occupied {
            return;
        }
        self.occupied = true;
        self.unplug_requested = false;
        // Whoever puts a card in a slot with a button presses it too: Linux listens for nothing else there while the slot is off.
        let pressed = if self.slot_powered() { 0 } else { slot::ATTENTION_BUTTON };
        self.presses = self.presses.saturating_add(u64::from(pressed));
        let status = slot::PRESENT | slot::PRESENCE_CHANGED | pressed;
        self.set_status(status, status);
        self.follow_link();
        self.interrupt();
    }

    /// Whether the guest has the slot powered: what is in it does not go without the guest's release.
    pub fn is_held(&self) -> bool {
        self.occupied && self.slot.is_some() && self.slot_powered()
    }

    /// Asks the guest to release the device. Asked again, it only reminds a guest that did not take notice: in the
    /// time in which a guest lets its user change their mind, another press of the button would call it off.
    pub fn request_unplug(&mut self) -> UnplugRequest {
        if !self.occupied || self.slot.is_none() {
            return UnplugRequest::NothingThere;
        }
        if !self.slot_powered() {
            return UnplugRequest::Released;
        }
        let blinking = self.slot_control() & slot::POWER_INDICATOR == slot::POWER_INDICATOR_BLINKS;
        let unseen = self.slot_status() & slot::ATTENTION_BUTTON != 0;
        if !(self.unplug_requested && (blinking || unseen)) {
            self.presses = self.presses.saturating_add(1);
            self.set_status(slot::ATTENTION_BUTTON, slot::ATTENTION_BUTTON);
            self.interrupt();
        }
        self.unplug_requested = true;
        UnplugRequest::Asked
    }

    /// The device is no longer to go: one that the guest releases later stays.
    pub fn forget_unplug(&mut self) {
        self.unplug_requested = false;
    }

    /// Whether the device was asked for and the guest has released it.
    pub fn released(&self) -> bool {
        self.unplug_requested && self.occupied && !self.slot_powered()
    }

    /// The device is out, asked for or by surprise, and the guest is told. Routes are to be found anew.
    pub fn unplug(&mut self) {
        if self.slot.is_none() || !self.occupied {
            return;
        }
        self.occupied = false;
        self.unplug_requested = false;
        self.set_status(slot::PRESENT | slot::PRESENCE_CHANGED, slot::PRESENCE_CHANGED);
        self.follow_link();
        self.interrupt();
    }

    /// The slot's registers as at power-on: powered if there is something in it.
    fn power_on(&mut self) {
        if self.slot.is_none() {
            self.set_link_status(true);
            self.config.set_link(true);
            return;
        }
        let (power, present) = match self.occupied {
            true => (slot::POWER_INDICATOR_ON, slot::PRESENT),
            false => (slot::POWER_INDICATOR | slot::POWER_OFF, 0),
        };
        let control = power | slot::ATTENTION_INDICATOR_OFF;
        let value = u32::from(control) | u32::from(present) << 16;
        self.config.set_dword(self.slot_register(), u32::MAX, value);
        self.set_link_status(self.occupied);
        self.config.set_link(self.occupied);
        self.unplug_requested = false;
        self.interrupting = false;
    }

    fn slot_register(&self) -> u16 {
        self.express.wrapping_add(express_register::SLOT_CONTROL)
    }

    fn slot_control(&self) -> u16 {
        self.config.word(self.slot_register())
    }

    fn slot_status(&self) -> u16 {
        self.config.word(self.slot_register().wrapping_add(2))
    }

    fn set_status(&mut self, mask: u16, value: u16) {
        self.config.set_dword(self.slot_register(), u32::from(mask) << 16, u32::from(value) << 16);
    }

    fn slot_powered(&self) -> bool {
        self.slot_control() & slot::POWER_OFF == 0
    }

    fn link_register(&self) -> u16 {
        self.express.wrapping_add(express_register::LINK_CONTROL)
    }

    fn set_link_status(&mut self, up: bool) {
        let (mask, active) = (u32::from(LINK_ACTIVE) << 16, self.slot.is_some() && up);
        self.config.set_dword(self.link_register(), mask, if active { mask } else { 0 });
    }

    /// Whether the link is to be up: there is something powered at its other end, and it is not turned off.
    fn link_wanted(&self) -> bool {
        let enabled = self.config.word(self.link_register()) & LINK_DISABLE == 0;
        enabled && (self.slot.is_none() || (self.occupied && self.slot_powered()))
    }

    /// Brings the link up or down. Returns what follows from that.
    fn follow_link(&mut self) -> Option<DeviceChange> {
        let up = self.link_wanted();
        if self.config.link == Some(up) {
            return None;
        }
        self.config.set_link(up);
        self.set_link_status(up);
        if self.slot.is_some() {
            self.set_status(slot::LINK_CHANGED, slot::LINK_CHANGED);
        }
        Some(if up { DeviceChange::Remap } else { DeviceChange::ResetBelow })
    }

    /// Interrupts if an event is enabled that was not before (PCIe 6.0, 6.7.3.4).
    fn interrupt(&mut self) {
        if self.slot.is_none() {
            return;
        }
        let (control, status) = (self.slot_control(), self.slot_status());
        // The enable bits are where the status bits are, apart from that of the link.
        let same = control & status & 0x1f;
        let link = status & slot::LINK_CHANGED != 0 && control & 1 << 12 != 0;
        let due = control & slot::INTERRUPT_ENABLE != 0 && (same != 0 || link);
        if let Some(intx) = self.config.intx() {
            intx.set(due);
        }
        let Some(msi) = self.config.msi().map(Msi::handle) else { return };
        let rises = due && msi.enabled() && !self.interrupting;
        self.interrupting = due && msi.enabled();
        if rises {
            msi.signal(0);
        }
    }
}

impl Function for Port {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Option<DeviceChange> {
        let change = self.config.write(offset, data);
        let at_control = offset == self.slot_register() || offset == self.slot_register().wrapping_add(1);
        if self.slot.is_some() && at_control {
            // What the control says holds at once.
            self.set_status(slot::COMMAND_COMPLETED, slot::COMMAND_COMPLETED);
            self.completed_commands = self.completed_commands.saturating_add(1);
        }
        let link = match offset & !3 {
            at if at == self.slot_register() || at == self.link_register() => self.follow_link(),
            _ => None,
        };
        self.interrupt();
        link.or(change)
    }

    fn bar_read(&mut self, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) -> Option<DeviceChange> {
        None
    }

    fn reset(&mut self) {
        self.config.reset();
        self.power_on();
    }
}

machine::inspect!(Port, this => {
    kind: PortState::KIND,
    port: format!("{:?}", this.kind).to_lowercase(),
    slot: this.slot_tree(),
    ..this.forwarding_tree(),
    link: this.config.link,
    pci: this.config,
});

impl Port {
    fn slot_tree(&self) -> Value {
        let Some(number) = self.slot else { return Value::Null };
        json!({
            "number": number,
            "occupied": self.occupied,
            "powered": self.slot_powered(),
            "unplug_requested": self.unplug_requested,
            "control": hex(&self.slot_control()),
            "status": hex(&self.slot_status()),
            "presses": self.presses,
            "commands": self.completed_commands,
        })
    }

    fn forwarding_tree(&self) -> Value {
        let forwarding = self.config.forwarding().unwrap_or_default();
        let range = |range: Option<machine::bus::Range>| {
            range.map(|range| format!("{:#x}-{:#x}", range.start, range.last()))
        };
        json!({
            "buses": format!("{:02x}-{:02x}", forwarding.secondary, forwarding.subordinate),
            "io": range(forwarding.windows.io),
            "memory": range(forwarding.windows.memory),
            "prefetchable": range(forwarding.windows.prefetchable),
        })
    }
}

/// What is saved of a [`Port`].
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct PortState {
    config: ConfigState,
    occupied: bool,
    unplug_requested: bool,
}

impl SavedFields for PortState {
    const KIND: &'static str = "pci-port";
    const VERSION: u32 = 1;
}

impl Saved for Port {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&PortState {
            config: self.config.save(),
            occupied: self.occupied,
            unplug_requested: self.unplug_requested,
        })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.occupied = false;
        self.reset();
        let state: PortState = state.read()?;
        self.config.restore(&state.config)?;
        self.occupied = state.occupied && self.slot.is_some();
        self.unplug_requested = state.unplug_requested && self.occupied;
        if self.slot.is_some() {
            self.set_status(slot::PRESENT, if self.occupied { slot::PRESENT } else { 0 });
        }
        let up = self.link_wanted();
        self.config.set_link(up);
        self.set_link_status(up);
        // An interrupt that was due was sent before the state was saved; the pin is level-triggered.
        self.interrupting = true;
        self.interrupt();
        Ok(())
    }
}

#[cfg(test)]
#[path = "port_tests.rs"]
mod tests;
