//! Whole machines on the simulated backend: no KVM, and CPUs that follow a script. What is tested is how the parts work
//! together: exits to buses, effects to the machine thread, doorbells to workers, interrupts back.

use crate::control::idle;
use crate::control::instructions::{config, power_off, read8, reset, write_config, write8};
use hypervisor::CpuAnswer;
use hypervisor::sim::{Sim, SimCpu};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vivarium_tests::host::{Folder, lacks_call};
use vivarium_tests::{Feature, lacks, native, tiny_kernel};
use vmm::cli::{self, Command};
use vmm::machine::Ended;
use vmm::monitor::Monitor;

const RAM: u64 = native().ram_start();

/// Runs a machine of `words` whose CPUs have the programs of `sim`, to its end.
fn run(sim: &Arc<Sim>, folder: &Folder, words: &str) -> Ended {
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, tiny_kernel::bytes()).unwrap();
    let line = format!(
        "vivarium --kernel {} --console off --memory size=64M --platform acpi=on {words}",
        kernel.display()
    );
    let run = match cli::parse(line.split_whitespace().map(Into::into)) {
        Ok(Command::Run(run)) => run,
        other => panic!("{line}: {other:?}"),
    };
    let mut monitor = Monitor::new(Arc::clone(sim) as _).unwrap();
    monitor.boot(run.config.unwrap()).unwrap();
    monitor.run().unwrap()
}

#[test]
fn a_machine_powers_off() {
    let sim = Arc::new(Sim::new());
    sim.program(0, power_off);
    assert!(matches!(run(&sim, &Folder::new(), ""), Ended::PoweredOff));
}

#[test]
fn a_machine_restarts_with_its_memory_and_devices_as_they_were() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let starts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&starts);
    sim.program(0, move |cpu| {
        let bar = config(cpu, 1, 0x10);
        assert_eq!(read8(cpu, native().serial_scratch()), 0, "the serial port's scratch register");
        write8(cpu, native().serial_scratch(), 0x5a);
        write_config(cpu, 1, 0x10, bar.wrapping_add(0x10_0000));
        if counted.fetch_add(1, Ordering::Relaxed) < 10 {
            reset(cpu);
            unreachable!("the machine was reset");
        }
        power_off(cpu);
    });
    assert!(matches!(run(&sim, &folder, "--serial null"), Ended::PoweredOff));
    assert_eq!(starts.load(Ordering::Relaxed), 11);
}

#[test]
fn a_cpu_that_fails_says_why() {
    let sim = Arc::new(Sim::new());
    sim.program(0, |cpu| cpu.triple_fault());
    let ended = run(&sim, &Folder::new(), "");
    assert!(
        matches!(&ended, Ended::Failed(failure) if failure.to_string().contains("triple fault")),
        "{ended:?}"
    );
}

/// Where CPUs say that they run.
const MARKS: u64 = RAM + 0x20_0000;

#[test]
fn cpus_start_one_another_and_share_memory() {
    let sim = Arc::new(Sim::new());
    sim.program(0, |cpu| {
        for other in 1..4 {
            cpu.start_cpu(other);
        }
        while (1..4).any(|other| cpu.read8(MARKS + other) == 0) {}
        power_off(cpu);
    });
    for other in 1..4 {
        sim.program(other, move |cpu| cpu.write8(MARKS + u64::from(other), 1));
    }
    assert!(matches!(run(&sim, &Folder::new(), "--cpus boot=4"), Ended::PoweredOff));
}

#[test]
fn a_cpu_that_is_not_there_is_denied_as_far_as_the_host_lets() {
    if lacks(Feature::FirmwareStartsCpus) {
        return;
    }
    for (old_host, refusal) in [(false, CpuAnswer::Absent), (true, CpuAnswer::AlreadyOn)] {
        let sim = Arc::new(Sim::new());
        if old_host {
            sim.answer_cpu_calls();
        }
        sim.program(0, move |cpu| {
            assert_eq!([1, 2, 3].map(|other| cpu.start_cpu(other)), [CpuAnswer::Starts, refusal, refusal]);
            assert_eq!(cpu.start_cpu(4), CpuAnswer::NoSuchCpu);
            assert_eq!([0..1, 1..2, 4..8].map(|cpus| cpu.cpu_state(cpus)), {
                use CpuAnswer::{NoSuchCpu, On};
                [On, On, NoSuchCpu]
            });
            power_off(cpu);
        });
        let ended = run(&sim, &Folder::new(), "--cpus boot=2,max=4");
        assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
    }
}

