//! `watchdog`: every register of the watchdog, and time.

use crate::input::Input;
use devices::watchdog::Watchdog;
use machine::clock::{Clock, ManualClock};
use machine::inspect::Inspect;
use machine::state::Saved;
use pci::function::Function;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

/// The most looks that the machine owes the device for one step of time.
const LOOKS: u64 = 100;

/// Accesses, pauses, saved states and time.
pub fn watchdog(data: &[u8]) {
    let input = &mut Input::new(data);
    let clock = Arc::new(ManualClock::default());
    let make = || Watchdog::new(clock.clone()).expect("its BAR fits");
    let mut device = make();
    while !input.is_empty() {
        let size = 1_usize << input.below(3);
        match input.below(9) {
            0 | 1 => {
                let offset = input.choose(&[0x60_u16, 0x68, 0x04, 0x10, 0x3c]) & !(size as u16 - 1);
                device.config_write(offset, input.bytes(size));
            }
            2 | 3 => {
                let offset = u64::from(input.below(16)) & !(size as u64 - 1);
                device.bar_write(0, offset, input.bytes(size));
            }
            4 => {
                for word in [0x80_u16, 0x86] {
                    device.bar_write(0, 12, &word.to_le_bytes());
                }
            }
            5 => {
                let mut data = [0xff; 4];
                device.bar_read(0, input.below(16).into(), &mut data[..size]);
                device.config_read(input.u16() & 0xffc, &mut data[..size]);
            }
            6 => {
                clock.advance(Duration::from_nanos(u64::from(input.u32()) << input.below(16)));
                for _ in 0..LOOKS {
                    if device.deadline().is_none_or(|time| time > clock.monotonic_ns()) {
                        break;
                    }
                    device.look();
                }
                let late = device.deadline().is_some_and(|time| time <= clock.monotonic_ns());
                assert!(!late, "a look always moves the deadline past the present");
            }
            7 => match input.below(4) {
                0 => device.pause(),
                1 => device.resume(),
                2 => device.reset(),
                _ => {
                    black_box(device.inspect());
                }
            },
            _ => {
                let state = device.save().expect("the state can be saved");
                let mut other = make();
                other.restore(&state).expect("a device takes the state of its like");
                assert_eq!(other.save().expect("the state can be saved"), state);
                device = other;
            }
        }
    }
    device.reset();
    assert_eq!(device.deadline(), None);
}
