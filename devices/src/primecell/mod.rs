//! Arm's PrimeCell devices: a page of 32-bit registers each, the last of which say what it is.

pub mod pl011;
pub mod pl031;
pub mod pl061;

use crate::platform::{put_value, value_of};
use machine::bus::Range;

/// Bytes of a device's registers.
pub const WINDOW_SIZE: u64 = 0x1000;

/// Where the identification registers begin: four of the peripheral, four that all PrimeCells have, a byte each.
const IDENTIFICATION: u64 = 0xfe0;
const PRIMECELL_ID: [u8; 4] = [0x0d, 0xf0, 0x05, 0xb1];

/// The window of a device whose registers begin at `start`.
pub const fn window(start: u64) -> Range {
    Range { start, size: WINDOW_SIZE }
}

/// An identification register, if there is one at `offset`.
fn identification(peripheral: [u8; 4], offset: u64) -> Option<u32> {
    let at = usize::try_from(offset.checked_sub(IDENTIFICATION)? / 4).ok()?;
    peripheral.iter().chain(&PRIMECELL_ID).nth(at).map(|byte| u32::from(*byte))
}

/// Performs a read of any size: of the register that has the first byte.
fn read_register(offset: u64, data: &mut [u8], read: impl FnOnce(u64) -> u32) {
    let value = u64::from(read(offset & !3));
    put_value(data, value >> ((offset & 3) << 3));
}

/// The register and the value of a write. One that does not begin where a register does is nothing.
fn written(offset: u64, data: &[u8]) -> Option<(u64, u32)> {
    (offset & 3 == 0).then(|| (offset, value_of(data) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_registers_are_read_and_only_whole_ones_written() {
        for (offset, expected) in [(4, 0x44), (5, 0x33), (7, 0x11)] {
            let mut data = [0xff; 1];
            read_register(offset, &mut data, |at| if at == 4 { 0x1122_3344 } else { 0 });
            assert_eq!(data, [expected]);
        }
        let mut data = [0xff; 8];
        read_register(0, &mut data, |_| 0x1122_3344);
        assert_eq!(data, [0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0]);
        assert_eq!(written(8, &[1, 2]), Some((8, 0x201)));
        assert_eq!(written(9, &[1]), None);
    }

    #[test]
    fn the_last_registers_say_what_a_device_is() {
        let id = |offset| identification([0x11, 0x10, 0x34, 0], offset);
        assert_eq!(
            [0xfdc, 0xfe0, 0xfe8, 0xff0, 0xffc].map(id),
            [None, Some(0x11), Some(0x34), Some(0x0d), Some(0xb1)]
        );
    }
}
