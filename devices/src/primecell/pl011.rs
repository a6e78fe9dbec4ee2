//! PL011 UART (Arm DDI 0183G), revision r1p5: the serial port of an Arm machine.
//!
//! As with the PC's port ([`crate::serial`]), what is transmitted goes out at once, so the transmitter is always empty, and
//! input stays with the host while the guest has no room or does not listen: a driver that uses RTS listens while RTS is
//! on, one that never did listens from when it first reads the flags or enables a receive interrupt.
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | DR data; its bits 8 to 11 are the byte's errors |
//! | 0x04 | RSR the last byte's errors; writing clears |
//! | 0x18 | FR flags |
//! | 0x20 | ILPR, of infrared |
//! | 0x24, 0x28 | IBRD, FBRD divisor |
//! | 0x2c | LCR_H line control, the FIFOs' enable in bit 4 |
//! | 0x30 | CR control |
//! | 0x34 | IFLS levels at which FIFOs interrupt |
//! | 0x38 | IMSC interrupt mask: a one lets it through |
//! | 0x3c, 0x40 | RIS, MIS interrupts before and behind the mask |
//! | 0x44 | ICR writing ones clears interrupts |
//! | 0x48 | DMACR, of DMA, which there is not |

use super::{identification, read_register, window, written};
use crate::host_console::{ConsoleInput, ConsoleOutput};
use crate::platform::PlatformDevice;
use crate::uart::HostSide;
use machine::bus::{BusDevice, Range};
use machine::doorbell::Doorbell;
use machine::effect::Effect;
use machine::interrupt::InterruptLine;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;

/// Part number 0x011, designed by Arm, revision 3.
const PERIPHERAL_ID: [u8; 4] = [0x11, 0x10, 0x34, 0x00];

const FR_CTS: u32 = 1 << 0;
const FR_DSR: u32 = 1 << 1;
const FR_DCD: u32 = 1 << 2;
const FR_RECEIVE_EMPTY: u32 = 1 << 4;
const FR_RECEIVE_FULL: u32 = 1 << 6;
const FR_TRANSMIT_EMPTY: u32 = 1 << 7;
const FR_RI: u32 = 1 << 8;

const LCR_FIFOS: u32 = 1 << 4;
/// Bytes of 8 bits.
const LCR_WORD_8: u32 = 3 << 5;
const LCR_WRITABLE: u32 = 0xff;

const CR_ENABLE: u32 = 1 << 0;
const CR_LOOP: u32 = 1 << 7;
const CR_TRANSMIT: u32 = 1 << 8;
const CR_RECEIVE: u32 = 1 << 9;
const CR_DTR: u32 = 1 << 10;
const CR_RTS: u32 = 1 << 11;
const CR_OUT1: u32 = 1 << 12;
const CR_OUT2: u32 = 1 << 13;
const CR_WRITABLE: u32 = 0xff87;
const CR_POWER_ON: u32 = CR_TRANSMIT | CR_RECEIVE;

const IFLS_RECEIVE_SHIFT: u32 = 3;
const IFLS_WRITABLE: u32 = 0x3f;
const IFLS_POWER_ON: u32 = 0x12;

const INT_RECEIVE: u32 = 1 << 4;
const INT_TRANSMIT: u32 = 1 << 5;
const INT_RECEIVE_TIMEOUT: u32 = 1 << 6;
const INT_BREAK: u32 = 1 << 9;
const INT_OVERRUN: u32 = 1 << 10;
const INT_ALL: u32 = 0x7ff;

const DATA_BREAK: u32 = 1 << 10;
const DATA_OVERRUN: u32 = 1 << 11;
const ERRORS: u32 = 0xf;
const ERRORS_SHIFT: u32 = 8;

const FIFO_SIZE: usize = 32;

/// The registers and what is behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Registers {
    /// Errors of the byte read last.
    rsr: u32,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
    /// Bytes with their errors, as the data register gives them.
    received: VecDeque<u32>,
    /// A byte was lost since the last one was received.
    overrun: bool,
    /// The guest has had RTS on.
    uses_rts: bool,
    /// The guest has read the flags.
    polled: bool,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            rsr: 0,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_POWER_ON,
            ifls: IFLS_POWER_ON,
            imsc: 0,
            ris: 0,
            dmacr: 0,
            received: VecDeque::with_capacity(FIFO_SIZE),
            overrun: false,
            uses_rts: false,
            polled: false,
        }
    }
}

impl Registers {
    /// As firmware leaves them: set up and on.
    fn set_up() -> Self {
        Self { lcr_h: LCR_WORD_8 | LCR_FIFOS, cr: CR_POWER_ON | CR_ENABLE, ..Self::default() }
    }

    fn capacity(&self) -> usize {
        if self.lcr_h & LCR_FIFOS != 0 { FIFO_SIZE } else { 1 }
    }

