//! `pl011`, `pl031`, `pl061`: an Arm machine's serial port, clock and power button, their drivers and what is outside.

use crate::input::Input;
use devices::host_console::NullOutput;
use devices::platform::PlatformDevice;
use devices::primecell::WINDOW_SIZE;
use devices::primecell::pl011::Pl011;
use devices::primecell::pl031::Pl031;
use devices::primecell::pl061::Pl061;
use machine::clock::{Clock, ManualClock};
use machine::doorbell::Doorbell;
use machine::effect::Effect;
use machine::interrupt::InterruptLine;
use machine::interrupt::recording::Pins;
use std::hint::black_box;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const SPI: u32 = 1;
const STEPS: usize = 400;

/// Runs what the input says of registers and of the machine; `outside` is asked for all else.
fn run<D: PlatformDevice>(
    device: &mut D,
    data: &[u8],
    registers: &[u64],
    mut outside: impl FnMut(&mut D, &mut Input<'_>),
) {
    let input = &mut Input::new(data);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let choice = input.u8();
        let offset = match choice & 0xc0 {
            0xc0 => u64::from(input.u16()) % WINDOW_SIZE,
            _ => registers[usize::from(choice >> 3) % registers.len()],
        };
        match choice & 7 {
            0 | 1 => {
                let size = (1 << input.below(4)).min(WINDOW_SIZE - offset);
                device.read(offset, &mut [0xff; 8][..size as usize]);
            }
            2..=4 => {
                let value = input.u32().to_le_bytes();
                let size = (1 << input.below(3)).min(WINDOW_SIZE - offset);
                write_bytes(device, offset, &value[..size as usize]);
            }
            5 => outside(device, input),
            6 => {
                black_box(device.inspect());
            }
            _ if input.below(4) == 0 => device.reset(),
            _ => {
                let state = device.save().expect("the state can be saved");
                device.restore(&state).expect("a device takes its own state");
                assert_eq!(device.save().expect("the state can be saved"), state);
            }
        }
    }
}

fn read(device: &mut impl PlatformDevice, offset: u64) -> u32 {
    let mut data = [0xff; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// Writes a register. What may come of it is that the machine looks at the clock sooner.
fn write_bytes(device: &mut impl PlatformDevice, offset: u64, value: &[u8]) {
    let effect = device.write(offset, value);
    assert!(matches!(effect, None | Some(Effect::Deadline)), "{effect:?}");
}

fn write(device: &mut impl PlatformDevice, offset: u64, value: u32) {
    write_bytes(device, offset, &value.to_le_bytes());
}

/// No input may be left with a host that was not told of room for it, and a driver that starts anew gets all.
pub fn pl011(data: &[u8]) {
    const REGISTERS: [u64; 13] =
        [0x00, 0x04, 0x18, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x38, 0x3c, 0x40, 0x44];
    const RECEIVE_EMPTY: u32 = 1 << 4;
    static ROOM: OnceLock<Doorbell> = OnceLock::new();
    let room = ROOM.get_or_init(|| Doorbell::new().expect("the host has descriptors")).clone();
    room.take();
    let pins = Arc::new(Pins::default());
    let mut port = Pl011::new(InterruptLine::new(pins.clone(), SPI), Box::new(NullOutput), room.clone());
    let mut waits = false;
    run(&mut port, data, &REGISTERS, |port, input| {
        if room.take() {
            waits = false;
        }
        if input.below(8) == 0 {
            port.receive_break();
            return;
        }
        let count = usize::from(input.u8() & 63);
        let taken = port.receive(&[b'i'; 64][..count]);
        assert!(taken <= count.min(32), "{taken} of {count}");
        waits = taken < count;
    });
    // Off; interrupts cleared and let through; FIFOs; on, with both directions and RTS.
    for (offset, value) in [(0x30, 0), (0x44, 0x7ff), (0x38, 0x50), (0x2c, 0x70), (0x30, 0xb01)] {
        write(&mut port, offset, value);
    }
    for _ in 0..40 {
        if read(&mut port, 0x18) & RECEIVE_EMPTY != 0 {
            break;
        }
        read(&mut port, 0x00);
    }
    assert_ne!(read(&mut port, 0x18) & RECEIVE_EMPTY, 0, "the FIFO ends");
    assert!(!waits || room.take(), "the host learns of room for its input");
    assert_eq!(port.receive(&[b'i'; 16]), 16, "an empty FIFO takes 16 bytes");
    assert!(pins.level(SPI), "input interrupts");
    for _ in 0..16 {
        assert_eq!(read(&mut port, 0x00), u32::from(b'i'));
    }
    write(&mut port, 0x44, 0x7ff);
    assert!(!pins.level(SPI));
}

/// Whatever was set before, the clock can be set, goes on with the host's, and its alarm comes and interrupts.
pub fn pl031(data: &[u8]) {
    const REGISTERS: [u64; 8] = [0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x18, 0x1c];
    let clock = Arc::new(ManualClock::default());
    let pins = Arc::new(Pins::default());
    let mut rtc = Pl031::new(clock.clone(), InterruptLine::new(pins.clone(), SPI));
    run(&mut rtc, data, &REGISTERS, |rtc, input| {
        clock.advance(Duration::from_secs(u64::from(input.u16()) << input.below(8)));
        if rtc.deadline().is_some_and(|due| due <= clock.monotonic_ns()) {
            rtc.look();
            assert!(pins.level(SPI), "an alarm that is due interrupts");
        }
    });
    write(&mut rtc, 0x08, 1000);
    write(&mut rtc, 0x04, 1005);
    write(&mut rtc, 0x1c, 1);
    assert_eq!((read(&mut rtc, 0x00), read(&mut rtc, 0x14)), (1000, 0));
    clock.advance(Duration::from_secs(7));
    assert_eq!((read(&mut rtc, 0x00), read(&mut rtc, 0x14)), (1007, 1));
    write(&mut rtc, 0x10, 1);
    assert!(pins.level(SPI));
}

/// Whatever was set before, a driver that starts anew is interrupted by a press and by its end.
pub fn pl061(data: &[u8]) {
    const REGISTERS: [u64; 12] =
        [0x3fc, 0x20, 0x400, 0x404, 0x408, 0x40c, 0x410, 0x414, 0x418, 0x41c, 0x420, 0x10];
    const BUTTON: u32 = 1 << Pl061::POWER_BUTTON;
    let pins = Arc::new(Pins::default());
    let mut gpio = Pl061::new(InterruptLine::new(pins.clone(), SPI));
    run(&mut gpio, data, &REGISTERS, |gpio, _| gpio.press_power_button());
    // All pins inputs, a press that nobody looked at is over, and both edges of the button interrupt.
    write(&mut gpio, 0x400, 0);
    read(&mut gpio, 0x3fc);
    for (offset, value) in [(0x404, 0), (0x408, BUTTON), (0x410, BUTTON), (0x41c, 0xff)] {
        write(&mut gpio, offset, value);
    }
    assert!(!pins.level(SPI));
    gpio.press_power_button();
    assert!(pins.level(SPI), "a press interrupts");
    write(&mut gpio, 0x41c, BUTTON);
    assert!(!pins.level(SPI));
    assert_eq!(read(&mut gpio, 0x3fc) & BUTTON, BUTTON);
    assert!(pins.level(SPI), "so does its end");
}
