//! Registers the ACPI tables point at: sleep, reset, Generic Event Device selector, power-management timer
//! (ACPI 6.5, 4.8.3.7 and 5.6.9; the timer 4.8.3.3).
//!
//! | offset | register | access |
//! |---|---|---|
//! | 0 | sleep status | read: 0, the machine never reports a wake |
//! | 1 | sleep control | write: type 5 in bits 2-4 with bit 5 (enable) powers off |
//! | 2 | reset | writing 1 restarts the machine |
//! | 4-7 | event selector | read: pending events, which reading clears |
//! | 8-11 | power-management timer | read: 32 bits, 3.579545 MHz |

use crate::platform::{PlatformDevice, read_bytes, write_bytes};
use machine::bus::{BusDevice, Range};
use machine::clock::Clock;
use machine::effect::Effect;
use machine::interrupt::InterruptLine;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const SLEEP_CONTROL: u64 = 1;
const RESET: u64 = 2;
const EVENTS: u64 = 4;
const EVENTS_END: u64 = 7;
const PM_TIMER: u64 = 8;
const PM_TIMER_END: u64 = 11;

const SLEEP_ENABLE: u8 = 1 << 5;
const RESET_VALUE: u8 = 1;
const PM_TIMER_HZ: u128 = 3_579_545;

/// The sleep type that means "soft off", as the DSDT's `_S5` says.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Something that happened to the machine, for the guest's Generic Event Device to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// The power button was pressed.
    PowerButton = 1 << 0,
    /// A CPU came or is asked to go.
    Cpu = 1 << 1,
    /// Memory came or is asked to go.
    Memory = 1 << 2,
    /// A PCI function came or is asked to go.
    Pci = 1 << 3,
    /// The machine has a new generation id: its guest goes on from a copy of its state.
    Generation = 1 << 4,
}

const ALL_EVENTS: u32 = 0x1f;

/// The register block.
pub struct AcpiRegisters {
    clock: Arc<dyn Clock>,
    line: InterruptLine,
    events: u32,
    /// Added to the clock's ticks, so that the timer goes on where it was when the machine was saved.
    timer_offset: u32,
    raised: u64,
}

impl AcpiRegisters {
    /// Where the block is.
    pub const PORTS: Range = Range { start: 0x600, size: 12 };

    /// A block without pending events. `line` is the Generic Event Device's interrupt, edge-triggered.
    pub fn new(clock: Arc<dyn Clock>, line: InterruptLine) -> Self {
        Self { clock, line, events: 0, timer_offset: 0, raised: 0 }
    }

    /// Tells the guest of an event. Events not read yet are merged.
    pub fn raise(&mut self, event: Event) {
        self.events |= event as u32;
        self.raised = self.raised.saturating_add(1);
        self.line.pulse();
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) {
        self.raise(Event::PowerButton);
    }

    fn clock_ticks(&self) -> u32 {
        let ticks = u128::from(self.clock.monotonic_ns()).saturating_mul(PM_TIMER_HZ) / 1_000_000_000;
        // The timer is 32 bits wide and wraps.
        ticks as u32
    }

    fn timer(&self) -> u32 {
        self.clock_ticks().wrapping_add(self.timer_offset)
    }

    fn write_register(&mut self, offset: u64, value: u8) -> Option<Effect> {
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_S5 => {
                Some(Effect::PowerOff)
            }
            RESET if value == RESET_VALUE => Some(Effect::Reset),
            _ => None,
        }
    }
}

/// Byte `offset - start` of a 32-bit register.
fn byte_of(value: u32, offset: u64, start: u64) -> u8 {
    let index = usize::try_from(offset.wrapping_sub(start)).unwrap_or(usize::MAX);
    value.to_le_bytes().get(index).copied().unwrap_or(0)
}

impl BusDevice for AcpiRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Taken once, so that the bytes of one access belong together.
        let timer = self.timer();
        read_bytes(offset, data, |at| match at {
            EVENTS..=EVENTS_END => {
                let byte = byte_of(self.events, at, EVENTS);
                let shift = at.wrapping_sub(EVENTS).wrapping_mul(8) as u32;
                self.events &= !u32::from(byte).wrapping_shl(shift);
                byte
            }
            PM_TIMER..=PM_TIMER_END => byte_of(timer, at, PM_TIMER),
            _ => 0,
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        write_bytes(offset, data, |at, value| self.write_register(at, value))
    }
}

