//! I/O APIC (Intel 82093AA, with the EOI register of version 0x20): what wired interrupt lines end at.
//!
//! Each of the 24 pins has a redirection entry that says which interrupt message the pin sends. The message goes
//! out through a [`MsiSource`] per pin, so that the local APICs may live in the hypervisor (a "split" interrupt
//! controller). With level-triggered pins the CPU's end of interrupt comes back through
//! [`IoApicPins::end_of_interrupt`], and the message is sent again while the line is still held.
//!
//! Differences from the 82093AA: the pin polarity bit is kept but means nothing, since lines say "active" and
//! not a voltage; destinations have 15 bits (bits 49 to 55 of an entry hold the upper ones), for guests that were
//! told so by `KVM_FEATURE_MSI_EXT_DEST_ID`; entries with the "external interrupt" delivery mode send nothing.
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | index (8 bits) |
//! | 0x10 | data: the register chosen by the index |
//! | 0x40 | EOI: ends the interrupt with the vector written |
//!
//! | index | register |
//! |---|---|
//! | 0 | id, bits 24 to 27 |
//! | 1 | version 0x20, highest entry in bits 16 to 23 |
//! | 2 | arbitration id |
//! | 0x10 + 2n, +1 | redirection entry n, low and high half |

use crate::platform::{PlatformDevice, put_value, value_of};
use machine::bus::{BusDevice, Range};
use machine::effect::Effect;
use machine::inspect::Inspect;
use machine::interrupt::{InterruptController, MsiMessage, MsiSource};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Number of pins.
pub const PINS: u32 = 24;

const INDEX: u64 = 0x00;
const DATA: u64 = 0x10;
const EOI: u64 = 0x40;

const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const FIRST_ENTRY: u8 = 0x10;
const VERSION_VALUE: u32 = 0x20 | (PINS - 1) << 16;
const ID_MASK: u32 = 0x0f00_0000;

