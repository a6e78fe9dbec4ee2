//! What every virtio device does, whatever its type. [`conformance!`](crate::conformance) makes a test of each.

use super::driver::{Driver, Layout};
use crate::device::VirtioDevice;
use crate::pci_transport::common::register;
use crate::pci_transport::layout::BAR_SIZE;
use crate::pci_transport::status;
use machine::memory::{Bytes, GuestAddress};
use machine::state::{Saved, SavedState};
use pci::function::Function;

/// A seeded generator (xorshift), so that a failure can be repeated.
#[derive(Clone, Debug)]
pub struct Generator(u64);

impl Generator {
    /// A generator of the sequence that `seed` stands for.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number, less than `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }
}

/// The state without what a reset leaves alone: the config generation only grows.
fn comparable(mut state: SavedState) -> SavedState {
    if let Some(fields) = state.fields.as_object_mut() {
        fields.remove("config_generation");
    }
    state
}

fn saved(driver: &Driver) -> SavedState {
    comparable(driver.function.save().expect("the state can be saved"))
}

/// Registers scribbled over, then a function reset: the state is that of power-on.
///
/// # Panics
/// When the device does not conform.
pub fn resets_to_power_on(make: &dyn Fn() -> Box<dyn VirtioDevice>) {
    let mut driver = Driver::attach(make());
    let power_on = saved(&driver);
    for layout in Layout::all() {
        driver.initialize(layout, u64::MAX);
        driver.run();
        assert_ne!(saved(&driver), power_on);
        driver.reset();
        driver.function.reset();
        assert_eq!(saved(&driver), power_on, "a reset device is as at power-on ({layout:?})");
    }
}

/// Saved, restored into another device, and saved: the same state; and that device works on.
///
/// # Panics
/// When the device does not conform.
pub fn save_and_restore_is_identity(make: &dyn Fn() -> Box<dyn VirtioDevice>) {
    for layout in Layout::all() {
        let mut driver = Driver::new(make(), layout);
        driver.run();
        driver.stop();
        let state = driver.function.save().expect("the state can be saved");
        let text = serde_json::to_string(&state).expect("the state has a text form");
        let read = serde_json::from_str(&text).expect("the text is a state");
        let mut other = Driver::attach(make());
        other.function.restore(&read).expect("a device takes the state of its like");
        assert_eq!(other.function.save().expect("the state can be saved"), state, "{layout:?}");
        other.start();
        assert!(other.function.is_running(), "the restored device works on ({layout:?})");
        other.run();
        assert_eq!(other.status() & status::DEVICE_NEEDS_RESET, 0, "{layout:?}");
    }
}

/// A state that is not one of this device is refused, and leaves the device as after a reset.
///
/// # Panics
/// When the device does not conform.
pub fn foreign_states_are_refused(make: &dyn Fn() -> Box<dyn VirtioDevice>) {
    let mut driver = Driver::attach(make());
    let power_on = saved(&driver);
    driver.initialize(Layout::SPLIT, u64::MAX);
    driver.stop();
    let good = driver.function.save().expect("the state can be saved");
    let mut generator = Generator::new(1);
    let foreign = SavedState { kind: "lamp".into(), ..good.clone() };
    assert!(driver.function.restore(&foreign).is_err());
    assert_eq!(saved(&driver), power_on);
    for _ in 0..300 {
        let mut broken = good.clone();
        spoil(&mut broken.fields, &mut generator);
        // Whether it is refused depends on what was spoilt.
        if driver.function.restore(&broken).is_err() {
            assert_eq!(saved(&driver), power_on, "{broken:?}");
        }
        driver.start();
        driver.run();
        driver.stop();
        driver.function.reset();
    }
    driver.initialize(Layout::SPLIT, u64::MAX);
}