#[test]
fn a_restart_turns_cpus_off() {
    if lacks(Feature::FirmwareStartsCpus) {
        return;
    }
    let sim = Arc::new(Sim::new());
    let starts = AtomicU32::new(0);
    sim.program(0, move |cpu| {
        assert_eq!(cpu.cpu_state(1..3), CpuAnswer::Off);
        assert_eq!(cpu.start_cpu(1), CpuAnswer::Starts);
        assert_eq!([1..2, 2..3].map(|cpus| cpu.cpu_state(cpus)), [CpuAnswer::On, CpuAnswer::Off]);
        // CPU 2 is off in the first run because it was never started, then because it stopped.
        assert_eq!(cpu.start_cpu(2), CpuAnswer::Starts);
        while cpu.cpu_state(2..3) != CpuAnswer::Off {}
        if starts.fetch_add(1, Ordering::Relaxed) < 5 {
            reset(cpu);
        }
        power_off(cpu);
    });
    sim.program(1, idle);
    sim.program(2, |cpu| cpu.stop_cpu());
    let ended = run(&sim, &Folder::new(), "--cpus boot=3");
    assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
}

#[test]
fn any_cpu_can_end_the_machine_while_others_are_busy() {
    let sim = Arc::new(Sim::new());
    sim.program(0, |cpu| {
        cpu.start_cpu(1);
        loop {
            idle(cpu);
        }
    });
    sim.program(1, power_off);
    assert!(matches!(run(&sim, &Folder::new(), "--cpus boot=2"), Ended::PoweredOff));
}

#[test]
fn the_serial_port_writes_to_its_file() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, |cpu| {
        for byte in b"hello" {
            write8(cpu, native().serial_data(), *byte);
        }
        power_off(cpu);
    });
    let file = folder.join("serial");
    run(&sim, &folder, &format!("--serial file={}", file.display()));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "hello");
}

/// Memory decoding and bus mastering.
const ENABLE: u32 = 0x6;

/// A virtio function: where its structures are.
#[derive(Clone, Copy, Default)]
struct Virtio {
    device: u8,
    common: u64,
    notify: u64,
    multiplier: u32,
    msix_control: u8,
    msix_table: u64,
}

/// The virtio function with this PCI device ID, decoding and mastering.
fn find(cpu: &mut SimCpu<'_>, id: u32) -> Virtio {
    let device =
        (0..32).find(|device| config(cpu, *device, 0) == id << 16 | 0x1af4).expect("the device is there");
    write_config(cpu, device, 4, ENABLE);
    let mut found = Virtio { device, ..Virtio::default() };
    let bar = bar0(cpu, device);
    let mut at = config(cpu, device, 0x34) as u8;
    while at != 0 {
        let header = config(cpu, device, at);
        match header as u8 {
            0x09 => {
                let offset = u64::from(config(cpu, device, at + 8));
                match header >> 24 {
                    1 => found.common = bar + offset,
                    2 => {
                        found.notify = bar + offset;
                        found.multiplier = config(cpu, device, at + 16);
                    }
                    _ => {}
                }
            }
            0x11 => {
                found.msix_control = at;
                found.msix_table = bar + u64::from(config(cpu, device, at + 4) & !7);
            }
            _ => {}
        }
        at = (header >> 8) as u8;
    }
    found
}

fn bar0(cpu: &mut SimCpu<'_>, device: u8) -> u64 {
    u64::from(config(cpu, device, 0x10) & !0xf) | u64::from(config(cpu, device, 0x14)) << 32
}

// Registers of the common configuration structure (virtio 1.2, 4.1.4.3), and device status bits.

const FEATURE_SELECT: u64 = 8;
const FEATURES: u64 = 12;
const STATUS: u64 = 20;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_ADDRESSES: u64 = 32;
const DRIVER: u8 = 1 | 2;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;

const DESCRIPTORS: u64 = RAM + 0x30_0000;
const AVAIL: u64 = RAM + 0x30_1000;
const USED: u64 = RAM + 0x30_2000;
const HEADER: u64 = RAM + 0x31_0000;
const DATA: u64 = RAM + 0x32_0000;
/// RAM that nothing else is in.
const ELSEWHERE: u64 = RAM + 0x40_0000;
const QUEUE_ENTRIES: u16 = 8;
const VECTOR: u8 = 0x51;