/// A redirection entry's fields (82093AA, 3.2.4).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const MASKED: u64 = 1 << 16;
    const LEVEL: u64 = 1 << 15;
    const REMOTE_IRR: u64 = 1 << 14;
    const DELIVERY_STATUS: u64 = 1 << 12;
    const LOGICAL: u64 = 1 << 11;
    const READ_ONLY: u64 = Self::REMOTE_IRR | Self::DELIVERY_STATUS;
    /// Bits that exist: 0 to 16 and 48 to 63.
    const WRITABLE: u64 = 0xffff_0000_0001_ffff & !Self::READ_ONLY;
    const POWER_ON: Self = Self(Self::MASKED);

    const FIXED: u8 = 0;
    const LOWEST_PRIORITY: u8 = 1;
    const EXTERNAL: u8 = 7;

    fn is(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    fn set(&mut self, bit: u64, on: bool) {
        self.0 = if on { self.0 | bit } else { self.0 & !bit };
    }

    fn vector(self) -> u8 {
        self.0 as u8
    }

    fn delivery_mode(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Whether the pin waits for an end of interrupt. NMI and the like are edges whatever the trigger bit says.
    fn is_level(self) -> bool {
        self.is(Self::LEVEL) && matches!(self.delivery_mode(), Self::FIXED | Self::LOWEST_PRIORITY)
    }

    /// The message the entry stands for; `None` if a local APIC would not take it.
    fn message(self) -> Option<MsiMessage> {
        let mode = self.delivery_mode();
        let vectored = matches!(mode, Self::FIXED | Self::LOWEST_PRIORITY);
        // Vectors 0 to 15 are illegal (Intel SDM 3A, 11.5.2).
        if mode == Self::EXTERNAL || (vectored && self.vector() < 16) {
            return None;
        }
        // Entry bits 63-56 go to address bits 19-12, bits 55-49 to bits 11-5. Bit 48 would ask for interrupt
        // remapping, which does not exist here.
        let destination = (self.0 >> 49) << 5;
        let logical = u64::from(self.is(Self::LOGICAL)) << 2;
        let mut data = u32::from(self.vector()) | u32::from(mode) << 8;
        if self.is_level() {
            data |= 1 << 15 | 1 << 14;
        }
        Some(MsiMessage { address: 0xfee0_0000 | destination | logical, data, requester: 0 })
    }
}

struct Pin {
    source: Arc<dyn MsiSource>,
    entry: Entry,
    /// How many lines hold the pin active. Negative for a moment when a line's two changes, made by two threads, come
    /// here in the wrong order.
    holders: i32,
    /// What `source` delivers. Kept while the pin is masked, since the hypervisor must still report the end of
    /// an interrupt that is in service then.
    routed: Option<MsiMessage>,
    fired: u64,
    refused: u64,
}

impl Pin {
    /// Sends the message of an unmasked entry.
    fn fire(&mut self) {
        if self.routed.is_some() {
            self.source.fire();
            self.fired = self.fired.saturating_add(1);
            if self.entry.is_level() {
                self.entry.set(Entry::REMOTE_IRR, true);
            }
        }
    }

    /// Sends what a level-triggered pin owes: it is held, unmasked, and no earlier message is in service.
    fn fire_if_held(&mut self) {
        let entry = self.entry;
        if self.holders > 0 && entry.is_level() && !entry.is(Entry::MASKED) && !entry.is(Entry::REMOTE_IRR) {
            self.fire();
        }
    }

    fn edge(&mut self) {
        // An edge on a masked pin is lost (82093AA, 3.2.4, bit 16).
        if !self.entry.is_level() && !self.entry.is(Entry::MASKED) {
            self.fire();
        }
    }

    fn set_level(&mut self, active: bool) {
        if active {
            self.holders = self.holders.saturating_add(1);
            if self.holders == 1 {
                self.edge();
            }
            self.fire_if_held();
        } else {
            self.holders = self.holders.saturating_sub(1);
        }
    }

    fn pulse(&mut self) {
        if self.entry.is_level() {
            self.set_level(true);
            self.set_level(false);
        } else {
            self.edge();
        }
    }

    /// Takes a changed entry into force.
    fn entry_changed(&mut self) {
        if !self.entry.is_level() {
            // Guests without the EOI register switch to edge and back to end an interrupt.
            self.entry.set(Entry::REMOTE_IRR, false);
        }
        if !self.entry.is(Entry::MASKED) {
            let message = self.entry.message();
            if message != self.routed {
                match self.source.route(message) {
                    Ok(()) => self.routed = message,
                    Err(error) => {
                        self.refused = self.refused.saturating_add(1);
                        self.routed = None;
                        tracing::warn!(%error, "an I/O APIC pin could not be routed");
                    }
                }
            }
        }
        self.fire_if_held();
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        if self.entry.is(Entry::REMOTE_IRR) && self.entry.vector() == vector {
            self.entry.set(Entry::REMOTE_IRR, false);
            self.fire_if_held();
        }
    }
}

/// The pins, as interrupt lines and CPU threads see them.
pub struct IoApicPins {
    pins: Mutex<Vec<Pin>>,
}

impl IoApicPins {
    fn lock(&self) -> MutexGuard<'_, Vec<Pin>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A CPU ended the level-triggered interrupt with this vector.
    pub fn end_of_interrupt(&self, vector: u8) {
        for pin in self.lock().iter_mut() {
            pin.end_of_interrupt(vector);
        }
    }
}

impl InterruptController for IoApicPins {
    fn set_level(&self, gsi: u32, active: bool) {
        if let Some(pin) = self.lock().get_mut(gsi as usize) {
            pin.set_level(active);
        }
    }

    fn pulse(&self, gsi: u32) {
        if let Some(pin) = self.lock().get_mut(gsi as usize) {
            pin.pulse();
        }
    }
}

/// The register window.
pub struct IoApic {
    pins: Arc<IoApicPins>,
    index: u8,
    id: u32,
}

impl IoApic {
    /// Where the window is, as the MADT says.
    pub const WINDOW: Range = Range { start: 0xfec0_0000, size: 0x1000 };

    /// An I/O APIC whose pin n sends through `sources[n]`; sources above [`PINS`] are not used, and pins without
    /// one send nothing.
    pub fn new(sources: Vec<Arc<dyn MsiSource>>) -> Self {
        let pin =
            |source| Pin { source, entry: Entry::POWER_ON, holders: 0, routed: None, fired: 0, refused: 0 };
        let pins = sources.into_iter().take(PINS as usize).map(pin).collect();
        Self { pins: Arc::new(IoApicPins { pins: Mutex::new(pins) }), index: 0, id: 0 }
    }

    /// The pins, for interrupt lines and for CPUs' ends of interrupt.
    pub fn pins(&self) -> Arc<IoApicPins> {
        Arc::clone(&self.pins)
    }

    /// The pin and the shift of the half of its entry that the index chooses.
    fn chosen_entry(&self) -> Option<(usize, u32)> {
        let half = self.index.checked_sub(FIRST_ENTRY)?;
        Some((usize::from(half >> 1), u32::from(half & 1).wrapping_mul(32)))
    }

    fn read_data(&self) -> u32 {
        match self.index {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            _ => {
                let Some((number, shift)) = self.chosen_entry() else { return 0 };
                self.pins.lock().get(number).map_or(0, |pin| pin.entry.0.wrapping_shr(shift) as u32)
            }
        }
    }

    fn write_data(&mut self, value: u32) {
        if self.index == ID {
            self.id = value & ID_MASK;
        }
        let Some((number, shift)) = self.chosen_entry() else { return };
        if let Some(pin) = self.pins.lock().get_mut(number) {
            let half = u64::from(u32::MAX).wrapping_shl(shift) & Entry::WRITABLE;
            pin.entry.0 = pin.entry.0 & !half | u64::from(value).wrapping_shl(shift) & half;
            pin.entry_changed();
        }
    }
}

impl BusDevice for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            INDEX => u32::from(self.index),
            DATA => self.read_data(),
            _ => 0,
        };
        put_value(data, u64::from(value));
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let value = value_of(data) as u32;
        match offset {
            INDEX => self.index = value as u8,
            DATA => self.write_data(value),
            EOI => self.pins.end_of_interrupt(value as u8),
            _ => {}
        }
        None
    }
}