/// Changes one value somewhere in a tree.
fn spoil(value: &mut serde_json::Value, generator: &mut Generator) {
    use serde_json::Value;
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let at = generator.below(fields.len() as u64) as usize;
            if let Some((_, value)) = fields.iter_mut().nth(at) {
                spoil(value, generator);
            }
        }
        Value::Array(values) if !values.is_empty() => {
            let at = generator.below(values.len() as u64) as usize;
            if generator.below(8) == 0 {
                values.remove(at);
            } else {
                spoil(&mut values[at], generator);
            }
        }
        Value::Number(_) => *value = (generator.number() >> generator.below(64)).into(),
        Value::Bool(flag) => *flag = !*flag,
        other => *other = if generator.below(2) == 0 { Value::Null } else { "?".into() },
    }
}

/// Random accesses to every register, rings of random bytes, and running whatever comes of it; then a reset, and the device works.
///
/// # Panics
/// When the device does not conform.
pub fn hostile_registers_are_harmless(make: &dyn Fn() -> Box<dyn VirtioDevice>) {
    for seed in 0..24 {
        let mut generator = Generator::new(seed);
        let mut driver = Driver::attach(make());
        for _ in 0..40 {
            if generator.below(2) == 0 {
                let layout = Layout::all().nth(generator.below(8) as usize).expect("there are eight");
                driver.initialize(layout, generator.number());
                scribble(&driver, &mut generator);
            }
            for _ in 0..50 {
                access(&mut driver, &mut generator);
            }
            driver.run();
            std::hint::black_box(driver.function.device());
        }
        driver.initialize(Layout::SPLIT, u64::MAX);
        driver.run();
        assert!(driver.function.is_live(), "the device works after a reset (seed {seed})");
    }
}

/// Random bytes where the rings are, with indices that make some of them available.
fn scribble(driver: &Driver, generator: &mut Generator) {
    for page in 0..16_u64 {
        let bytes: Vec<u8> = (0..64).map(|_| (generator.number() >> generator.below(64)) as u8).collect();
        let at = 0x1000 + page * 0x1000 + generator.below(60) * 64;
        driver.memory.write_slice(&bytes, GuestAddress(at)).expect("the rings lie in memory");
    }
}

fn access(driver: &mut Driver, generator: &mut Generator) {
    let size = 1 << generator.below(4);
    let place = match generator.below(8) {
        0..4 => generator.below(0x40),
        4 => 0x1000 + generator.below(8),
        5 => 0x2000 + generator.below(0x100),
        6 => 0x3000 + generator.below(0x40),
        _ => generator.below(BAR_SIZE),
    };
    let offset = if generator.below(4) > 0 { place & !(size - 1) } else { place };
    let value = (generator.number() >> generator.below(64)).to_le_bytes();
    let data = &value[..size as usize];
    match generator.below(8) {
        0 => driver.read(offset, &mut [0; 8][..size as usize]),
        1 => {
            let size = size.min(4) as usize;
            let offset = generator.below(0x1000) as u16 & !(size as u16 - 1);
            driver.function.config_read(offset, &mut [0; 4][..size]);
            let change = driver.function.config_write(offset, &data[..size]);
            driver.apply(change);
        }
        2 => driver.write_common(register::QUEUE_SELECT, 2, generator.below(4)),
        3 => driver.write_common(register::DEVICE_STATUS, 1, generator.below(16)),
        _ => driver.write(offset, data),
    }
}

/// The tests that every device runs: `virtio::conformance!(name, || Box::new(MyDevice::new(...)));` makes a module `name`
/// of them. The expression makes a new device each time.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $make:expr) => {
        mod $name {
            use super::*;

            fn make() -> Box<dyn $crate::device::VirtioDevice> {
                ($make)()
            }

            #[test]
            fn resets_to_power_on() {
                $crate::testing::conformance::resets_to_power_on(&make);
            }

            #[test]
            fn save_and_restore_is_identity() {
                $crate::testing::conformance::save_and_restore_is_identity(&make);
            }

            #[test]
            fn foreign_states_are_refused() {
                $crate::testing::conformance::foreign_states_are_refused(&make);
            }

            #[test]
            fn hostile_registers_are_harmless() {
                $crate::testing::conformance::hostile_registers_are_harmless(&make);
            }
        }
    };
}
