//! 16550A UART (National Semiconductor PC16550D): a serial port of the PC.
//!
//! What is transmitted goes to a [`ConsoleOutput`] at once, so the transmitter is always empty. What the host
//! gives to [`Serial::receive`] fills the receive FIFO; what does not fit stays with the host, which is told
//! through a doorbell when to try again, so no input is lost.
//!
//! Input also stays with the host while the guest does not listen, since drivers empty the FIFO when they open
//! the port. A driver that uses RTS listens while RTS is on. One that never did listens from when it first reads
//! the line status or enables the receive interrupt.
//!
//! | offset | DLAB | read | write |
//! |---|---|---|---|
//! | 0 | 0 | RBR receive buffer | THR transmit |
//! | 0, 1 | 1 | divisor | divisor |
//! | 1 | 0 | IER interrupt enable | IER |
//! | 2 | | IIR interrupt identification | FCR FIFO control |
//! | 3 | | LCR line control, DLAB in bit 7 | LCR |
//! | 4 | | MCR modem control | MCR |
//! | 5 | | LSR line status | |
//! | 6 | | MSR modem status | |
//! | 7 | | SCR scratch | SCR |

use crate::host_console::ConsoleOutput;
use crate::platform::{PlatformDevice, read_bytes, write_bytes};
use crate::uart::HostSide;
use machine::bus::{BusDevice, Range};
use machine::doorbell::Doorbell;
use machine::effect::Effect;
use machine::interrupt::InterruptLine;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMIT_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;
const IER_WRITABLE: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFOS: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVE: u8 = 1 << 1;
const FCR_TRIGGER: u8 = 0xc0;

const LCR_DLAB: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_WRITABLE: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_BREAK: u8 = 1 << 4;
const LSR_TRANSMIT_HOLDING_EMPTY: u8 = 1 << 5;
const LSR_TRANSMITTER_EMPTY: u8 = 1 << 6;
const LSR_ERRORS: u8 = 0x1e;

const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
const MSR_RI_ENDED: u8 = 1 << 2;

const FIFO_SIZE: usize = 16;
/// Divisor at power-on: 9600 baud of the usual 1.8432 MHz crystal.
const DIVISOR_POWER_ON: u16 = 12;

/// The registers and what is behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Registers {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Error bits of the LSR, which reading it clears.
    line_errors: u8,
    /// Change bits of the MSR, which reading it clears.
    modem_changes: u8,
    scr: u8,
    divisor: u16,
    /// The transmit-empty interrupt is due: the condition arose and the IIR has not shown it yet.
    transmit_empty: bool,
    received: VecDeque<u8>,
    /// The guest has had RTS on.
    uses_rts: bool,
    /// The guest has read the line status.
    polled: bool,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            line_errors: 0,
            modem_changes: 0,
            scr: 0,
            divisor: DIVISOR_POWER_ON,
            transmit_empty: false,
            received: VecDeque::with_capacity(FIFO_SIZE),
            uses_rts: false,
            polled: false,
        }
    }
}

impl Registers {
    fn fifos(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.fifos() { FIFO_SIZE } else { 1 }
    }

    fn trigger(&self) -> usize {
        match (self.fifos(), self.fcr & FCR_TRIGGER) {
            (false, _) | (true, 0x00) => 1,
            (true, 0x40) => 4,
            (true, 0x80) => 8,
            (true, _) => 14,
        }
    }

    fn looped(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn listens(&self) -> bool {
        if self.looped() {
            false
        } else if self.uses_rts {
            self.mcr & MCR_RTS != 0
        } else {
            self.polled || self.ier & IER_RECEIVED != 0
        }
    }

    fn room(&self) -> usize {
        if self.listens() { self.capacity().saturating_sub(self.received.len()) } else { 0 }
    }

    /// The status half of the MSR: what the other end drives, or our own outputs when looped back.
    fn modem_status(&self) -> u8 {
        if !self.looped() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let outputs = [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)];
        outputs
            .into_iter()
            .filter(|(output, _)| self.mcr & output != 0)
            .fold(0, |status, (_, input)| status | input)
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_status();
        self.mcr = value & MCR_WRITABLE;
        self.uses_rts |= self.mcr & MCR_RTS != 0;
        let after = self.modem_status();
        let changed = (before ^ after) >> 4;
        // The ring indicator is noted when it ends, the others on each change.
        let ring_ended = if before & !after & MSR_RI != 0 { MSR_RI_ENDED } else { 0 };
        self.modem_changes |= changed & !MSR_RI_ENDED | ring_ended;
    }

