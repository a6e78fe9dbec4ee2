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
use machine::inspect::{Inspect, Value, json};
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
    /// How many lines hold the pin active.
    holders: u32,
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

impl Inspect for IoApic {
    fn inspect(&self) -> Value {
        let pins = self.pins.lock();
        let pins = pins.iter().enumerate().map(|(number, pin)| {
            json!({
                "pin": number,
                "entry": format!("{:#018x}", pin.entry.0),
                "holders": pin.holders,
                "fired": pin.fired,
                "routes_refused": pin.refused,
            })
        });
        json!({ "id": self.id >> 24, "pins": pins.collect::<Vec<_>>() })
    }
}

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
mod tests {
    use super::*;
    use machine::interrupt::MsiAllocator;
    use machine::interrupt::recording::{Source, Sources};

    fn ioapic() -> (IoApic, Sources) {
        let sources = Sources::default();
        let pins = (0..PINS).map(|_| sources.allocate().unwrap()).collect();
        (IoApic::new(pins), sources)
    }

    fn write_register(ioapic: &mut IoApic, index: u8, value: u32) {
        ioapic.write(INDEX, &u32::from(index).to_le_bytes());
        ioapic.write(DATA, &value.to_le_bytes());
    }

    fn read_register(ioapic: &mut IoApic, index: u8) -> u32 {
        ioapic.write(INDEX, &u32::from(index).to_le_bytes());
        let mut data = [0xff; 4];
        ioapic.read(DATA, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_entry(ioapic: &mut IoApic, pin: u8, entry: u64) {
        write_register(ioapic, FIRST_ENTRY + 2 * pin + 1, (entry >> 32) as u32);
        write_register(ioapic, FIRST_ENTRY + 2 * pin, entry as u32);
    }

    fn source(sources: &Sources, pin: usize) -> Arc<Source> {
        sources.get(pin).unwrap()
    }

    fn remote_irr(ioapic: &mut IoApic, pin: u8) -> bool {
        read_register(ioapic, FIRST_ENTRY + 2 * pin) & Entry::REMOTE_IRR as u32 != 0
    }

    const LEVEL_VECTOR_0X31: u64 = 0x8031;

    crate::conformance!(conformance, 0x50, ioapic().0);

    #[test]
    fn reads_as_the_datasheet_says() {
        let (mut ioapic, _sources) = ioapic();
        assert_eq!(read_register(&mut ioapic, VERSION), 0x0017_0020);
        for pin in 0..PINS as u8 {
            assert_eq!(read_register(&mut ioapic, FIRST_ENTRY + 2 * pin), 0x1_0000);
        }
        assert_eq!(read_register(&mut ioapic, FIRST_ENTRY + 2 * PINS as u8), 0, "no such pin");
        write_register(&mut ioapic, ID, 0xffff_ffff);
        assert_eq!(read_register(&mut ioapic, ID), 0x0f00_0000);
        set_entry(&mut ioapic, 3, u64::MAX);
        assert_eq!(read_register(&mut ioapic, FIRST_ENTRY + 6), 0x0001_afff, "status bits are read-only");
        assert_eq!(read_register(&mut ioapic, FIRST_ENTRY + 7), 0xffff_0000);
    }

    #[test]
    fn an_edge_is_sent_once_and_lost_while_masked() {
        let (mut ioapic, sources) = ioapic();
        let pins = ioapic.pins();
        pins.pulse(4);
        set_entry(&mut ioapic, 4, 0x0300_0000_0000_0034);
        assert_eq!(source(&sources, 4).fired(), 0);
        pins.set_level(4, true);
        assert_eq!(source(&sources, 4).fired(), 1);
        pins.set_level(4, true);
        pins.set_level(4, false);
        assert_eq!(source(&sources, 4).fired(), 1, "a second line on a held pin makes no edge");
        pins.set_level(4, false);
        pins.pulse(4);
        assert_eq!(source(&sources, 4).fired(), 2);
        let message = source(&sources, 4).message().unwrap();
        assert_eq!((message.address, message.data), (0xfee0_3000, 0x34));
        assert!(!remote_irr(&mut ioapic, 4));
    }

    #[test]
    fn a_level_is_sent_again_after_each_end_of_interrupt_while_held() {
        let (mut ioapic, sources) = ioapic();
        let pins = ioapic.pins();
        set_entry(&mut ioapic, 16, LEVEL_VECTOR_0X31);
        pins.set_level(16, true);
        assert!(remote_irr(&mut ioapic, 16));
        pins.set_level(16, true);
        assert_eq!(source(&sources, 16).fired(), 1);
        pins.end_of_interrupt(0x30);
        assert_eq!(source(&sources, 16).fired(), 1, "another vector's end is not ours");
        pins.end_of_interrupt(0x31);
        assert_eq!(source(&sources, 16).fired(), 2);
        pins.set_level(16, false);
        pins.set_level(16, false);
        ioapic.write(EOI, &0x31_u32.to_le_bytes());
        assert_eq!(source(&sources, 16).fired(), 2);
        assert!(!remote_irr(&mut ioapic, 16));
    }

    #[test]
    fn a_held_level_fires_on_unmasking_and_keeps_its_route_while_masked() {
        let (mut ioapic, sources) = ioapic();
        let pins = ioapic.pins();
        pins.set_level(17, true);
        set_entry(&mut ioapic, 17, LEVEL_VECTOR_0X31);
        assert_eq!(source(&sources, 17).fired(), 1);
        // Masked while in service, as Linux does for threaded handlers.
        set_entry(&mut ioapic, 17, LEVEL_VECTOR_0X31 | Entry::MASKED);
        assert!(source(&sources, 17).message().is_some());
        pins.end_of_interrupt(0x31);
        assert_eq!(source(&sources, 17).fired(), 1, "masked: not sent again");
        set_entry(&mut ioapic, 17, LEVEL_VECTOR_0X31);
        assert_eq!(source(&sources, 17).fired(), 2);
    }

    #[test]
    fn switching_to_edge_and_back_ends_an_interrupt() {
        let (mut ioapic, sources) = ioapic();
        set_entry(&mut ioapic, 18, LEVEL_VECTOR_0X31);
        ioapic.pins().set_level(18, true);
        set_entry(&mut ioapic, 18, Entry::MASKED | 0x31);
        assert!(!remote_irr(&mut ioapic, 18));
        set_entry(&mut ioapic, 18, LEVEL_VECTOR_0X31);
        assert_eq!(source(&sources, 18).fired(), 2);
    }

    #[test]
    fn wide_destinations_and_modes_reach_the_message() {
        let (mut ioapic, sources) = ioapic();
        // Destination 0x7f12: upper 7 bits in 55-49, lower 8 in 63-56. Bit 48 is dropped.
        set_entry(&mut ioapic, 9, 0x12 << 56 | 0x7f << 49 | 1 << 48 | 1 << 11 | 1 << 8 | 0x8041);
        let message = source(&sources, 9).message().unwrap();
        assert_eq!(message.address, 0xfee0_0000 | 0x12 << 12 | 0x7f << 5 | 1 << 2);
        assert_eq!(message.data, 0x41 | 1 << 8 | 1 << 14 | 1 << 15);
        // An NMI is an edge, whatever its trigger mode.
        set_entry(&mut ioapic, 10, 4 << 8 | 0x8000);
        assert_eq!(source(&sources, 10).message().unwrap().data, 4 << 8);
        ioapic.pins().set_level(10, true);
        assert!(!remote_irr(&mut ioapic, 10));
        assert_eq!(source(&sources, 10).fired(), 1);
    }

    #[test]
    fn external_and_illegal_vectors_send_nothing() {
        let (mut ioapic, sources) = ioapic();
        set_entry(&mut ioapic, 0, 7 << 8 | 0x20);
        set_entry(&mut ioapic, 1, 0x0f);
        let pins = ioapic.pins();
        pins.pulse(0);
        pins.pulse(1);
        pins.pulse(PINS);
        pins.set_level(u32::MAX, true);
        assert_eq!(sources.fired(), 0);
    }

    #[test]
    fn an_interrupt_in_service_ends_after_a_restore() {
        let (mut old, _sources) = ioapic();
        set_entry(&mut old, 20, LEVEL_VECTOR_0X31);
        old.pins().set_level(20, true);
        set_entry(&mut old, 20, LEVEL_VECTOR_0X31 | Entry::MASKED);
        let (mut new, sources) = ioapic();
        new.restore(&old.save().unwrap()).unwrap();
        new.pins().set_level(20, true);
        assert_eq!(source(&sources, 20).fired(), 0, "it is in service already");
        assert!(source(&sources, 20).message().is_some(), "its end must be reported");
        new.pins().end_of_interrupt(0x31);
        set_entry(&mut new, 20, LEVEL_VECTOR_0X31);
        assert_eq!(source(&sources, 20).fired(), 1);
    }
}
