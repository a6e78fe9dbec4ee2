//! Debug console: a port that prints what is written to it (port 0xE9, as of Bochs).

use crate::host_console::ConsoleOutput;
use crate::platform::PlatformDevice;
use machine::bus::{BusDevice, Range};
use machine::effect::Effect;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};

/// What reading the port gives: guests find the console by it.
const PRESENT: u8 = 0xe9;

/// The port.
pub struct DebugConsole {
    output: Box<dyn ConsoleOutput>,
    written: u64,
}

impl DebugConsole {
    /// Where the port is unless chosen otherwise.
    pub const PORTS: Range = Range { start: 0xe9, size: 1 };

    /// A port that prints to `output`.
    pub fn new(output: Box<dyn ConsoleOutput>) -> Self {
        Self { output, written: 0 }
    }
}

impl BusDevice for DebugConsole {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<Effect> {
        self.written = self.written.saturating_add(data.len() as u64);
        self.output.write(data);
        None
    }
}

impl PlatformDevice for DebugConsole {
    fn reset(&mut self) {}
}

machine::inspect!(DebugConsole, this => {
    bytes_written: this.written,
    output,
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedDebugConsole {}

impl SavedFields for SavedDebugConsole {
    const KIND: &'static str = "debug-console";
    const VERSION: u32 = 1;
}

impl Saved for DebugConsole {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedDebugConsole {})
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.read::<SavedDebugConsole>().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_console::testing::Recorder;

    crate::conformance!(
        conformance,
        DebugConsole::PORTS.size,
        DebugConsole::new(Box::new(Recorder::default()))
    );

    #[test]
    fn prints_in_order_and_says_it_is_there() {
        let recorder = Recorder::default();
        let mut console = DebugConsole::new(Box::new(recorder.clone()));
        for byte in b"hello\n" {
            assert_eq!(console.write(0, &[*byte]), None);
        }
        assert_eq!(recorder.text(), "hello\n");
        let mut data = [0];
        console.read(0, &mut data);
        assert_eq!(data, [0xe9]);
    }
}
