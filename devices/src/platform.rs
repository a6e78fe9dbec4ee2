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
    for (number, byte) in (0..).zip(data) {
        *byte = read(offset.wrapping_add(number));
    }
}

/// Performs a write of any size on a device whose registers are bytes. The last effect wins.
pub(crate) fn write_bytes(
    offset: u64,
    data: &[u8],
    mut write: impl FnMut(u64, u8) -> Option<Effect>,
) -> Option<Effect> {
    let mut effect = None;
    for (number, &byte) in (0..).zip(data) {
        effect = write(offset.wrapping_add(number), byte).or(effect);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::i8042::I8042;
    use machine::bus::{Bus, DeviceHandle};
    use std::sync::{Arc, Mutex};

    /// The machine keeps one handle of each device, to reset and save it; the bus has the same one.
    #[test]
    fn one_handle_serves_the_machine_and_the_bus() {
        let device: Arc<Mutex<dyn PlatformDevice>> = Arc::new(Mutex::new(I8042::default()));
        let on_bus: DeviceHandle = device.clone();
        let mut bus = Bus::default();
        bus.insert(I8042::PORTS, on_bus).unwrap();
        let power_on = device.lock().unwrap().save().unwrap();
        bus.write(0x61, &[3]);
        assert_ne!(device.lock().unwrap().save().unwrap(), power_on);
        device.lock().unwrap().reset();
        assert_eq!(device.lock().unwrap().save().unwrap(), power_on);
    }

    #[test]
    fn wide_accesses_are_little_endian() {
        let mut data = [0; 3];
        put_value(&mut data, 0x1122_3344);
        assert_eq!((data, value_of(&data)), ([0x44, 0x33, 0x22], 0x22_3344));
        let mut seen = Vec::new();
        read_bytes(5, &mut data, |at| at as u8);
        write_bytes(u64::MAX, &[1, 2], |at, value| {
            seen.push((at, value));
            None
        });
        assert_eq!((data, seen), ([5, 6, 7], vec![(u64::MAX, 1), (0, 2)]));
    }
}
