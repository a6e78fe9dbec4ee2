//! `acpi_hotplug`: the controllers of PCI, CPU and memory hotplug, their machine and their guest.

use crate::device::{reset_or_look, restore_own_state};
use crate::input::Input;
use devices::acpi_hotplug::cpu::CpuHotplug;
use devices::acpi_hotplug::memory::{MemoryHotplug, Module};
use devices::acpi_hotplug::pci::PciHotplug;
use devices::platform::PlatformDevice;
use machine::effect::{Effect, HotplugPart};
use std::collections::BTreeSet;

const STEPS: usize = 300;
const SEGMENTS: u16 = 3;
const CPUS: u32 = 5;
const SLOTS: u32 = 4;

const NEXT: u64 = 8;
const STATUS: u64 = 4;

/// What the machine does and what the guest accesses. The guest lets go of nothing that is not there.
pub fn acpi_hotplug(data: &[u8]) {
    let input = &mut Input::new(data);
    let mut machine = Machine {
        pci: PciHotplug::new(SEGMENTS),
        cpu: CpuHotplug::new(CPUS, 2),
        memory: MemoryHotplug::new(SLOTS),
        cpus: (0..2).collect(),
        modules: BTreeSet::new(),
    };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        machine.step(input);
    }
    machine.finish();
}

struct Machine {
    pci: PciHotplug,
    cpu: CpuHotplug,
    memory: MemoryHotplug,
    /// The CPUs there are.
    cpus: BTreeSet<u32>,
    /// The memory slots that have something.
    modules: BTreeSet<u32>,
}

impl Machine {
    fn choose(&mut self, input: &mut Input<'_>) -> (u64, &mut dyn PlatformDevice) {
        match input.below(3) {
            0 => (PciHotplug::PORTS.size, &mut self.pci),
            1 => (CpuHotplug::PORTS.size, &mut self.cpu),
            _ => (MemoryHotplug::PORTS.size, &mut self.memory),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(12) {
            0 | 1 => {
                let (window, device) = self.choose(input);
                let (offset, size) = access(window, input);
                device.read(offset, &mut [0xff; 8][..size]);
            }
            2..=6 => {
                let (window, device) = self.choose(input);
                let (offset, size) = access(window, input);
                let value = if input.flag() { input.u8().into() } else { input.u64() };
                let effect = device.write(offset, &value.to_le_bytes()[..size]);
                self.check(effect);
            }
            7 => {
                let (segment, device) = (input.below(5), input.u8());
                match input.below(3) {
                    0 => self.pci.plug(segment, device),
                    1 => self.pci.request_unplug(segment, device),
                    _ => self.pci.forget(segment, device),
                }
            }
            8 => {
                let cpu = input.below(8).into();
                match input.below(4) {
                    0 => {
                        self.cpu.plug(cpu);
                        self.cpus.extend((cpu < CPUS).then_some(cpu));
                    }
                    1 => self.cpu.request_unplug(cpu),
                    2 => self.cpu.withdraw_request(cpu),
                    _ => {
                        self.cpu.remove(cpu);
                        self.cpus.remove(&cpu);
                    }
                }
            }
            9 => {
                let slot = input.below(6).into();
                match input.below(4) {
                    0 => {
                        let module = Module { address: input.u64(), size: input.u64(), node: input.u32() };
                        self.memory.plug(slot, module);
                        self.modules.extend((slot < SLOTS).then_some(slot));
                    }
                    1 => self.memory.request_unplug(slot),
                    2 => self.memory.withdraw_request(slot),
                    _ => {
                        self.memory.remove(slot);
                        self.modules.remove(&slot);
                    }
                }
            }
            10 => {
                let (_, device) = self.choose(input);
                restore_own_state(device);
            }
            _ => {
                let reset = input.below(4) == 0;
                let (_, device) = self.choose(input);
                reset_or_look(device, reset);
            }
        }
        for cpu in 0..CPUS + 2 {
            assert_eq!(self.cpu.is_present(cpu), self.cpus.contains(&cpu));
        }
        for slot in 0..SLOTS + 2 {
            assert_eq!(self.memory.module(slot).is_some(), self.modules.contains(&slot));
        }
    }

    /// What the guest lets go of was there, and is gone now.
    fn check(&mut self, effect: Option<Effect>) {
        match effect {
            Some(Effect::Eject { segment, devices }) => {
                assert!(segment < SEGMENTS && devices != 0 && devices & 1 == 0);
            }
            Some(Effect::EjectCpu(cpu)) => assert!(cpu > 0 && self.cpus.remove(&cpu)),
            Some(Effect::EjectMemory(slot)) => assert!(self.modules.remove(&slot)),
            Some(Effect::ReleaseRefused { part: HotplugPart::Cpu, number, .. }) => assert!(number < CPUS),
            Some(Effect::ReleaseRefused { part: HotplugPart::Memory, number, .. }) => assert!(number < SLOTS),
            Some(other) => panic!("a hotplug controller asks for {other:?}"),
            None => {}
        }
    }

    /// A guest that listens has heard of everything when each slot was told once.
    fn finish(&mut self) {
        let controllers: [(u32, &mut dyn PlatformDevice); 2] =
            [(CPUS, &mut self.cpu), (SLOTS, &mut self.memory)];
        for (count, device) in controllers {
            let mut turns = 0;
            loop {
                let mut next = [0; 4];
                device.read(NEXT, &mut next);
                if next == [0xff; 4] {
                    break;
                }
                assert!(u32::from_le_bytes(next) < count && turns < count, "the news have no end");
                turns += 1;
                device.write(0, &next);
                let mut status = [0; 4];
                device.read(STATUS, &mut status);
                device.write(STATUS, &[status[0] & 6, 0, 0, 0]);
            }
        }
    }
}

/// A place within a window and a size; mostly a word's.
fn access(window: u64, input: &mut Input<'_>) -> (u64, usize) {
    if input.below(8) != 0 {
        return (u64::from(input.u8()) % (window / 4) * 4, 4);
    }
    let size = 1u64 << input.below(4);
    (u64::from(input.u8()) % (window - size + 1), size as usize)
}
