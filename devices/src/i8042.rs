//! Keyboard controller (Intel 8042) without keyboard and mouse, and system control port B next to it.
//!
//! Kept for one thing: guests restart the machine by pulsing the controller's reset line. To a probe it reads as
//! a controller that is stuck with its output buffer full, upon which drivers give up at once; the input buffer is
//! always free, so that a guest about to pulse the reset line does not wait for it.
//!
//! | offset | port | read | write |
//! |---|---|---|---|
//! | 0 | 0x60 data | all ones | ignored |
//! | 1 | 0x61 port B | timer 2 gate and speaker as written, refresh toggling, timer 2 output high | gate and speaker bits |
//! | 4 | 0x64 | status: all ones but "input buffer full" | command: 0xf0-0xff with bit 0 clear pulses reset |

use crate::platform::{PlatformDevice, read_bytes, write_bytes};
use machine::bus::{BusDevice, Range};
use machine::effect::Effect;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};

const DATA: u64 = 0;
const PORT_B: u64 = 1;
const STATUS_COMMAND: u64 = 4;

const INPUT_BUFFER_FULL: u8 = 1 << 1;

const PORT_B_WRITABLE: u8 = 0x03;
const PORT_B_REFRESH: u8 = 1 << 4;
const PORT_B_TIMER_OUTPUT: u8 = 1 << 5;

/// The controller's ports.
#[derive(Debug, Default)]
pub struct I8042 {
    port_b: u8,
    resets: u64,
}

impl I8042 {
    /// Where the ports are.
    pub const PORTS: Range = Range { start: 0x60, size: 5 };

    fn read_register(&mut self, offset: u64) -> u8 {
        match offset {
            DATA => 0xff,
            PORT_B => {
                // Old delay loops wait for the memory refresh bit to change.
                self.port_b ^= PORT_B_REFRESH;
                self.port_b | PORT_B_TIMER_OUTPUT
            }
            STATUS_COMMAND => !INPUT_BUFFER_FULL,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) -> Option<Effect> {
        match offset {
            PORT_B => self.port_b = self.port_b & !PORT_B_WRITABLE | value & PORT_B_WRITABLE,
            STATUS_COMMAND if value & 0xf1 == 0xf0 => {
                self.resets = self.resets.saturating_add(1);
                return Some(Effect::Reset);
            }
            _ => {}
        }
        None
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| self.read_register(at));
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        write_bytes(offset, data, |at, value| self.write_register(at, value))
    }
}

impl PlatformDevice for I8042 {
    fn reset(&mut self) {
        self.port_b = 0;
    }
}

machine::inspect!(I8042 { hex port_b, resets });

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedI8042 {
    port_b: u8,
}

impl SavedFields for SavedI8042 {
    const KIND: &'static str = "i8042";
    const VERSION: u32 = 1;
}

impl Saved for I8042 {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedI8042 { port_b: self.port_b })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        self.port_b = state.read::<SavedI8042>()?.port_b & (PORT_B_WRITABLE | PORT_B_REFRESH);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::conformance!(conformance, I8042::PORTS.size, I8042::default());

    fn status(device: &mut I8042) -> u8 {
        let mut data = [0];
        device.read(STATUS_COMMAND, &mut data);
        data[0]
    }

    #[test]
    fn only_a_pulse_of_the_reset_line_resets() {
        let mut device = I8042::default();
        for command in 0..=0xff {
            let expected = [0xf0, 0xf2, 0xf4, 0xf6, 0xf8, 0xfa, 0xfc, 0xfe].contains(&command);
            let effect = device.write(STATUS_COMMAND, &[command]);
            assert_eq!(effect == Some(Effect::Reset), expected, "command {command:#x}");
            assert_eq!(device.write(DATA, &[command]), None);
        }
    }

    #[test]
    fn a_probe_that_empties_the_output_buffer_gives_up_and_a_reset_need_not_wait() {
        let mut device = I8042::default();
        for _ in 0..16 {
            assert_eq!(status(&mut device) & 1, 1);
            device.read(DATA, &mut [0]);
        }
        assert_eq!(status(&mut device) & INPUT_BUFFER_FULL, 0);
    }

    #[test]
    fn the_refresh_bit_toggles() {
        let mut device = I8042::default();
        let mut port_b = || {
            let mut data = [0];
            device.read(PORT_B, &mut data);
            data[0]
        };
        assert_eq!(port_b() ^ port_b(), PORT_B_REFRESH);
    }
}
