//! Memory and CPUs that come and go, on the simulated backend.

use crate::control::instructions::{read32, write32};
use crate::control::{Control, STUCK, add, config, idle, ignore, kind, obey, remove};
use hypervisor::sim::{Sim, SimCpu};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::channel;
use vivarium_tests::host::Folder;
use vivarium_tests::native;
use vivarium_tests::registers::Register;
use vmm::api::request::{Resize, ResizeZone};
use vmm::api::{Answer, ErrorKind, Reply, Request};
use vmm::config::{BalloonConfig, ByteSize, HotplugMethod, MemConfig, MemoryZoneConfig, VmConfig};

fn resize(ram: Option<u64>, balloon: Option<u64>) -> Request {
    Request::Resize(Resize {
        desired_ram: ram.map(|mib| ByteSize(mib << 20)),
        desired_balloon: balloon.map(|mib| ByteSize(mib << 20)),
        ..Resize::default()
    })
}

fn resize_zone(id: &str, mib: u64) -> Request {
    Request::ResizeZone(ResizeZone { id: id.into(), desired_ram: ByteSize(mib << 20) })
}

/// What a refused call says is at fault.
fn field(answer: Answer) -> String {
    answer.unwrap_err().field.unwrap_or_default()
}

#[test]
fn memory_and_balloon_get_the_sizes_they_can_have() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::start(&sim);
    let mut config = config(&folder);
    config.memory.hotplug_method = HotplugMethod::VirtioMem;
    config.memory.hotplug_size = Some(ByteSize(256 << 20));
    config.balloon = Some(BalloonConfig::default());
    control.done(Request::Create(config));
    control.done(resize(Some(128), Some(32)));
    control.done(Request::Boot);
    let sizes = || {
        let config = &control.info()["config"];
        let mib = |value: &serde_json::Value| value.as_u64().unwrap_or(0) >> 20;
        let memory = &config["memory"];
        (mib(&memory["size"]), mib(&memory["hotplugged_size"]), mib(&config["balloon"]["size"]))
    };
    assert_eq!(sizes(), (128, 0, 32));
    control.done(resize(Some(384), None));
    control.done(resize(Some(192), Some(100)));
    assert_eq!(sizes(), (128, 64, 100));
    for (request, at_fault) in [
        (resize(Some(127), None), "desired_ram"),
        (resize(Some(385), None), "desired_ram"),
        (resize(Some(386), Some(0)), "desired_ram"),
        (resize(Some(193), None), "desired_ram"),
        (resize(Some(130), Some(385)), "desired_balloon"),
        (resize_zone("a", 128), "id"),
    ] {
        assert_eq!(field(control.call(request)), at_fault);
    }
    assert_eq!(sizes(), (128, 64, 100), "what is refused changes nothing");
    // No guest follows, so that none of it is in use.
    assert_eq!(control.info()["memory_actual_size"], 128 << 20);
    control.done(Request::Reboot);
    control.done(Request::Shutdown);
    control.done(Request::Boot);
    assert_eq!(sizes(), (128, 64, 100), "sizes outlive the machine");
    control.end();
}

#[test]
fn zones_grow_one_by_one() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let mut config = config(&folder);
    let zone = |id: &str, most: Option<u64>| MemoryZoneConfig {
        id: id.into(),
        size: ByteSize(64 << 20),
        hotplug_size: most.map(|mib| ByteSize(mib << 20)),
        ..MemoryZoneConfig::default()
    };
    config.memory.size = ByteSize(0);
    config.memory.hotplug_method = HotplugMethod::VirtioMem;
    config.memory.zones = Some(vec![zone("a", Some(64)), zone("b", None), zone("c", Some(1024))]);
    let control = Control::boot(&sim, config);
    control.done(resize_zone("c", 1064));
    control.done(resize_zone("a", 128));
    let zones = &control.info()["config"]["memory"]["zones"];
    let sizes: Vec<_> = (0..3).map(|n| zones[n]["hotplugged_size"].as_u64().unwrap_or(0) >> 20).collect();
    assert_eq!(sizes, [64, 0, 1000]);
    assert_eq!(field(control.call(resize_zone("a", 130))), "desired_ram");
    assert_eq!(field(control.call(resize_zone("b", 128))), "id");
    assert_eq!(kind(control.call(resize_zone("d", 128))), ErrorKind::NotFound);
    assert_eq!(field(control.call(resize(Some(256), None))), "desired_ram");
    assert_eq!(field(control.call(resize(None, Some(0)))), "desired_balloon");
    control.end();
}