    fn write_ier(&mut self, value: u8) {
        let value = value & IER_WRITABLE;
        // The transmitter is empty: enabling its interrupt makes it due. Drivers test for this.
        if value & !self.ier & IER_TRANSMIT_EMPTY != 0 {
            self.transmit_empty = true;
        }
        self.ier = value;
    }

    fn write_fcr(&mut self, value: u8) {
        // Turning the FIFOs on or off empties them (PC16550D, 8.4).
        if value & FCR_CLEAR_RECEIVE != 0 || (value ^ self.fcr) & FCR_ENABLE != 0 {
            self.received.clear();
        }
        // The other bits can only be programmed with the FIFOs on.
        self.fcr = if value & FCR_ENABLE != 0 { value & (FCR_ENABLE | FCR_TRIGGER) } else { 0 };
    }

    /// Puts a byte into the receive FIFO; one too many is lost.
    fn take(&mut self, byte: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
        } else {
            self.line_errors |= LSR_OVERRUN;
            if !self.fifos() {
                // Without FIFOs the new byte replaces the old one.
                self.received.clear();
                self.received.push_back(byte);
            }
        }
    }

    /// The pending interrupt of the highest priority, as in the low nibble of the IIR.
    fn pending(&self) -> u8 {
        if self.ier & IER_LINE_STATUS != 0 && self.line_errors & LSR_ERRORS != 0 {
            IIR_LINE_STATUS
        } else if self.ier & IER_RECEIVED != 0 && !self.received.is_empty() {
            // Below the trigger level the interrupt is due after four character times without a new
            // one. Here no further byte is on its way: the host has given all it had.
            if self.received.len() >= self.trigger() { IIR_RECEIVED } else { IIR_TIMEOUT }
        } else if self.ier & IER_TRANSMIT_EMPTY != 0 && self.transmit_empty {
            IIR_TRANSMIT_EMPTY
        } else if self.ier & IER_MODEM_STATUS != 0 && self.modem_changes != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }
}

/// The port.
pub struct Serial {
    line: InterruptLine,
    host: HostSide,
    registers: Registers,
}

impl Serial {
    /// COM1, interrupt line 4.
    pub const COM1: Range = Range { start: 0x3f8, size: 8 };

    /// A port that transmits to `output`. `room` is rung when [`Serial::receive`] took less than it was given
    /// and would now take more.
    pub fn new(line: InterruptLine, output: Box<dyn ConsoleOutput>, room: Doorbell) -> Self {
        Self { line, host: HostSide::new(output, room), registers: Registers::default() }
    }