impl PlatformDevice for IoApic {
    fn reset(&mut self) {
        self.index = 0;
        self.id = 0;
        for pin in self.pins.lock().iter_mut() {
            pin.entry = Entry::POWER_ON;
            pin.entry_changed();
        }
    }
}

machine::inspect!(IoApic, this => {
    id: this.id >> 24,
    pins: this.pins.lock().iter().map(Inspect::inspect).collect::<Vec<_>>(),
});

machine::inspect!(Pin, this => {
    hex entry: this.entry.0,
    holders,
    fired,
    routes_refused: this.refused,
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedIoApic {
    index: u8,
    id: u32,
    /// Redirection entries, remote IRR included. Which pins are held is not here: each line tells it anew.
    entries: Vec<u64>,
}

impl SavedFields for SavedIoApic {
    const KIND: &'static str = "ioapic";
    const VERSION: u32 = 1;
}

impl Saved for IoApic {
    fn save(&self) -> Result<SavedState, StateError> {
        let entries = self.pins.lock().iter().map(|pin| pin.entry.0).collect();
        SavedState::of(&SavedIoApic { index: self.index, id: self.id, entries })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedIoApic = state.read()?;
        let mut pins = self.pins.lock();
        if saved.entries.len() > pins.len() {
            return Err(StateError::Value {
                kind: SavedIoApic::KIND,
                reason: format!("it has {} pins, and this machine's has {}", saved.entries.len(), pins.len()),
            });
        }
        self.index = saved.index;
        self.id = saved.id & ID_MASK;
        for (pin, &entry) in pins.iter_mut().zip(&saved.entries) {
            // A masked pin may have an interrupt in service, whose end is to be reported: route it too.
            let remote_irr = entry & Entry::REMOTE_IRR;
            pin.entry = Entry(entry & (Entry::WRITABLE & !Entry::MASKED) | remote_irr);
            let masked = entry & Entry::MASKED;
            let held = std::mem::take(&mut pin.holders);
            pin.entry_changed();
            pin.entry.0 |= masked;
            pin.holders = held;
            pin.fire_if_held();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