    /// How many bytes interrupt.
    fn trigger(&self) -> usize {
        if self.lcr_h & LCR_FIFOS == 0 {
            return 1;
        }
        match self.ifls >> IFLS_RECEIVE_SHIFT & 7 {
            0 => FIFO_SIZE / 8,
            1 => FIFO_SIZE / 4,
            2 => FIFO_SIZE / 2,
            3 => FIFO_SIZE / 4 * 3,
            // The other values are reserved.
            _ => FIFO_SIZE / 8 * 7,
        }
    }

    fn looped(&self) -> bool {
        self.cr & CR_LOOP != 0
    }

    fn listens(&self) -> bool {
        const ON: u32 = CR_ENABLE | CR_RECEIVE;
        if self.cr & ON != ON || self.looped() {
            false
        } else if self.uses_rts {
            self.cr & CR_RTS != 0
        } else {
            self.polled || self.imsc & (INT_RECEIVE | INT_RECEIVE_TIMEOUT) != 0
        }
    }

    fn room(&self) -> usize {
        if self.listens() { self.capacity().saturating_sub(self.received.len()) } else { 0 }
    }

    fn flags(&self) -> u32 {
        let mut flags = FR_TRANSMIT_EMPTY;
        if self.received.is_empty() {
            flags |= FR_RECEIVE_EMPTY;
        }
        if self.received.len() >= self.capacity() {
            flags |= FR_RECEIVE_FULL;
        }
        // What the other end drives, or our own outputs when looped back.
        let outputs = [(CR_RTS, FR_CTS), (CR_DTR, FR_DSR), (CR_OUT1, FR_DCD), (CR_OUT2, FR_RI)];
        if self.looped() {
            let driven = outputs.into_iter().filter(|(output, _)| self.cr & output != 0);
            driven.fold(flags, |flags, (_, input)| flags | input)
        } else {
            flags | FR_CTS | FR_DSR | FR_DCD
        }
    }

    /// Puts a byte into the receive FIFO; one too many is lost.
    fn take(&mut self, byte: u32) {
        if self.received.len() >= self.capacity() {
            self.overrun = true;
            self.ris |= INT_OVERRUN;
            return;
        }
        let lost = if std::mem::take(&mut self.overrun) { DATA_OVERRUN } else { 0 };
        self.received.push_back(byte | lost);
        if byte & DATA_BREAK != 0 {
            self.ris |= INT_BREAK;
        }
        self.note_received();
    }

    /// Bytes came. Below the level the interrupt is due when no further byte comes for some time. Here none is on its way:
    /// the host has given all it had.
    fn note_received(&mut self) {
        self.ris |= if self.received.len() >= self.trigger() { INT_RECEIVE } else { INT_RECEIVE_TIMEOUT };
    }

    fn read_data(&mut self) -> u32 {
        let data = self.received.pop_front().unwrap_or(0);
        self.rsr = data >> ERRORS_SHIFT & ERRORS;
        if self.received.len() < self.trigger() {
            // What is left is no longer at the level, and waits for no more.
            let left = if self.received.is_empty() { 0 } else { self.ris & INT_RECEIVE };
            self.ris &= !INT_RECEIVE;
            if left != 0 {
                self.ris |= INT_RECEIVE_TIMEOUT;
            }
        }
        if self.received.is_empty() {
            self.ris &= !INT_RECEIVE_TIMEOUT;
        }
        data
    }

    fn write_line_control(&mut self, value: u32) {
        // Turning the FIFOs on or off empties them (3.3.7).
        if (value ^ self.lcr_h) & LCR_FIFOS != 0 {
            self.received.clear();
            self.ris &= !(INT_RECEIVE | INT_RECEIVE_TIMEOUT);
        }
        self.lcr_h = value & LCR_WRITABLE;
    }
}

/// The port.
pub struct Pl011 {
    line: InterruptLine,
    host: HostSide,
    /// What it is reset to.
    power_on: fn() -> Registers,
    registers: Registers,
}

impl Pl011 {
    /// A port that transmits to `output`. `room` is rung when [`Pl011::receive`] took less than it was given and would now
    /// take more.
    pub fn new(line: InterruptLine, output: Box<dyn ConsoleOutput>, room: Doorbell) -> Self {
        let power_on = Registers::default;
        Self { line, host: HostSide::new(output, room), power_on, registers: power_on() }
    }

    /// Has it be set up from the start. A guest that knows it as Arm's generic UART (Base System Architecture, appendix B), as
    /// ACPI describes it, leaves that to firmware.
    #[must_use]
    pub fn set_up(self) -> Self {
        Self { power_on: Registers::set_up, registers: Registers::set_up(), ..self }
    }

    /// Where its registers are, when they begin at `start`.
    pub const fn window(start: u64) -> Range {
        window(start)
    }

