//! What every platform device must hold to, one macro line per device.

use crate::platform::PlatformDevice;
use machine::state::SavedState;

/// `conformance!(name, window size in bytes, constructor)`, and optionally `keeps ["field", ...]`: saved fields
/// that a reset leaves alone because a battery keeps them. Makes a module `name` of tests.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $size:expr, $make:expr) => {
        $crate::conformance!($name, $size, $make, keeps []);
    };
    ($name:ident, $size:expr, $make:expr, keeps $kept:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn reset_returns_to_power_on() {
                $crate::conformance::reset_returns_to_power_on(&mut || $make, $size, &$kept);
            }

            #[test]
            fn save_restore_save_is_identity() {
                $crate::conformance::save_restore_save_is_identity(&mut || $make, $size);
            }

            #[test]
            fn a_foreign_state_is_refused() {
                $crate::conformance::a_foreign_state_is_refused(&mut || $make, $size);
            }
        }
    };
}

/// Accesses of each size at each offset with values from a fixed generator. Panics in the device surface here.
pub(crate) fn hostile_accesses(device: &mut dyn PlatformDevice, size: u64, seed: u64) {
    let mut state = seed | 1;
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..4000 {
        let length = [1, 2, 4, 8][(next() % 4) as usize].min(size);
        let offset = next() % (size - length + 1);
        let value = match next() % 4 {
            0 => 0,
            1 => u64::MAX,
            2 => next() & 0xff,
            _ => next(),
        };
        let length = length as usize;
        if next() % 2 == 0 {
            let mut data = [0xff; 8];
            device.read(offset, &mut data[..length]);
        } else {
            // What the effect is matters to the machine, not here.
            let _ = device.write(offset, &value.to_le_bytes()[..length]);
        }
    }
}

fn without(mut state: SavedState, kept: &[&str]) -> SavedState {
    for field in kept {
        let removed = state.fields.as_object_mut().unwrap().remove(*field);
        assert!(removed.is_some(), "there is no field {field:?} to keep");
    }
    state
}

pub(crate) fn reset_returns_to_power_on<D: PlatformDevice>(
    make: &mut dyn FnMut() -> D,
    size: u64,
    kept: &[&str],
) {
    let power_on = without(make().save().unwrap(), kept);
    let mut device = make();
    for seed in 1..20 {
        hostile_accesses(&mut device, size, seed);
        device.reset();
        assert_eq!(without(device.save().unwrap(), kept), power_on);
    }
}

pub(crate) fn save_restore_save_is_identity<D: PlatformDevice>(make: &mut dyn FnMut() -> D, size: u64) {
    for seed in 1..20 {
        let mut device = make();
        hostile_accesses(&mut device, size, seed);
        let saved = device.save().unwrap();
        let text = serde_json::to_string(&saved).unwrap();
        let mut other = make();
        hostile_accesses(&mut other, size, seed + 100);
        other.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(other.save().unwrap(), saved);
        // Both must now answer alike, also in what is not saved as a field.
        for offset in 0..size.min(64) {
            let (mut a, mut b) = ([0xff], [0xff]);
            device.read(offset, &mut a);
            other.read(offset, &mut b);
            assert_eq!(a, b, "register {offset:#x} after restore");
        }
    }
}

pub(crate) fn a_foreign_state_is_refused<D: PlatformDevice>(make: &mut dyn FnMut() -> D, size: u64) {
    let mut device = make();
    let power_on = device.save().unwrap();
    hostile_accesses(&mut device, size, 7);
    let mut foreign = device.save().unwrap();
    foreign.kind.push_str("-of-another-make");
    assert!(device.restore(&foreign).is_err());
    let mut newer = device.save().unwrap();
    newer.version += 1;
    assert!(device.restore(&newer).is_err());
    device.reset();
    assert_eq!(device.save().unwrap().kind, power_on.kind);
}
