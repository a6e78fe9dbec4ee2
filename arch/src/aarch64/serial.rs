//! The serial port, as a device tree and ACPI tables tell of it.

use super::layout;
use machine::bus::Range;

/// What kind of port it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialModel {
    /// Arm's PL011.
    Pl011,
    /// A 16550A, whose registers are bytes beside each other.
    Uart16550,
}

impl SerialModel {
    /// Where its registers are.
    pub const fn registers(self) -> Range {
        let size = match self {
            Self::Pl011 => 0x1000,
            Self::Uart16550 => 8,
        };
        Range { start: layout::SERIAL, size }
    }
}

/// A serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// What kind.
    pub model: SerialModel,
    /// Its shared interrupt.
    pub interrupt: u32,
}
