//! PL061 general-purpose input and output (Arm DDI 0190C): eight pins, one of which is the power button.
//!
//! A driver that is told of the button by an interrupt looks at the pin some time later, and takes it for a press only
//! when the pin is still high then. So a pressed button is held until the guest has read it as pressed, and is let go
//! with that reading, which makes the interrupt of its release.
//!
//! | offset | register, a bit for each pin |
//! |---|---|
//! | 0x000 to 0x3fc | DATA; bits 2 to 9 of the address choose the pins that are read or written |
//! | 0x400 | DIR a one makes the pin an output |
//! | 0x404 | IS interrupts by level (1) or edge (0) |
//! | 0x408 | IBE both edges |
//! | 0x40c | IEV which level or edge: high or rising (1) |
//! | 0x410 | IE a one lets the pin interrupt |
//! | 0x414, 0x418 | RIS, MIS interrupts before and behind IE |
//! | 0x41c | IC writing ones clears edges |
//! | 0x420 | AFSEL alternate functions, which there are not |

use super::{identification, read_register, window, written};
use crate::platform::PlatformDevice;
use machine::bus::{BusDevice, Range};
use machine::effect::Effect;
use machine::interrupt::InterruptLine;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};

const DATA_LAST: u64 = 0x3ff;
const DIR: u64 = 0x400;
const IS: u64 = 0x404;
const IBE: u64 = 0x408;
const IEV: u64 = 0x40c;
const IE: u64 = 0x410;
const RIS: u64 = 0x414;
const MIS: u64 = 0x418;
const IC: u64 = 0x41c;
const AFSEL: u64 = 0x420;

/// Part number 0x061, designed by Arm, revision 0.
const PERIPHERAL_ID: [u8; 4] = [0x61, 0x10, 0x04, 0x00];

/// The registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Registers {
    /// What the guest drives outputs to.
    output: u8,
    direction: u8,
    level: u8,
    both: u8,
    event: u8,
    enable: u8,
    /// Edges that came and were not cleared.
    edges: u8,
    alternate: u8,
    /// What the outside drives inputs to.
    input: u8,
}

impl Registers {
    fn pins(&self) -> u8 {
        self.output & self.direction | self.input & !self.direction
    }

    fn raw(&self) -> u8 {
        self.edges & !self.level | self.level & !(self.pins() ^ self.event)
    }

    /// Does something to the pins and notes the edges that it makes.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.pins();
        change(self);
        let after = self.pins();
        let (rising, falling) = (after & !before, before & !after);
        let wanted =
            self.both & (rising | falling) | !self.both & (self.event & rising | !self.event & falling);
        self.edges |= wanted & !self.level;
    }
}

/// The device.
pub struct Pl061 {
    line: InterruptLine,
    registers: Registers,
    presses: u64,
}

impl Pl061 {
    /// The pin that is the power button, high while it is pressed.
    pub const POWER_BUTTON: u8 = 3;
    const BUTTON: u8 = 1 << Self::POWER_BUTTON;

    /// With all inputs low.
    pub fn new(line: InterruptLine) -> Self {
        Self { line, registers: Registers::default(), presses: 0 }
    }

    /// Where its registers are, when they begin at `start`.
    pub const fn window(start: u64) -> Range {
        window(start)
    }

    /// Presses the power button. It is let go when the guest has seen it.
    pub fn press_power_button(&mut self) {
        self.presses = self.presses.saturating_add(1);
        self.registers.change(|registers| registers.input |= Self::BUTTON);
        self.update();
    }

    fn update(&self) {
        self.line.set(self.registers.raw() & self.registers.enable != 0);
    }

    fn read_at(&mut self, offset: u64) -> u32 {
        let registers = &mut self.registers;
        let value = match offset {
            0..=DATA_LAST => {
                let seen = registers.pins() & (offset >> 2) as u8;
                if seen & registers.input & Self::BUTTON != 0 {
                    registers.change(|registers| registers.input &= !Self::BUTTON);
                }
                seen
            }
            DIR => registers.direction,
            IS => registers.level,
            IBE => registers.both,
            IEV => registers.event,
            IE => registers.enable,
            RIS => registers.raw(),
            MIS => registers.raw() & registers.enable,
            AFSEL => registers.alternate,
            _ => return identification(PERIPHERAL_ID, offset).unwrap_or(0),
        };
        value.into()
    }

