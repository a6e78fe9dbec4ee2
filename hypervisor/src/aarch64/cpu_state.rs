//! The saved state of a CPU: all registers that the hypervisor lists, and what is not in registers.

use super::{MpState, RegisterId, VcpuState};
use crate::Result;
use machine::state::SavedFields;
use serde::{Deserialize, Serialize};

/// Exceptions that wait to be taken and are in no register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingEvents {
    /// A system error (SError).
    pub serror: bool,
    /// Its syndrome, where it has one.
    pub serror_syndrome: Option<u64>,
}

/// A CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuState {
    /// Whether it runs.
    pub mp_state: MpState,
    /// Its registers, in the order in which they are to be set. Those missing are as after power-on.
    pub registers: Vec<RegisterState>,
    /// What waits to be taken.
    pub events: PendingEvents,
}

impl SavedFields for CpuState {
    const KIND: &'static str = "aarch64-cpu";
    const VERSION: u32 = 1;
}

/// A register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterState {
    /// Which one.
    pub id: RegisterId,
    /// Its value, the low byte first.
    pub value: Vec<u8>,
}

impl dyn VcpuState + '_ {
    /// The state now. The machine's counter, which is among the registers of each CPU, runs on meanwhile.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn save(&self) -> Result<CpuState> {
        let value = |id| Ok(RegisterState { id, value: self.register_bytes(id)? });
        let registers = self.registers()?.into_iter().map(value).collect::<Result<_>>()?;
        Ok(CpuState { mp_state: self.mp_state()?, registers, events: self.events()? })
    }

    /// Becomes what `state` says. The CPU has its features, and has not run. All CPUs of a machine have one counter, which
    /// goes on from where it stood for the one that is restored last.
    ///
    /// # Errors
    /// When the host has no such register, or refuses the value; the error names it.
    pub fn restore(&mut self, state: &CpuState) -> Result<()> {
        for RegisterState { id, value } in &state.registers {
            // Some are not to be written, such as the vector lengths, which are settled with the features: they have to be
            // the same.
            if self.register_bytes(*id)? != *value {
                self.set_register_bytes(*id, value)?;
            }
        }
        self.set_events(&state.events)?;
        self.set_mp_state(state.mp_state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::state::SavedState;
    use serde_json::json;

    fn example() -> CpuState {
        let vector = RegisterId(0x6040_0000_0010_0054);
        CpuState {
            mp_state: MpState::PoweredOff,
            registers: vec![
                RegisterState { id: RegisterId::PC, value: vec![0, 0, 0x20, 0x40, 0, 0, 0, 0] },
                RegisterState { id: vector, value: (0..16).collect() },
            ],
            events: PendingEvents { serror: true, serror_syndrome: Some(0x11) },
        }
    }

    /// What a release has written must be read by all later ones: this file never changes.
    const VERSION_1: &str = include_str!("aarch64-cpu.1.json");

    #[test]
    fn the_published_format_is_read_and_written() {
        let golden: SavedState = serde_json::from_str(VERSION_1).unwrap();
        assert_eq!(golden.read::<CpuState>().unwrap(), example());
        assert_eq!(SavedState::of(&example()).unwrap(), golden);
    }

    #[test]
    fn unknown_fields_are_skipped_and_missing_ones_default() {
        let fields = json!({ "mp_state": "PoweredOff", "mood": "good", "events": { "serror": true } });
        let saved = SavedState { kind: CpuState::KIND.into(), version: 1, fields };
        let events = PendingEvents { serror: true, serror_syndrome: None };
        let expected = CpuState { mp_state: MpState::PoweredOff, events, ..CpuState::default() };
        assert_eq!(saved.read::<CpuState>().unwrap(), expected);
    }
}
