//! Ports of PC hardware this machine does not have, where an absent port's all-ones answer misleads guests.
//!
//! Linux takes a DMA controller, timer or interrupt controller that reads as all ones for absent, which is right;
//! so only these are answered:
//!
//! | port | what | answer |
//! |---|---|---|
//! | 0x80 | POST code, written by guests as a delay | writes vanish without being counted as unclaimed; reads as 0 |
//! | 0x92 | system control port A: fast A20, fast reset | A20 is on; writing bit 0 restarts the machine |
//!
//! Port 0x61 is next to the keyboard controller's, see [`crate::i8042`].

use crate::platform::{PlatformDevice, read_bytes, write_bytes};
use machine::bus::{BusDevice, Range};
use machine::effect::Effect;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};

/// The POST code port.
#[derive(Debug, Default)]
pub struct PostCode {
    last: u8,
}

impl PostCode {
    /// Where the port is.
    pub const PORTS: Range = Range { start: 0x80, size: 1 };
}

impl BusDevice for PostCode {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<Effect> {
        self.last = data.first().copied().unwrap_or(0);
        None
    }
}

impl PlatformDevice for PostCode {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

machine::inspect!(PostCode { hex last });

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedPostCode {
    last: u8,
}

impl SavedFields for SavedPostCode {
    const KIND: &'static str = "post-code";
    const VERSION: u32 = 1;
}

impl Saved for PostCode {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedPostCode { last: self.last })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        self.last = state.read::<SavedPostCode>()?.last;
        Ok(())
    }
}

const A20_ON: u8 = 1 << 1;
const FAST_RESET: u8 = 1 << 0;

/// System control port A (PS/2): fast reset. The address line A20 is always on.
#[derive(Debug, Default)]
pub struct SystemControl {
    resets: u64,
}

impl SystemControl {
    /// Where the port is.
    pub const PORTS: Range = Range { start: 0x92, size: 1 };
}

impl BusDevice for SystemControl {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |_| A20_ON);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        write_bytes(offset, data, |_, value| {
            (value & FAST_RESET != 0).then(|| {
                self.resets = self.resets.saturating_add(1);
                Effect::Reset
            })
        })
    }
}

impl PlatformDevice for SystemControl {
    fn reset(&mut self) {}
}

machine::inspect!(SystemControl { resets });

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedSystemControl {}

impl SavedFields for SavedSystemControl {
    const KIND: &'static str = "system-control-port";
    const VERSION: u32 = 1;
}

impl Saved for SystemControl {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedSystemControl {})
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.read::<SavedSystemControl>().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::conformance!(post_code, PostCode::PORTS.size, PostCode::default());
    crate::conformance!(system_control, SystemControl::PORTS.size, SystemControl::default());

    #[test]
    fn fast_reset_restarts_and_switching_a20_does_not() {
        let mut port = SystemControl::default();
        assert_eq!(port.write(0, &[A20_ON]), None);
        assert_eq!(port.write(0, &[A20_ON | FAST_RESET]), Some(Effect::Reset));
    }
}