/// Sets the device up with one queue whose interrupts have [`VECTOR`].
fn start(cpu: &mut SimCpu<'_>, device: Virtio) {
    let common = device.common;
    cpu.write8(common + STATUS, 0);
    while cpu.read8(common + STATUS) != 0 {}
    cpu.write8(common + STATUS, DRIVER);
    // VIRTIO_F_VERSION_1 alone.
    cpu.write32(common + FEATURE_SELECT, 0);
    cpu.write32(common + FEATURES, 0);
    cpu.write32(common + FEATURE_SELECT, 1);
    cpu.write32(common + FEATURES, 1);
    cpu.write8(common + STATUS, DRIVER | FEATURES_OK);
    assert_ne!(cpu.read8(common + STATUS) & FEATURES_OK, 0);
    let control = config(cpu, device.device, device.msix_control);
    write_config(cpu, device.device, device.msix_control, control | 1 << 31);
    for (word, value) in [0xfee0_0000, 0, u32::from(VECTOR), 0].into_iter().enumerate() {
        cpu.write32(device.msix_table + 4 * word as u64, value);
    }
    cpu.write(AVAIL, &[0; 64]);
    cpu.write(USED, &[0; 128]);
    cpu.write16(common + QUEUE_SIZE, QUEUE_ENTRIES);
    cpu.write16(common + QUEUE_VECTOR, 0);
    for (index, address) in [DESCRIPTORS, AVAIL, USED].into_iter().enumerate() {
        cpu.write32(common + QUEUE_ADDRESSES + 8 * index as u64, address as u32);
        cpu.write32(common + QUEUE_ADDRESSES + 8 * index as u64 + 4, 0);
    }
    cpu.write16(common + QUEUE_ENABLE, 1);
    cpu.write8(common + STATUS, DRIVER | FEATURES_OK | DRIVER_OK);
}

/// Gives the device a chain of (address, length, device writes), and waits for the interrupt that it is used.
fn request(cpu: &mut SimCpu<'_>, device: Virtio, chain: &[(u64, u32, bool)]) {
    for (index, &(address, length, writes)) in (0u16..).zip(chain) {
        let at = DESCRIPTORS + 16 * u64::from(index);
        let more = usize::from(index) + 1 < chain.len();
        cpu.write64(at, address);
        cpu.write32(at + 8, length);
        cpu.write16(at + 12, u16::from(more) | u16::from(writes) << 1);
        cpu.write16(at + 14, index + 1);
    }
    let next = cpu.read16(AVAIL + 2);
    cpu.write16(AVAIL + 4 + 2 * u64::from(next % QUEUE_ENTRIES), 0);
    cpu.write16(AVAIL + 2, next.wrapping_add(1));
    // The only queue has notification offset 0.
    cpu.write16(device.notify, 0);
    while cpu.read16(USED + 2) != next.wrapping_add(1) {
        assert_eq!(cpu.wait_interrupt(), VECTOR);
        cpu.end_of_interrupt(VECTOR);
    }
}

/// Writes (1) or reads (0) sector `sector`, and returns the device's answer.
fn transfer(cpu: &mut SimCpu<'_>, device: Virtio, kind: u32, sector: u64) -> u8 {
    cpu.write32(HEADER, kind);
    cpu.write64(HEADER + 8, sector);
    cpu.write8(HEADER + 16, 0xff);
    request(cpu, device, &[(HEADER, 16, false), (DATA, 512, kind == 0), (HEADER + 16, 1, true)]);
    cpu.read8(HEADER + 16)
}

const BLOCK: u32 = 0x1042;
const ENTROPY: u32 = 0x1044;

#[test]
fn a_disk_serves_requests_and_serves_again_after_resets() {
    if lacks_call("pwritev2", libc::SYS_pwritev2) {
        return;
    }
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let disk = folder.sparse("disk", 1 << 20);
    sim.program(0, |cpu| {
        let device = find(cpu, BLOCK);
        for round in 0..3u8 {
            start(cpu, device);
            cpu.write(DATA, &[0x40 + round; 512]);
            assert_eq!(transfer(cpu, device, 1, 7 + u64::from(round)), 0);
            cpu.write(DATA, &[0; 512]);
            assert_eq!(transfer(cpu, device, 0, 7 + u64::from(round)), 0);
            let mut data = [0; 512];
            cpu.read(DATA, &mut data);
            assert_eq!(data, [0x40 + round; 512]);
            // Beyond the end.
            assert_eq!(transfer(cpu, device, 1, 2048), 1);
        }
        power_off(cpu);
    });
    let ended = run(&sim, &folder, &format!("--disk path={}", disk.display()));
    assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
    let image = std::fs::read(disk).unwrap();
    for round in 0..3 {
        let at = (7 + round) * 512;
        assert_eq!(image[at..at + 512], [0x40 + round as u8; 512]);
    }
}