    fn write_at(&mut self, offset: u64, value: u8) {
        self.registers.change(|registers| match offset {
            0..=DATA_LAST => {
                let chosen = (offset >> 2) as u8;
                registers.output = registers.output & !chosen | value & chosen;
            }
            DIR => registers.direction = value,
            IS => registers.level = value,
            IBE => registers.both = value,
            IEV => registers.event = value,
            IE => registers.enable = value,
            IC => registers.edges &= !value,
            AFSEL => registers.alternate = value,
            _ => {}
        });
    }
}

impl BusDevice for Pl061 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_register(offset, data, |at| self.read_at(at));
        self.update();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        if let Some((offset, value)) = written(offset, data) {
            self.write_at(offset, value as u8);
            self.update();
        }
        None
    }
}

impl PlatformDevice for Pl061 {
    fn reset(&mut self) {
        self.registers = Registers::default();
        self.update();
    }
}

machine::inspect!(Pl061, this => {
    hex pins: this.registers.pins(),
    hex interrupts_enabled: this.registers.enable,
    hex interrupts: this.registers.raw(),
    power_button_presses: this.presses,
});

impl SavedFields for Registers {
    const KIND: &'static str = "pl061";
    const VERSION: u32 = 1;
}

impl Saved for Pl061 {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&self.registers)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        self.registers = state.read()?;
        self.registers.input &= Self::BUTTON;
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primecell::WINDOW_SIZE;
    use machine::interrupt::recording::Pins;
    use std::sync::Arc;

    const SPI: u32 = 7;
    /// The data register of all pins, and of the button's.
    const ALL: u64 = 0x3fc;
    const BUTTON: u64 = 1 << (2 + Pl061::POWER_BUTTON);

    fn bench() -> (Pl061, Arc<Pins>) {
        let pins = Arc::new(Pins::default());
        (Pl061::new(InterruptLine::new(pins.clone(), SPI)), pins)
    }

    fn read(gpio: &mut Pl061, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        gpio.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    crate::conformance!(conformance, WINDOW_SIZE, bench().0);

    #[test]
    fn a_press_interrupts_stays_until_seen_and_interrupts_again_when_let_go() {
        let (mut gpio, pins) = bench();
        gpio.write(IBE, &[0x08]);
        gpio.write(IE, &[0x08]);
        gpio.press_power_button();
        assert!(pins.level(SPI));
        gpio.write(IC, &[0x08]);
        assert!(!pins.level(SPI));
        assert_eq!(read(&mut gpio, ALL & !BUTTON), 0, "another pin's reading is none of the button's");
        assert_eq!(read(&mut gpio, BUTTON), 0x08);
        assert!(pins.level(SPI), "the release");
        gpio.write(IC, &[0x08]);
        assert_eq!(read(&mut gpio, BUTTON), 0);
        assert!(!pins.level(SPI));
        gpio.press_power_button();
        assert!(pins.level(SPI), "the next press");
    }

    #[test]
    fn the_address_chooses_the_pins_that_are_written() {
        let (mut gpio, _) = bench();
        gpio.write(DIR, &[0xf0]);
        gpio.write(ALL, &[0xff]);
        gpio.write(0x10 << 2, &[0]);
        assert_eq!(read(&mut gpio, ALL), 0xe0, "inputs are not driven");
        assert_eq!(read(&mut gpio, 0xc0 << 2), 0xc0);
    }

    #[test]
    fn edges_and_levels_interrupt_as_chosen() {
        let (mut gpio, pins) = bench();
        gpio.write(DIR, &[0xff]);
        gpio.write(IE, &[0x03]);
        gpio.write(IEV, &[0x01]);
        // Pin 0 on rising edges, pin 1 on falling ones.
        gpio.write(ALL, &[0x02]);
        assert!(!pins.level(SPI));
        gpio.write(ALL, &[0x01]);
        assert_eq!(read(&mut gpio, MIS), 0x03);
        gpio.write(IC, &[0x03]);
        assert!(!pins.level(SPI));
        gpio.write(IS, &[0x01]);
        assert_eq!(read(&mut gpio, MIS), 0x01, "pin 0 is high");
        gpio.write(IC, &[0x01]);
        assert!(pins.level(SPI), "a level cannot be cleared");
        gpio.write(ALL, &[0]);
        assert_eq!(read(&mut gpio, RIS) & 1, 0);
    }
}
