//! `pio-fuzz`, `mmio-fuzz`, `config-fuzz`: random accesses, the same for the same seed.
//!
//! After each, every virtio device must still do its work.

use super::abuse::prove;
use super::{Context, Failure, Outcome};
use crate::command_line::{Task, number};
use crate::pci::Function;
use crate::random::Random;
use crate::virtio::{self, Device};
use crate::{cpu, memory, pci, print, report};

/// Ports that end the machine, or stop it, on one monitor or another; more by `exclude=`.
const EXCLUDED: &[(u16, u16)] = &[
    (0x60, 0x64),
    (0x92, 0x92),
    (0xb2, 0xb3),
    (0xf4, 0xf4),
    (0x3c0, 0x3c0),
    (0x402, 0x402),
    (0x501, 0x505),
    (0x600, 0x60f),
    (0xcf8, 0xcff),
];
pub(super) const DEVICES: usize = 16;

/// `pio-fuzz n=2000 seed=1 low=0 high=0xffff exclude=0x600-0x60f,0xb000`.
pub fn ports(context: &Context, task: &Task) -> Outcome {
    let count = task.number("n", 2000)?;
    let mut random = Random::new(task.number("seed", 1)?);
    let low = task.number("low", 0)?.min(0xffff);
    let high = task.number("high", 0xffff)?.clamp(low, 0xffff);
    let exclude = task.text("exclude").unwrap_or("");
    let (mut reads, mut writes) = (0u64, 0u64);
    for _ in 0..count {
        let port = (low + random.below(high - low + 1)) as u16;
        let (width, value) = (1 << random.below(3), random.next());
        let touches = |first: u16, last: u16| port <= last && u32::from(port) + width > u32::from(first);
        if (0..width).any(|offset| print::is_output(port.wrapping_add(offset as u16)))
            || EXCLUDED.iter().any(|&(first, last)| touches(first, last))
            || excluded_by(exclude).any(|(first, last)| touches(first, last))
        {
            continue;
        }
        let write = value >> 63 != 0;
        match (write, width) {
            (false, 1) => _ = cpu::in8(port),
            (false, 2) => _ = cpu::in16(port),
            (false, _) => _ = cpu::in32(port),
            (true, 1) => cpu::out8(port, value as u8),
            (true, 2) => cpu::out16(port, value as u16),
            (true, _) => cpu::out32(port, value as u32),
        }
        if write {
            writes += 1;
        } else {
            reads += 1;
        }
    }
    report!("pio-fuzz reads={reads} writes={writes}");
    prove_all(context, "pio-fuzz")
}

fn excluded_by(text: &str) -> impl Iterator<Item = (u16, u16)> {
    text.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((number(first)? as u16, number(last)? as u16))
    })
}

/// `mmio-fuzz n=2000 seed=1 dma=0`: registers of virtio devices and the space around them. With `dma=0` the devices
/// cannot reach RAM meanwhile, so that the guest survives whatever queues come about.
pub fn device_memory(context: &Context, task: &Task) -> Outcome {
    let count = task.number("n", 2000)?;
    let mut random = Random::new(task.number("seed", 1)?);
    let dma = task.switch("dma", false)?;
    let mut devices: [Option<Device>; DEVICES] = [None; DEVICES];
    let found = collect(context, &mut devices);
    if found == 0 {
        return Err(Failure::NoDevice("virtio"));
    }
    for device in devices.iter().flatten() {
        if let (Some(function), false) = (device.function(), dma) {
            function.write16(4, function.read16(4) & !4);
        }
    }
    for _ in 0..count {
        let Some(device) = devices[random.below(found) as usize] else { continue };
        let Some(area) = device.areas()[random.below(4) as usize] else { continue };
        let reach = if device.function().is_some() { area.size.min(0x1000) + 16 } else { area.size };
        let address = area.address + random.below(reach);
        access(&mut random, address);
    }
    for device in devices.iter().flatten() {
        device.reset()?;
        if let Some(function) = device.function() {
            function.enable();
        }
    }
    report!("mmio-fuzz accesses={count} devices={found}");
    prove_all(context, "mmio-fuzz")
}

