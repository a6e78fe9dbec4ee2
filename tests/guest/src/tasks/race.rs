//! `race-fuzz`: several processors do to the same devices what each of them waits for: starting and resetting them, moving
//! and hiding their registers, masking their interrupts. Whatever the order, every device must work afterwards.

use super::fuzz::{DEVICES, Saved, collect, prove_all};
use super::{Context, Failure, Outcome, smp};
use crate::command_line::Task;
use crate::pci::Function;
use crate::random::Random;
use crate::virtio::{Device, status};
use crate::{cpu, memory, pci, report};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Capability ID of PCI Express, and what of it initiates a function-level reset (PCIe 6.0, 7.5.3.4).
const EXPRESS: u8 = 0x10;
const DEVICE_CONTROL: u16 = 8;
const RESET: u16 = 1 << 15;

/// Offsets in the common configuration (virtio 1.2, 4.1.4.3).
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

/// A device as all processors see it.
struct Target {
    /// Bus, device and function numbers.
    function: AtomicU64,
    /// Addresses of the common configuration, the doorbells and BAR 0.
    common: AtomicU64,
    doorbells: AtomicU64,
    bar: AtomicU64,
    /// The capability of PCI Express, and that of MSI-X.
    express: AtomicU64,
    msix: AtomicU64,
}

static TARGETS: [Target; DEVICES] = [const {
    Target {
        function: AtomicU64::new(0),
        common: AtomicU64::new(0),
        doorbells: AtomicU64::new(0),
        bar: AtomicU64::new(0),
        express: AtomicU64::new(0),
        msix: AtomicU64::new(0),
    }
}; DEVICES];
static COUNT: AtomicU64 = AtomicU64::new(0);
/// Zeroes, for rings in which nothing is available.
static RING: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// `race-fuzz n=300 cpus=2 seed=1`. Needs `ecam=1`: the configuration ports are no place to meet.
pub fn run(context: &Context, task: &Task) -> Outcome {
    if pci::ecam() == 0 {
        return Err(Failure::Unsupported("race-fuzz without ecam=1"));
    }
    let count = task.number("n", 300)?;
    let seed = task.number("seed", 1)?;
    let mut devices: [Option<Device>; DEVICES] = [None; DEVICES];
    collect(context, &mut devices);
    let mut saved: [Option<(Function, Saved)>; DEVICES] = [const { None }; DEVICES];
    let mut found = 0;
    for device in devices.iter().flatten() {
        let Some(function) = device.function() else { continue };
        let [Some(common), Some(doorbells), _, _] = device.areas() else { continue };
        let target = &TARGETS[found];
        let number =
            u64::from(function.bus) << 16 | u64::from(function.device) << 8 | u64::from(function.function);
        target.function.store(number, Ordering::SeqCst);
        target.common.store(common.address, Ordering::SeqCst);
        target.doorbells.store(doorbells.address, Ordering::SeqCst);
        target.bar.store(u64::from(function.read32(0x10) & !15), Ordering::SeqCst);
        target.express.store(function.capability(EXPRESS).unwrap_or(0).into(), Ordering::SeqCst);
        target.msix.store(function.capability(pci::MSIX).unwrap_or(0).into(), Ordering::SeqCst);
        saved[found] = Some((function, Saved::of(function)));
        found += 1;
    }
    if found == 0 {
        return Err(Failure::NoDevice("virtio"));
    }
    COUNT.store(found as u64, Ordering::SeqCst);
    RING.store(memory::permanent(0x4000), Ordering::SeqCst);
    SEED.store(seed, Ordering::SeqCst);
    STOP.store(false, Ordering::SeqCst);
    let others = smp::start_others(context, task, act_until_stopped)?;
    let mut random = Random::new(seed);
    (0..count).for_each(|_| act(&mut random));
    STOP.store(true, Ordering::SeqCst);
    others.finish()?;
    for (function, saved) in saved.iter().flatten() {
        saved.restore(*function);
    }
    for device in devices.iter().flatten() {
        device.reset()?;
    }
    report!("race-fuzz actions={count} cpus={} functions={found}", others.started + 1);
    prove_all(context, "race-fuzz")
}

fn act_until_stopped() {
    let mut random = Random::new(SEED.fetch_add(1000, Ordering::SeqCst) + 500);
    while !STOP.load(Ordering::SeqCst) {
        act(&mut random);
    }
}

/// Does something to a device.
fn act(random: &mut Random) {
    let target = &TARGETS[random.below(COUNT.load(Ordering::SeqCst)) as usize];
    let get = |field: &AtomicU64| field.load(Ordering::SeqCst);
    let number = get(&target.function);
    let function =
        Function { bus: (number >> 16) as u8, device: (number >> 8) as u8, function: number as u8 };
    let (common, bar) = (get(&target.common), get(&target.bar));
    match random.below(16) {
        0..=4 => start(common),
        5 | 6 => cpu::write8(common + STATUS, 0),
        7 | 8 if get(&target.express) != 0 => {
            function.write16(get(&target.express) as u16 + DEVICE_CONTROL, RESET);
        }
        9 => function.write16(4, function.read16(4) & !2),
        // Decoding and, mostly, bus mastering.
        10 => function.write16(4, 6),
        11 => function.write16(4, 2 + (random.next() as u16 & 4)),
        // Onto another device's, or back.
        12 => {
            let other = &TARGETS[random.below(COUNT.load(Ordering::SeqCst)) as usize];
            function.write32(0x10, get(&other.bar) as u32);
        }
        13 => function.write32(0x10, bar as u32),
        14 if get(&target.msix) != 0 => {
            function.write16(get(&target.msix) as u16 + 2, (random.next() as u16) & 0xc000);
        }
        _ => cpu::write16(get(&target.doorbells) + 4 * random.below(3), random.below(3) as u16),
    }
}

/// Sets queue 0 up and starts the device, unless another processor gets in the way.
fn start(common: u64) {
    let ring = RING.load(Ordering::SeqCst);
    cpu::write8(common + STATUS, status::ACKNOWLEDGE | status::DRIVER);
    for (select, features) in [(0, 0), (1, 1)] {
        cpu::write32(common + DRIVER_FEATURE_SELECT, select);
        cpu::write32(common + DRIVER_FEATURE, features);
    }
    cpu::write8(common + STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    for queue in 0..2 {
        cpu::write16(common + QUEUE_SELECT, queue);
        cpu::write16(common + QUEUE_SIZE, 16);
        cpu::write64(common + QUEUE_DESC, ring);
        cpu::write64(common + QUEUE_DRIVER, ring + 0x1000);
        cpu::write64(common + QUEUE_DEVICE, ring + 0x2000);
        cpu::write16(common + QUEUE_ENABLE, 1);
    }
    cpu::write8(common + STATUS, 15);
}
