//! `ivshmem`: configuration space and registers of the function that shares memory.

use crate::input::Input;
use devices::ivshmem::Ivshmem;
use machine::inspect::Inspect;
use machine::state::Saved;
use pci::function::Function;
use std::hint::black_box;

/// Accesses and saved states.
pub fn ivshmem(data: &[u8]) {
    let input = &mut Input::new(data);
    let size = 1 << (12 + input.below(40));
    let make = || Ivshmem::new(size).expect("its BARs fit");
    let mut device = make();
    while !input.is_empty() {
        let length = 1_usize << input.below(3);
        let offset = input.u16() & !(length as u16 - 1);
        let bar = input.choose(&[0, 0, 2]);
        match input.below(6) {
            0 => {
                black_box(device.config_write(offset & 0xfff, input.bytes(length)));
            }
            1 => device.config_read(offset & 0xfff, &mut [0xff; 4][..length]),
            2 => device.bar_read(bar, (offset & 0xff).into(), &mut [0xff; 4][..length]),
            3 => {
                black_box(device.bar_write(bar, (offset & 0xff).into(), input.bytes(length)));
            }
            4 => {
                let state = device.save().expect("the state can be saved");
                let mut other = make();
                other.restore(&state).expect("a device takes the state of its like");
                assert_eq!(other.save().expect("the state can be saved"), state);
                device = other;
            }
            _ => {
                black_box(device.inspect());
                if input.flag() {
                    device.reset();
                }
            }
        }
    }
    device.reset();
    let mut mask = [0xff; 4];
    device.bar_read(0, 0, &mut mask);
    assert_eq!(mask, [0; 4]);
}