    /// Input from the host. Takes as much as the guest has room for, 0 to 16 bytes, and returns how
    /// many; the rest is to be given again when the doorbell rings.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.host.take(bytes, self.registers.room());
        self.registers.received.extend(taken);
        self.update();
        taken.len()
    }

    /// A break from the host, which Linux takes as the start of a magic SysRq sequence. `false`: the guest has
    /// no room for it now.
    pub fn receive_break(&mut self) -> bool {
        if self.registers.room() == 0 {
            return false;
        }
        self.registers.received.push_back(0);
        self.registers.line_errors |= LSR_BREAK;
        self.update();
        true
    }

    /// Tells the interrupt line and the host what an access or input changed.
    fn update(&mut self) {
        self.line.set(self.registers.pending() != IIR_NONE);
        if self.registers.received.is_empty() && self.registers.room() > 0 {
            self.host.tell_of_room();
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let registers = &mut self.registers;
        let [divisor_low, divisor_high] = registers.divisor.to_le_bytes();
        let dlab = registers.lcr & LCR_DLAB != 0;
        match offset {
            DATA if dlab => divisor_low,
            IER if dlab => divisor_high,
            DATA => registers.received.pop_front().unwrap_or(0),
            IER => registers.ier,
            IIR_FCR => {
                let pending = registers.pending();
                if pending == IIR_TRANSMIT_EMPTY {
                    registers.transmit_empty = false;
                }
                pending | if registers.fifos() { IIR_FIFOS } else { 0 }
            }
            LCR => registers.lcr,
            MCR => registers.mcr,
            LSR => {
                registers.polled = true;
                let ready = if registers.received.is_empty() { 0 } else { LSR_DATA_READY };
                let errors = std::mem::take(&mut registers.line_errors);
                ready | errors | LSR_TRANSMIT_HOLDING_EMPTY | LSR_TRANSMITTER_EMPTY
            }
            MSR => registers.modem_status() | std::mem::take(&mut registers.modem_changes),
            SCR => registers.scr,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let registers = &mut self.registers;
        let [divisor_low, divisor_high] = registers.divisor.to_le_bytes();
        let dlab = registers.lcr & LCR_DLAB != 0;
        match offset {
            DATA if dlab => registers.divisor = u16::from_le_bytes([value, divisor_high]),
            IER if dlab => registers.divisor = u16::from_le_bytes([divisor_low, value]),
            DATA => {
                if registers.looped() {
                    registers.take(value);
                } else {
                    self.host.transmit(value);
                }
                registers.transmit_empty = true;
            }
            IER => registers.write_ier(value),
            IIR_FCR => registers.write_fcr(value),
            LCR => registers.lcr = value,
            MCR => registers.write_mcr(value),
            SCR => registers.scr = value,
            // Line and modem status are read-only.
            _ => {}
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| self.read_register(at));
        self.update();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        write_bytes(offset, data, |at, value| {
            self.write_register(at, value);
            None
        });
        self.update();
        None
    }
}

impl PlatformDevice for Serial {
    fn reset(&mut self) {
        self.registers = Registers::default();
        self.update();
    }
}

machine::inspect!(Serial, this => {
    hex ier: this.registers.ier,
    hex lcr: this.registers.lcr,
    hex mcr: this.registers.mcr,
    divisor: this.registers.divisor,
    receive_fifo_bytes: this.registers.received.len(),
    listens: this.registers.listens(),
    ..this.host,
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedSerial {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    line_errors: u8,
    modem_changes: u8,
    scr: u8,
    divisor: u16,
    transmit_empty: bool,
    received: Vec<u8>,
    uses_rts: bool,
    polled: bool,
}

impl SavedFields for SavedSerial {
    const KIND: &'static str = "serial-16550a";
    const VERSION: u32 = 1;
}

impl Saved for Serial {
    fn save(&self) -> Result<SavedState, StateError> {
        let registers = self.registers.clone();
        SavedState::of(&SavedSerial {
            ier: registers.ier,
            fcr: registers.fcr,
            lcr: registers.lcr,
            mcr: registers.mcr,
            line_errors: registers.line_errors,
            modem_changes: registers.modem_changes,
            scr: registers.scr,
            divisor: registers.divisor,
            transmit_empty: registers.transmit_empty,
            received: registers.received.into(),
            uses_rts: registers.uses_rts,
            polled: registers.polled,
        })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedSerial = state.read()?;
        if saved.received.len() > FIFO_SIZE {
            return Err(StateError::Value {
                kind: SavedSerial::KIND,
                reason: format!("received has {} bytes, and the FIFO {FIFO_SIZE}", saved.received.len()),
            });
        }
        self.registers = Registers {
            ier: saved.ier & IER_WRITABLE,
            fcr: saved.fcr & (FCR_ENABLE | FCR_TRIGGER),
            lcr: saved.lcr,
            mcr: saved.mcr & MCR_WRITABLE,
            line_errors: saved.line_errors & LSR_ERRORS,
            modem_changes: saved.modem_changes & 0x0f,
            scr: saved.scr,
            divisor: saved.divisor,
            transmit_empty: saved.transmit_empty,
            received: saved.received.into(),
            uses_rts: saved.uses_rts,
            polled: saved.polled,
        };
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