/// One access of random width and direction; half of the written values are small ones, which mean more.
fn access(random: &mut Random, address: u64) {
    let choice = random.next();
    let value = if choice & 0x100 != 0 { random.next() } else { random.below(8) };
    match choice & 7 {
        0 => _ = cpu::read8(address),
        1 => _ = cpu::read16(address),
        2 => _ = cpu::read32(address),
        3 => _ = cpu::read64(address),
        4 => cpu::write8(address, value as u8),
        5 => cpu::write16(address, value as u16),
        6 => cpu::write32(address, value as u32),
        _ => cpu::write64(address, value),
    }
}

/// `config-fuzz n=2000 seed=1`: configuration spaces of virtio devices, bus mastering left off. BARs, command register,
/// power state and interrupt controls are put back before the devices are tried.
pub fn configuration(context: &Context, task: &Task) -> Outcome {
    let count = task.number("n", 2000)?;
    let mut random = Random::new(task.number("seed", 1)?);
    let reach = if pci::ecam() != 0 { 4096 } else { 256 };
    let mut devices: [Option<Device>; DEVICES] = [None; DEVICES];
    collect(context, &mut devices);
    let mut functions = 0;
    for device in devices.iter().flatten() {
        let Some(function) = device.function() else { continue };
        functions += 1;
        let saved = Saved::of(function);
        // Without decoding, no BAR can come to lie over RAM or the APICs; without mastering, nothing writes RAM.
        function.write16(4, 0);
        for _ in 0..count {
            let offset = random.below(reach) as u16;
            let value = random.next();
            match value >> 61 {
                0 => _ = function.read8(offset),
                1 => _ = function.read16(offset & !1),
                2 => _ = function.read32(offset & !3),
                3 | 4 if offset & !1 != 4 => function.write8(offset, value as u8),
                5 if offset & !1 != 4 => function.write16(offset & !1, value as u16),
                6 | 7 if offset & !3 != 4 => function.write32(offset & !3, value as u32),
                _ => {}
            }
        }
        saved.restore(function);
    }
    report!("config-fuzz accesses={} functions={functions}", count * functions);
    prove_all(context, "config-fuzz")
}

/// What of a configuration space a guest may change and needs again.
pub(super) struct Saved {
    command: u16,
    bars: [u32; 6],
    msix: Option<(u16, u16)>,
    power: Option<u16>,
}

impl Saved {
    pub(super) fn of(function: Function) -> Saved {
        let mut bars = [0; 6];
        bars.iter_mut().zip(0u16..).for_each(|(bar, index)| *bar = function.read32(0x10 + 4 * index));
        let msix = function.capability(pci::MSIX).map(|offset| (offset, function.read16(offset + 2)));
        let power = function.capability(pci::POWER_MANAGEMENT);
        Saved { command: function.read16(4), bars, msix, power }
    }

    pub(super) fn restore(&self, function: Function) {
        if let Some(offset) = self.power {
            // First: a function that sleeps has no BARs, and may forget its registers when it wakes to D0.
            function.write16(offset + 4, 0);
        }
        function.write16(4, 0);
        self.bars.iter().zip(0u16..).for_each(|(&bar, index)| function.write32(0x10 + 4 * index, bar));
        if let Some((offset, control)) = self.msix {
            function.write16(offset + 2, control);
        }
        function.write16(4, self.command);
    }
}

pub(super) fn collect(context: &Context, to: &mut [Option<Device>; DEVICES]) -> u64 {
    let mut found = 0;
    virtio::devices(context.line, |device| {
        if found < DEVICES {
            to[found] = Some(device);
            found += 1;
        }
    });
    found as u64
}

/// Lets every virtio device do a piece of its work.
pub(super) fn prove_all(context: &Context, name: &str) -> Outcome {
    let mut devices: [Option<Device>; DEVICES] = [None; DEVICES];
    let found = collect(context, &mut devices);
    let mut failed = 0;
    for device in devices.iter().flatten() {
        let mark = memory::mark();
        if let Err(failure) = prove(device) {
            report!("{name} kind={} works=0 because=\"{failure}\"", device.kind.name());
            failed += 1;
        }
        memory::release(mark);
    }
    report!("{name} devices={found} failed={failed}");
    if failed > 0 { Err(Failure::Checks(failed)) } else { Ok(()) }
}