/// A machine one of whose zones can grow.
fn growing(folder: &Folder) -> Box<VmConfig> {
    let mut config = config(folder);
    let zone = |id: &str, most: Option<u64>| MemoryZoneConfig {
        id: id.into(),
        size: ByteSize(64 << 20),
        hotplug_size: most.map(ByteSize),
        ..MemoryZoneConfig::default()
    };
    config.memory.size = ByteSize(0);
    config.memory.hotplug_method = HotplugMethod::VirtioMem;
    config.memory.zones = Some(vec![zone("a", Some(128 << 20)), zone("b", None)]);
    config
}

fn mem(zone: &str) -> MemConfig {
    MemConfig { zone: zone.into(), ..MemConfig::default() }
}

/// What a refused call says.
fn refusal(answer: Answer) -> String {
    answer.unwrap_err().to_string()
}

#[test]
fn what_memory_comes_by_goes_when_nothing_of_it_is_in_use_and_comes_again() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let control = Control::boot(&sim, growing(&folder));
    let there = || {
        let info = control.info();
        let listed = info["config"]["mem"].as_array().unwrap().len();
        let device = info["device_tree"]["__mem_a"]["pci_bdf"].as_str().map(str::to_owned);
        let growing = control.inspect("memory_devices/zones").get("a").is_some();
        assert_eq!((listed == 1, growing), (device.is_some(), device.is_some()), "{info}");
        device
    };
    for force in [false, true] {
        assert!(there().is_some());
        control.done(resize_zone("a", 128));
        let said = refusal(control.call(remove("__mem_a", force, 30_000)));
        assert!(said.contains("64M of memory by it; resize zone a to 64M first (vm.resize-zone)"), "{said}");
        control.done(resize_zone("a", 64));
        control.done(remove("__mem_a", force, 30_000));
        let nothing = |control: &Control| {
            let refused = control.call(resize_zone("a", 128)).unwrap_err();
            assert_eq!((refused.kind, refused.field.as_deref()), (ErrorKind::BadRequest, Some("id")));
            assert!(refused.message.ends_with("add one (vm.add-mem zone=a)"), "{refused}");
        };
        assert_eq!(there(), None);
        nothing(&control);
        control.done(Request::Reboot);
        assert_eq!(there(), None);
        control.done(Request::Shutdown);
        control.done(Request::Boot);
        assert_eq!(there(), None);
        nothing(&control);
        for (zone, why) in [
            ("", "--mem: the machine's memory is in zones"),
            ("b", "--mem zone=b: nothing can be added to this memory"),
            ("c", "--mem zone=c: there is no memory zone \"c\""),
        ] {
            let said = refusal(control.call(add(mem(zone))));
            assert!(said.contains(why), "{said}");
        }
        control.done(add(MemConfig { pci_device_id: Some(9), ..mem("a") }));
        assert_eq!(there().as_deref(), Some("0000:00:09.0"));
        let said = refusal(control.call(add(mem("a"))));
        assert!(said.contains("--mem zone=a: this memory has its device already"), "{said}");
        assert_eq!(control.inspect("memory_devices/zones/a")["requested_size"], 0);
        control.done(Request::Reboot);
        assert_eq!(there().as_deref(), Some("0000:00:09.0"));
    }
    control.end();
}