#[test]
fn a_restart_of_the_machine_keeps_the_disk_and_resets_its_device() {
    if lacks_call("pwritev2", libc::SYS_pwritev2) {
        return;
    }
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let disk = folder.sparse("disk", 1 << 20);
    // After the restart the guest reads what it wrote, and ends.
    let restarted = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&restarted);
    sim.program(0, move |cpu| {
        let device = find(cpu, BLOCK);
        start(cpu, device);
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            cpu.write(DATA, &[0x77; 512]);
            assert_eq!(transfer(cpu, device, 1, 0), 0);
            reset(cpu);
        }
        assert_eq!(transfer(cpu, device, 0, 0), 0);
        let mut data = [0; 512];
        cpu.read(DATA, &mut data);
        assert_eq!(data, [0x77; 512]);
        power_off(cpu);
    });
    let ended = run(&sim, &folder, &format!("--disk path={}", disk.display()));
    assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
    assert_eq!(restarted.load(Ordering::Relaxed), 2);
}

#[test]
fn a_bar_that_is_moved_takes_registers_and_doorbells_along() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, |cpu| {
        let mut device = find(cpu, ENTROPY);
        let old = bar0(cpu, device.device);
        let new = old + 0x1000_0000;
        // Moved while it decodes, halves first; then back by way of not decoding.
        write_config(cpu, device.device, 0x10, new as u32);
        for place in [&mut device.common, &mut device.notify, &mut device.msix_table] {
            *place = *place - old + new;
        }
        assert_eq!(cpu.read32(old), u32::MAX, "nothing is left at the old place");
        start(cpu, device);
        cpu.write(DATA, &[0; 64]);
        request(cpu, device, &[(DATA, 64, true)]);
        let mut data = [0; 64];
        cpu.read(DATA, &mut data);
        assert_ne!(data, [0; 64]);
        power_off(cpu);
    });
    let ended = run(&sim, &folder, "");
    assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
}

#[test]
fn one_bar_moved_onto_another_harms_neither_for_good() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let disk = folder.sparse("disk", 1 << 20);
    sim.program(0, |cpu| {
        let (block, entropy) = (find(cpu, BLOCK), find(cpu, ENTROPY));
        let (at_block, at_entropy) = (bar0(cpu, block.device), bar0(cpu, entropy.device));
        write_config(cpu, entropy.device, 0x10, at_block as u32);
        // The disk, which was there first, still works.
        start(cpu, block);
        assert_eq!(transfer(cpu, block, 0, 0), 0);
        // Onto RAM, where it must not answer.
        cpu.write32(ELSEWHERE, 0x1234_5678);
        write_config(cpu, entropy.device, 0x10, ELSEWHERE as u32);
        write_config(cpu, entropy.device, 0x14, 0);
        assert_eq!(cpu.read32(ELSEWHERE), 0x1234_5678);
        write_config(cpu, entropy.device, 0x14, (at_entropy >> 32) as u32);
        write_config(cpu, entropy.device, 0x10, at_entropy as u32);
        start(cpu, entropy);
        request(cpu, entropy, &[(DATA, 64, true)]);
        power_off(cpu);
    });
    let ended = run(&sim, &folder, &format!("--disk path={}", disk.display()));
    assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
}

#[test]
fn a_ring_of_nonsense_needs_a_reset_and_gets_over_it() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let disk = folder.sparse("disk", 1 << 20);
    sim.program(0, |cpu| {
        let device = find(cpu, BLOCK);
        for head in [QUEUE_ENTRIES, 0xffff] {
            start(cpu, device);
            cpu.write16(AVAIL + 4, head);
            cpu.write16(AVAIL + 2, 1);
            cpu.write16(device.notify, 0);
            // DEVICE_NEEDS_RESET.
            while cpu.read8(device.common + STATUS) & 0x40 == 0 {}
        }
        start(cpu, device);
        assert_eq!(transfer(cpu, device, 0, 0), 0);
        power_off(cpu);
    });
    let ended = run(&sim, &folder, &format!("--disk path={}", disk.display()));
    assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
}