impl PlatformDevice for AcpiRegisters {
    fn reset(&mut self) {
        self.events = 0;
        self.timer_offset = 0;
    }
}

machine::inspect!(AcpiRegisters, this => {
    hex pending_events: this.events,
    events_raised: this.raised,
    pm_timer: this.timer(),
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedAcpiRegisters {
    events: u32,
    pm_timer: u32,
}

impl SavedFields for SavedAcpiRegisters {
    const KIND: &'static str = "acpi-registers";
    const VERSION: u32 = 1;
}

impl Saved for AcpiRegisters {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedAcpiRegisters { events: self.events, pm_timer: self.timer() })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedAcpiRegisters = state.read()?;
        self.events = saved.events & ALL_EVENTS;
        self.timer_offset = saved.pm_timer.wrapping_sub(self.clock_ticks());
        if self.events != 0 {
            // The edge may not have been taken before the machine was saved; a second one does no harm.
            self.line.pulse();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::clock::ManualClock;
    use machine::interrupt::recording::Pins;
    use std::time::Duration;

    fn block(clock: &Arc<ManualClock>, pins: &Arc<Pins>) -> AcpiRegisters {
        AcpiRegisters::new(clock.clone(), InterruptLine::new(pins.clone(), 5))
    }

    fn read_u32(block: &mut AcpiRegisters, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        block.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    crate::conformance!(conformance, AcpiRegisters::PORTS.size, block(&Arc::default(), &Arc::default()));

    #[test]
    fn only_s5_with_enable_powers_off() {
        let mut block = block(&Arc::default(), &Arc::default());
        for value in 0..=0xff_u8 {
            let off = block.write(SLEEP_CONTROL, &[value]) == Some(Effect::PowerOff);
            assert_eq!(off, value & 0b11_1100 == 0b11_0100, "{value:#x}");
        }
        assert_eq!(block.write(RESET, &[0]), None);
        assert_eq!(block.write(RESET, &[1]), Some(Effect::Reset));
    }

    #[test]
    fn an_event_is_signalled_by_an_edge_and_read_once() {
        let pins = Arc::new(Pins::default());
        let mut block = block(&Arc::default(), &pins);
        block.press_power_button();
        block.raise(Event::Pci);
        assert_eq!(pins.edges(5), 2);
        assert!(!pins.level(5));
        assert_eq!(read_u32(&mut block, EVENTS), 0b1001);
        assert_eq!(read_u32(&mut block, EVENTS), 0);
    }

    #[test]
    fn the_timer_counts_at_its_frequency_and_wraps() {
        let clock = Arc::new(ManualClock::default());
        let mut block = block(&clock, &Arc::default());
        let start = read_u32(&mut block, PM_TIMER);
        clock.advance(Duration::from_secs(10));
        assert_eq!(read_u32(&mut block, PM_TIMER).wrapping_sub(start), 35_795_450);
        // 1200 s are 4295454000 ticks, more than 32 bits hold.
        clock.advance(Duration::from_secs(1190));
        assert_eq!(u64::from(read_u32(&mut block, PM_TIMER)), 4_295_454_000 - (1 << 32));
    }

    #[test]
    fn the_timer_and_a_pending_event_go_on_after_a_restore() {
        let clock = Arc::new(ManualClock::default());
        let mut old = block(&clock, &Arc::default());
        clock.advance(Duration::from_secs(100));
        old.press_power_button();
        let state = old.save().unwrap();
        let ticks = read_u32(&mut old, PM_TIMER);
        let pins = Arc::new(Pins::default());
        let mut new = block(&Arc::new(ManualClock::default()), &pins);
        new.restore(&state).unwrap();
        assert_eq!(read_u32(&mut new, PM_TIMER), ticks);
        assert_eq!(pins.edges(5), 1, "the guest is told again of what it has not read");
    }
}