#[test]
fn memory_is_not_resized_by_what_the_guest_was_asked_to_release() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::boot(&sim, growing(&folder));
    assert_eq!(kind(control.call(remove("__mem_a", false, 1))), ErrorKind::Timeout);
    let refused = control.call(resize_zone("a", 128)).unwrap_err();
    assert_eq!((refused.kind, refused.field.as_deref()), (ErrorKind::Conflict, Some("id")));
    assert!(
        refused.message.contains("device __mem_a") && refused.message.contains("is being removed"),
        "{refused}"
    );
    control.done(remove("__mem_a", true, 30_000));
    control.done(add(mem("a")));
    control.done(resize_zone("a", 128));
    // A restart takes out what was asked back, and what is to be in use was not.
    assert_eq!(kind(control.call(remove("__mem_a", true, 1))), ErrorKind::Conflict);
    control.done(Request::Reboot);
    assert_eq!(control.inspect("memory_devices/zones/a")["requested_size"], 64 << 20);
    control.end();
}

#[test]
fn a_machine_that_is_not_booted_yet_loses_and_gets_what_memory_comes_by() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let mut machine = growing(&folder);
    let zones = machine.memory.zones.as_mut().unwrap();
    zones[0].hotplugged_size = Some(ByteSize(32 << 20));
    let control = Control::start(&sim);
    control.done(Request::Create(machine));
    let said = refusal(control.call(remove("__mem_a", false, 1)));
    assert!(said.contains("device __mem_a: hotplugged_size=32M of memory is to come by it"), "{said}");
    assert!(refusal(control.call(add(mem("a")))).contains("has its device already"));
    control.done(Request::Delete);
    control.done(Request::Create(growing(&folder)));
    control.done(remove("__mem_a", false, 1));
    control.done(Request::Boot);
    assert!(control.info()["device_tree"].get("__mem_a").is_none());
    control.done(Request::Shutdown);
    control.done(add(mem("a")));
    control.done(Request::Boot);
    control.done(resize_zone("a", 128));
    control.end();
}

fn resize_to(cpus: Option<u32>, ram_mib: Option<u64>) -> Request {
    let desired_ram = ram_mib.map(|mib| ByteSize(mib << 20));
    Request::Resize(Resize { desired_vcpus: cpus, desired_ram, desired_balloon: None })
}

// Registers of the controllers of CPUs and of memory, relative to the first.

const STATUS: u16 = 4;
const NEXT: u16 = 8;
const ADDRESS: u16 = 20;
const SIZE: u16 = 28;
const CAME: u32 = 2;
const GOING: u32 = 4;
const LET_GO: u32 = 8;

/// Hears what a controller has to tell: the number and the status of one slot.
fn hear(cpu: &mut SimCpu<'_>, controller: Register) -> Option<(u32, u32)> {
    let number = read32(cpu, controller.after(NEXT));
    if number == u32::MAX {
        return None;
    }
    write32(cpu, controller, number);
    let status = read32(cpu, controller.after(STATUS));
    write32(cpu, controller.after(STATUS), status & (CAME | GOING));
    Some((number, status))
}

#[test]
fn cpus_come_and_go_and_come_again() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let (sender, started) = channel();
    sim.program(0, |cpu| {
        loop {
            match hear(cpu, native().cpu_hotplug()) {
                Some((number, status)) if status & CAME != 0 => _ = cpu.start_cpu(number),
                Some((_, status)) if status & GOING != 0 => {
                    write32(cpu, native().cpu_hotplug().after(STATUS), LET_GO)
                }
                _ => {}
            }
        }
    });
    for number in 1..4 {
        let sender = std::sync::Mutex::new(sender.clone());
        sim.program(number, move |cpu| {
            sender.lock().unwrap().send(cpu.id()).unwrap();
            // It is let go of in the midst of its accesses.
            ignore(cpu);
        });
    }
    let mut machine = config(&folder);
    machine.cpus.max_vcpus = Some(4);
    let control = Control::boot(&sim, machine);
    let next = || started.recv_timeout(STUCK).unwrap();
    for _ in 0..20 {
        control.done(resize_to(Some(3), None));
        assert_eq!(BTreeSet::from([next(), next()]), BTreeSet::from([1, 2]));
        let told = [(), ()].map(|()| control.wait_for("cpu-added")["cpu"].as_u64());
        assert_eq!(told, [Some(1), Some(2)]);
        assert_eq!(control.info()["config"]["cpus"]["boot_vcpus"], 3);
        control.done(resize_to(Some(1), None));
        control.wait_for("cpu-removed");
        control.wait_for("cpu-removed");
        assert_eq!(control.info()["config"]["cpus"]["boot_vcpus"], 1);
    }
    for count in [0, 5] {
        assert_eq!(kind(control.call(resize_to(Some(count), None))), ErrorKind::BadRequest);
    }
    control.end();
}

