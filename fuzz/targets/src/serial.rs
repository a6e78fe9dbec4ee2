//! `serial`: the 16550A, its driver and its host.

use crate::input::Input;
use devices::host_console::NullOutput;
use devices::platform::PlatformDevice;
use devices::serial::Serial;
use machine::bus::BusDevice;
use machine::doorbell::Doorbell;
use machine::inspect::Inspect;
use machine::interrupt::InterruptLine;
use machine::interrupt::recording::Pins;
use machine::state::Saved;
use std::hint::black_box;
use std::sync::{Arc, OnceLock};

const IRQ: u32 = 4;
const STEPS: usize = 400;

/// Registers and input. No input may be left with a host that was not told of room for it.
pub fn serial(data: &[u8]) {
    static ROOM: OnceLock<Doorbell> = OnceLock::new();
    let room = ROOM.get_or_init(|| Doorbell::new().expect("the host has descriptors")).clone();
    room.take();
    let pins = Arc::new(Pins::default());
    let line = InterruptLine::new(pins.clone(), IRQ);
    let port = Serial::new(line, Box::new(NullOutput), room.clone());
    let mut host = Host { port, room, pins, waits: false };
    let input = &mut Input::new(data);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        host.step(input);
    }
    host.finish();
}

struct Host {
    port: Serial,
    room: Doorbell,
    pins: Arc<Pins>,
    /// The port refused input, and has not said that there is room.
    waits: bool,
}

impl Host {
    fn read(&mut self, offset: u64) -> u8 {
        let mut data = [0xff];
        self.port.read(offset, &mut data);
        data[0]
    }

    fn write(&mut self, offset: u64, value: u8) {
        assert_eq!(self.port.write(offset, &[value]), None);
    }

    fn give(&mut self, count: usize) {
        let taken = self.port.receive(&[b'i'; 64][..count]);
        assert!(taken <= count.min(16), "{taken} of {count}");
        self.waits = taken < count;
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        let offset = u64::from(choice >> 3 & 7);
        match choice & 7 {
            0 | 1 => {
                self.read(offset);
            }
            2..=4 => {
                let value = input.u8();
                self.write(offset, value);
            }
            5 => self.give(usize::from(input.u8() & 63)),
            6 => {
                // Accesses wider than a register.
                let size = (1 << input.below(4)).min(8 - offset as usize);
                let data = input.u64().to_le_bytes();
                if input.flag() {
                    self.port.read(offset, &mut [0xff; 8][..size]);
                } else {
                    assert_eq!(self.port.write(offset, &data[..size]), None);
                }
            }
            _ => match input.below(6) {
                0 => {
                    self.port.reset();
                    assert!(!self.pins.level(IRQ), "a port that was reset is silent");
                }
                1 => {
                    let state = self.port.save().expect("the state can be saved");
                    let level = self.pins.level(IRQ);
                    self.port.restore(&state).expect("a port takes its own state");
                    assert_eq!(self.port.save().expect("the state can be saved"), state);
                    assert_eq!(self.pins.level(IRQ), level, "the line is as it was");
                }
                2 => {
                    self.port.receive_break();
                }
                _ => {
                    black_box(self.port.inspect());
                }
            },
        }
        if self.room.take() {
            self.waits = false;
        }
    }

    /// A driver opens the port and reads all there is; the host must then get rid of its input.
    fn finish(&mut self) {
        // DLAB off, loopback off and RTS on, FIFOs on, receive interrupt on.
        for (offset, value) in [(3, 3), (4, 0x0b), (2, 1), (1, 1)] {
            self.write(offset, value);
        }
        for _ in 0..17 {
            if self.read(5) & 1 == 0 {
                break;
            }
            self.read(0);
        }
        assert_eq!(self.read(5) & 1, 0, "the FIFO ends");
        assert!(!self.waits || self.room.take(), "the host learns of room for its input");
        self.give(16);
        assert!(!self.waits, "an empty FIFO takes 16 bytes");
        assert!(self.pins.level(IRQ), "input interrupts");
        for _ in 0..16 {
            assert_eq!((self.read(5) & 1, self.read(0)), (1, b'i'));
        }
        assert!(!self.pins.level(IRQ));
    }
}