    /// Input from the host. Takes as much as the guest has room for, 0 to 32 bytes, and returns how many; the rest is to be
    /// given again when the doorbell rings.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.host.take(bytes, self.registers.room());
        if !taken.is_empty() {
            self.registers.received.extend(taken.iter().map(|byte| u32::from(*byte)));
            self.registers.note_received();
        }
        self.update();
        taken.len()
    }

    /// A break from the host, which Linux takes as the start of a magic SysRq sequence. `false`: the guest has no room for
    /// it now.
    pub fn receive_break(&mut self) -> bool {
        if self.registers.room() == 0 {
            return false;
        }
        self.registers.take(DATA_BREAK);
        self.update();
        true
    }

    /// Tells the interrupt line and the host what an access or input changed.
    fn update(&mut self) {
        self.line.set(self.registers.ris & self.registers.imsc != 0);
        if self.registers.received.is_empty() && self.registers.room() > 0 {
            self.host.tell_of_room();
        }
    }

    fn read_at(&mut self, offset: u64) -> u32 {
        let registers = &mut self.registers;
        match offset {
            DR => registers.read_data(),
            RSR => registers.rsr,
            FR => {
                registers.polled = true;
                registers.flags()
            }
            ILPR => registers.ilpr,
            IBRD => registers.ibrd,
            FBRD => registers.fbrd,
            LCR_H => registers.lcr_h,
            CR => registers.cr,
            IFLS => registers.ifls,
            IMSC => registers.imsc,
            RIS => registers.ris,
            MIS => registers.ris & registers.imsc,
            DMACR => registers.dmacr,
            _ => identification(PERIPHERAL_ID, offset).unwrap_or(0),
        }
    }

    fn write_at(&mut self, offset: u64, value: u32) {
        let registers = &mut self.registers;
        match offset {
            DR => {
                if registers.looped() {
                    registers.take(value & 0xff);
                } else {
                    self.host.transmit(value as u8);
                }
                // It went out at once, which emptied the FIFO.
                registers.ris |= INT_TRANSMIT;
            }
            RSR => registers.rsr = 0,
            ILPR => registers.ilpr = value & 0xff,
            IBRD => registers.ibrd = value & 0xffff,
            FBRD => registers.fbrd = value & 0x3f,
            LCR_H => registers.write_line_control(value),
            CR => {
                registers.cr = value & CR_WRITABLE;
                registers.uses_rts |= value & CR_RTS != 0;
            }
            IFLS => registers.ifls = value & IFLS_WRITABLE,
            IMSC => registers.imsc = value & INT_ALL,
            ICR => registers.ris &= !value,
            DMACR => registers.dmacr = value & 7,
            // Flags, interrupts and identification are read-only.
            _ => {}
        }
    }
}

impl ConsoleInput for Pl011 {
    fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive(bytes)
    }
}

impl BusDevice for Pl011 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_register(offset, data, |at| self.read_at(at));
        self.update();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        if let Some((offset, value)) = written(offset, data) {
            self.write_at(offset, value);
            self.update();
        }
        None
    }
}

impl PlatformDevice for Pl011 {
    fn reset(&mut self) {
        self.registers = (self.power_on)();
        self.update();
    }
}

machine::inspect!(Pl011, this => {
    hex lcr_h: this.registers.lcr_h,
    hex cr: this.registers.cr,
    hex imsc: this.registers.imsc,
    hex ris: this.registers.ris,
    receive_fifo_bytes: this.registers.received.len(),
    listens: this.registers.listens(),
    ..this.host,
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedPl011 {
    rsr: u32,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
    received: Vec<u32>,
    overrun: bool,
    uses_rts: bool,
    polled: bool,
}

impl SavedFields for SavedPl011 {
    const KIND: &'static str = "pl011";
    const VERSION: u32 = 1;
}

impl Saved for Pl011 {
    fn save(&self) -> Result<SavedState, StateError> {
        let registers = self.registers.clone();
        SavedState::of(&SavedPl011 {
            rsr: registers.rsr,
            ilpr: registers.ilpr,
            ibrd: registers.ibrd,
            fbrd: registers.fbrd,
            lcr_h: registers.lcr_h,
            cr: registers.cr,
            ifls: registers.ifls,
            imsc: registers.imsc,
            ris: registers.ris,
            dmacr: registers.dmacr,
            received: registers.received.into(),
            overrun: registers.overrun,
            uses_rts: registers.uses_rts,
            polled: registers.polled,
        })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedPl011 = state.read()?;
        if saved.received.len() > FIFO_SIZE {
            return Err(StateError::Value {
                kind: SavedPl011::KIND,
                reason: format!("received has {} bytes, and the FIFO {FIFO_SIZE}", saved.received.len()),
            });
        }
        self.registers = Registers {
            rsr: saved.rsr & ERRORS,
            ilpr: saved.ilpr & 0xff,
            ibrd: saved.ibrd & 0xffff,
            fbrd: saved.fbrd & 0x3f,
            lcr_h: saved.lcr_h & LCR_WRITABLE,
            cr: saved.cr & CR_WRITABLE,
            ifls: saved.ifls & IFLS_WRITABLE,
            imsc: saved.imsc & INT_ALL,
            ris: saved.ris & INT_ALL,
            dmacr: saved.dmacr & 7,
            received: saved.received.into_iter().map(|data| data & 0xfff).collect(),
            overrun: saved.overrun,
            uses_rts: saved.uses_rts,
            polled: saved.polled,
        };
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