#[test]
fn a_restart_completes_what_the_guest_did_not_do() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    for number in 0..3 {
        sim.program(number, ignore);
    }
    let mut machine = config(&folder);
    machine.cpus.max_vcpus = Some(3);
    machine.memory.hotplug_size = Some(ByteSize(512 << 20));
    machine.memory.hotplugged_size = Some(ByteSize(128 << 20));
    let control = Control::boot(&sim, machine);
    let count = |name: &str| match control.call(Request::Inspect(Default::default())) {
        Ok(Reply::Json(tree)) => tree[name].as_object().unwrap().len(),
        other => panic!("{other:?}"),
    };
    control.done(resize_to(Some(3), Some(64 + 128 + 256)));
    assert_eq!((count("cpu"), count("memory_modules")), (3, 2));
    control.done(resize_to(Some(2), Some(64 + 128)));
    assert_eq!((count("cpu"), count("memory_modules")), (3, 2), "the guest has not let go");
    control.done(Request::Reboot);
    control.wait_for("rebooted");
    assert_eq!((count("cpu"), count("memory_modules")), (2, 1));
    assert_eq!(control.info()["memory_actual_size"], (64 + 128) << 20);
    control.done(resize_to(Some(3), None));
    assert_eq!(count("cpu"), 3);
    control.end();
}

#[test]
fn memory_modules_come_hold_what_is_written_and_go() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let (sender, found) = channel();
    let sender = std::sync::Mutex::new(sender);
    sim.program(0, move |cpu| {
        loop {
            match hear(cpu, native().memory_hotplug()) {
                Some((_, status)) if status & CAME != 0 => {
                    let mut wide = |register: u16| {
                        let mut word = |at| u64::from(read32(cpu, native().memory_hotplug().after(at)));
                        word(register) | word(register + 4) << 32
                    };
                    let (address, size) = (wide(ADDRESS), wide(SIZE));
                    let last = address + size - 8;
                    // What was given back to the host has nothing of before.
                    assert_eq!((cpu.read64(address), cpu.read64(last)), (0, 0));
                    cpu.write64(address, 0x1111);
                    cpu.write64(last, 0x2222);
                    assert_eq!((cpu.read64(address), cpu.read64(last)), (0x1111, 0x2222));
                    sender.lock().unwrap().send(size >> 20).unwrap();
                }
                Some((_, status)) if status & GOING != 0 => {
                    write32(cpu, native().memory_hotplug().after(STATUS), LET_GO);
                }
                _ => {}
            }
        }
    });
    let mut machine = config(&folder);
    machine.memory.hotplug_size = Some(ByteSize(512 << 20));
    let control = Control::boot(&sim, machine);
    let memory = || control.info()["memory_actual_size"].as_u64().unwrap() >> 20;
    for _ in 0..5 {
        control.done(resize_to(None, Some(64 + 256)));
        assert_eq!(found.recv_timeout(STUCK).unwrap(), 256);
        assert_eq!(control.wait_for("memory-added")["size"], 256 << 20);
        control.done(resize_to(None, Some(64 + 256 + 128)));
        assert_eq!(found.recv_timeout(STUCK).unwrap(), 128);
        assert_eq!(control.wait_for("memory-added")["size"], 128 << 20);
        assert_eq!(memory(), 64 + 256 + 128);
        control.done(resize_to(None, Some(64 + 256)));
        control.wait_for("memory-removed");
        assert_eq!(memory(), 64 + 256);
        // Only 128M or all of it, from the 256M that are there; not more than there is room for; not below what is
        // there from the start.
        for size in [64 + 128, 64 + 250, 64 + 640, 32] {
            assert_eq!(kind(control.call(resize_to(None, Some(size)))), ErrorKind::BadRequest, "{size}");
        }
        control.done(resize_to(None, Some(64)));
        control.wait_for("memory-removed");
        assert_eq!(memory(), 64);
    }
    control.end();
}

