//! What the devices on the mainboard have in common.

use machine::bus::BusDevice;
use machine::effect::Effect;
use machine::inspect::Inspect;
use machine::state::Saved;

/// A device with a fixed place on a bus, as the machine holds it.
pub trait PlatformDevice: BusDevice + Inspect + Saved {
    /// Back to the state at power-on, except what a battery keeps. What the device is connected to stays
    /// connected.
    fn reset(&mut self);
}

/// Performs a read of any size on a device whose registers are bytes.
pub(crate) fn read_bytes(offset: u64, data: &mut [u8], mut read: impl FnMut(u64) -> u8) {
    for (at, byte) in (offset..).zip(data) {
        *byte = read(at);
    }
}

/// Performs a write of any size on a device whose registers are bytes. The last effect wins.
pub(crate) fn write_bytes(
    offset: u64,
    data: &[u8],
    mut write: impl FnMut(u64, u8) -> Option<Effect>,
) -> Option<Effect> {
    let mut effect = None;
    for (at, &byte) in (offset..).zip(data) {
        effect = write(at, byte).or(effect);
    }
    effect
}

/// The value of a little-endian access of up to 8 bytes.
pub(crate) fn value_of(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Puts the low bytes of `value` into a little-endian access.
pub(crate) fn put_value(data: &mut [u8], value: u64) {
    for (byte, from) in data.iter_mut().zip(value.to_le_bytes()) {
        *byte = from;
    }
}
