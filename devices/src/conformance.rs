//! What every platform device, and every PCI function that is no virtio device, must hold to: one macro line per device.

use crate::platform::PlatformDevice;
use machine::state::{Saved, SavedState};
use pci::function::Function;

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

/// `function_conformance!(name, [(BAR, size in bytes), ...], constructor)`: as `conformance!`, for a PCI function with these
/// windows.
#[macro_export]
macro_rules! function_conformance {
    ($name:ident, $windows:expr, $make:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn reset_returns_to_power_on() {
                $crate::conformance::function_resets(&mut || $make, &$windows);
            }

            #[test]
            fn save_restore_save_is_identity() {
                $crate::conformance::function_is_saved(&mut || $make, &$windows);
            }

            #[test]
            fn a_foreign_state_is_refused() {
                $crate::conformance::function_refuses_foreign_states(&mut || $make, &$windows);
            }
        }
    };
}

/// Accesses of configuration space and BARs, of each size at each offset, with values from a fixed generator.
fn hostile_function(function: &mut dyn Function, windows: &[(u8, u64)], seed: u64) {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..4000 {
        let value = [0, u64::MAX, next() & 0xff, next()][(next() % 4) as usize].to_le_bytes();
        let mut data = [0xff; 8];
        let write = next() % 2 == 0;
        match windows.get((next() % 4) as usize) {
            Some((bar, size)) => {
                let length = [1, 2, 4, 8][(next() % 4) as usize];
                // Beyond the end too, where the function has to have nothing.
                let offset = next() % (size + 8);
                let data = &mut data[..length];
                if write {
                    let _ = function.bar_write(*bar, offset, &value[..length]);
                } else {
                    function.bar_read(*bar, offset, data);
                }
            }
            None => {
                let length = [1_u16, 2, 4][(next() % 3) as usize];
                let offset = (next() % 512) as u16 / length * length;
                if write {
                    let _ = function.config_write(offset, &value[..length.into()]);
                } else {
                    function.config_read(offset, &mut data[..length.into()]);
                }
            }
        }
    }
}

/// The state of a function whose BARs are made to point nowhere: a reset leaves them where they are.
fn unplaced<F: Function + Saved>(function: &mut F) -> SavedState {
    for bar in (0x10..0x28).step_by(4) {
        let _ = function.config_write(bar, &[0; 4]);
    }
    function.save().unwrap()
}

pub(crate) fn function_resets<F: Function + Saved>(make: &mut dyn FnMut() -> F, windows: &[(u8, u64)]) {
    let power_on = unplaced(&mut make());
    let mut function = make();
    for seed in 1..20 {
        hostile_function(&mut function, windows, seed);
        function.reset();
        assert_eq!(unplaced(&mut function), power_on);
    }
}

pub(crate) fn function_is_saved<F: Function + Saved>(make: &mut dyn FnMut() -> F, windows: &[(u8, u64)]) {
    for seed in 1..20 {
        let mut function = make();
        hostile_function(&mut function, windows, seed);
        let saved = function.save().unwrap();
        let text = serde_json::to_string(&saved).unwrap();
        let mut other = make();
        hostile_function(&mut other, windows, seed + 100);
        other.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(other.save().unwrap(), saved);
        let space = |function: &mut F, offset| {
            let mut data = [0xff];
            function.config_read(offset, &mut data);
            data
        };
        for offset in 0..256 {
            assert_eq!(
                space(&mut function, offset),
                space(&mut other, offset),
                "register {offset:#x} after restore"
            );
        }
    }
}

pub(crate) fn function_refuses_foreign_states<F: Function + Saved>(
    make: &mut dyn FnMut() -> F,
    windows: &[(u8, u64)],
) {
    let mut function = make();
    hostile_function(&mut function, windows, 7);
    let saved = function.save().unwrap();
    let foreign = SavedState { kind: format!("{}-of-another-make", saved.kind), ..saved.clone() };
    assert!(function.restore(&foreign).is_err());
    let newer = SavedState { version: saved.version + 1, ..saved.clone() };
    assert!(function.restore(&newer).is_err());
    function.restore(&saved).unwrap();
    assert_eq!(function.save().unwrap(), saved);
}