#[test]
fn sizes_change_all_together_or_not_at_all() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let (let_go, slots) = channel();
    let slots = std::sync::Mutex::new(slots);
    sim.program(0, move |cpu| {
        loop {
            idle(cpu);
            if let Ok(slot) = slots.lock().unwrap().try_recv() {
                write32(cpu, native().memory_hotplug(), slot);
                write32(cpu, native().memory_hotplug().after(STATUS), LET_GO);
            }
        }
    });
    sim.program(1, ignore);
    let mut machine = config(&folder);
    machine.cpus.max_vcpus = Some(2);
    machine.memory.hotplug_size = Some(ByteSize(512 << 20));
    let control = Control::boot(&sim, machine);
    for modules in 1..=4 {
        control.done(resize_to(None, Some(64 + modules * 128)));
    }
    // What is left free is not in one piece.
    for slot in [0, 2] {
        let_go.send(slot).unwrap();
        control.wait_for("memory-removed");
    }
    let sizes = || {
        let info = control.info();
        (info["config"]["cpus"]["boot_vcpus"].clone(), info["memory_actual_size"].as_u64().unwrap() >> 20)
    };
    assert_eq!(sizes(), (1.into(), 64 + 256));
    let refused = control.call(resize_to(Some(2), Some(64 + 512))).unwrap_err();
    assert!(refused.message.contains("in one piece"), "{refused}");
    assert_eq!(sizes(), (1.into(), 64 + 256));
    assert!(control.inspect("cpu")["1"].is_null(), "no CPU came");
    control.done(resize_to(Some(2), Some(64 + 256 + 128)));
    assert_eq!(sizes(), (2.into(), 64 + 256 + 128));
    control.end();
    assert_eq!(sim.resources(), Default::default());
}

#[test]
fn cpus_that_the_guest_has_not_let_go_of_are_counted() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    sim.program(1, ignore);
    let mut machine = config(&folder);
    machine.cpus.boot_vcpus = 2;
    let control = Control::boot(&sim, machine);
    let cpus = || {
        let info = control.info();
        (info["config"]["cpus"]["boot_vcpus"].clone(), info["cpus_actual"].clone())
    };
    assert_eq!(cpus(), (2.into(), 2.into()));
    control.done(resize_to(Some(1), None));
    assert_eq!(cpus(), (1.into(), 2.into()));
    assert!(control.inspect("cpu")["1"].is_object());
    control.done(Request::Reboot);
    assert_eq!(cpus(), (1.into(), 1.into()));
    control.end();
}

#[test]
fn memory_is_taken_from_the_host_ahead_of_a_change() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    sim.program(1, ignore);
    let mut machine = config(&folder);
    machine.cpus.max_vcpus = Some(2);
    machine.memory.hotplug_size = Some(ByteSize(128 << 20));
    machine.memory.prefault = true;
    let control = Control::boot(&sim, machine);
    let (resize, pause) = (control.begin(resize_to(Some(2), Some(64 + 128))), control.begin(Request::Pause));
    // Queries do not wait for it, other changes do.
    control.info();
    resize.recv_timeout(STUCK).unwrap().unwrap();
    pause.recv_timeout(STUCK).unwrap().unwrap();
    assert_eq!(control.info()["memory_actual_size"], (64 + 128) << 20);
    assert!(control.inspect("cpu")["1"]["paused"].as_bool().unwrap());
    control.end();
}
