//! PCI Express ports and switches that come and go, on the simulated backend.

use crate::control::instructions::{read32, write32};
use crate::control::{Control, Random, add, config, eject, idle, ignore, kind, obey, release, remove};
use hypervisor::sim::{Resources, Sim, SimCpu};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vivarium_tests::host::Folder;
use vivarium_tests::registers::Register::Port;
use vivarium_tests::{Architecture, native};
use vmm::api::request::{AddPort, SwitchPorts};
use vmm::api::{ErrorKind, Reply, Request};
use vmm::config::{ByteSize, DiskConfig, PciPortConfig, PciPortKind, PciSegmentConfig, VmConfig};

fn port(id: &str) -> PciPortConfig {
    PciPortConfig { id: id.into(), ..PciPortConfig::default() }
}

fn upstream(id: &str, bus: &str) -> PciPortConfig {
    PciPortConfig { kind: PciPortKind::Upstream, bus: Some(bus.into()), ..port(id) }
}

fn add_port(port: PciPortConfig, below: &[PciPortConfig]) -> Request {
    Request::AddPort(Box::new(AddPort { port, switch: SwitchPorts { ports: below.to_vec() } }))
}

fn disk(path: &Path, bus: &str) -> Request {
    let (path, id) = (Some(path.to_owned()), Some("data".to_owned()));
    add(DiskConfig { path, id, bus: Some(bus.into()), ..DiskConfig::default() })
}

/// A machine with a port that keeps bus numbers, and one that keeps none.
fn machine(folder: &Folder) -> Box<VmConfig> {
    let mut machine = config(folder);
    machine.pci_ports = vec![PciPortConfig { bus_reserve: 3, ..port("rp0") }, port("rp1")];
    machine
}

/// Where all that has a name is, beside what the machine has in any case.
fn places(control: &Control) -> Value {
    let mut tree = control.info()["device_tree"].clone();
    let places = tree.as_object_mut().unwrap();
    places.retain(|id, _| !id.starts_with("__"));
    places.iter().map(|(id, node)| (id.clone(), node["pci_bdf"].clone())).collect()
}

fn configured(control: &Control) -> Vec<String> {
    let info = control.info();
    let ports = info["config"]["pci_ports"].as_array().unwrap();
    ports.iter().map(|port| port["id"].as_str().unwrap().to_owned()).collect()
}

/// A call is refused for a reason, and nothing is changed.
fn refused(control: &Control, request: Request, reason: &str) {
    let before = control.info();
    let error = control.call(request).unwrap_err();
    assert!(error.message.contains(reason), "\"{reason}\" is not in: {error}");
    assert!(matches!(error.kind, ErrorKind::BadRequest | ErrorKind::Conflict), "{error:?}");
    assert_eq!(control.info(), before);
}

#[test]
fn a_root_port_comes_and_goes_with_a_disk_below_it() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let image = folder.sparse("image", 1 << 20);
    let control = Control::boot(&sim, machine(&folder));
    let before = (sim.resources(), places(&control));
    for round in 0..3 {
        let late = PciPortConfig { pci_device_id: Some(9), bus_reserve: round, ..port("late") };
        let Ok(Reply::Json(answer)) = control.call(add_port(late, &[])) else { panic!("no answer") };
        assert_eq!(answer, json!({"id": "late", "bdf": "0000:00:09.0"}));
        assert_eq!(control.inspect("pci/0000:00:09.0")["id"], "late");
        control.done(disk(&image, "late"));
        assert_eq!(places(&control)["data"], "0000:06:00.0");
        refused(&control, remove("late", round == 1, 1), "has data below it; remove that first");
        control.done(remove("data", false, 30_000));
        control.done(remove("late", round == 2, 30_000));
        while sim.resources() != before.0 {
            std::thread::yield_now();
        }
        assert_eq!(places(&control), before.1);
    }
    assert_eq!(configured(&control), ["rp0", "rp1"]);
    control.end();
    assert_eq!(sim.resources(), Resources::default());
}

#[test]
fn a_switch_comes_whole_and_takes_its_ports_along() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let image = folder.sparse("image", 1 << 20);
    let control = Control::boot(&sim, machine(&folder));
    let before = (sim.resources(), places(&control));
    // By the bus numbers of the port, of which one is for the switch itself.
    for force in [false, true] {
        control.done(add_port(upstream("up0", "rp0"), &[port("dp0"), port("dp1")]));
        let expected = json!({
            "rp0": "0000:00:01.0", "rp1": "0000:00:02.0", "up0": "0000:01:00.0", "dp0": "0000:02:00.0", "dp1": "0000:02:01.0",
        });
        assert_eq!(places(&control), expected);
        assert_eq!(control.inspect("pci/0000:00:01.0")["slot"]["occupied"], true);
        control.done(disk(&image, "dp1"));
        assert_eq!(places(&control)["data"], "0000:04:00.0");
        refused(&control, remove("up0", force, 1), "has data below it");
        refused(&control, remove("rp0", force, 1), "has up0, dp0, dp1, data below it");
        refused(&control, remove("dp0", force, 1), "is part of a switch, and goes with it; remove up0");
        control.done(remove("data", force, 30_000));
        control.done(remove("up0", force, 30_000));
        // Nobody has turned the slot on: the guest has nothing to let go of.
        while sim.resources() != before.0 {
            std::thread::yield_now();
        }
        assert_eq!(places(&control), before.1);
        assert_eq!(configured(&control), ["rp0", "rp1"]);
        assert_eq!(control.inspect("pci/0000:00:01.0")["slot"]["occupied"], false);
    }
    control.end();
}

#[test]
fn what_came_is_there_after_a_restart_and_in_another_machine() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let image = folder.sparse("image", 1 << 20);
    let control = Control::boot(&sim, machine(&folder));
    control.done(add_port(PciPortConfig { bus_reserve: 2, ..port("late") }, &[]));
    control.done(add_port(upstream("up0", "late"), &[port("dp0")]));
    control.done(disk(&image, "dp0"));
    let here = places(&control);
    control.done(Request::Reboot);
    assert_eq!(places(&control), here);
    let switch = control.inspect(&format!("pci/{}", here["up0"].as_str().unwrap()));
    assert_eq!(switch["buses"], "07-08", "the restart has numbered them");
    control.done(Request::Shutdown);
    assert_eq!(configured(&control), ["rp0", "rp1", "late", "up0", "dp0"]);
    control.done(Request::Boot);
    assert_eq!(places(&control)["late"], here["late"]);
    for id in ["up0", "dp0", "data"] {
        assert!(places(&control)[id].is_string(), "{id}");
    }
    // The same is said of one that does not run.
    control.done(Request::Shutdown);
    refused(&control, remove("late", false, 1), "has up0, dp0, data below it");
    control.done(remove("data", false, 1));
    control.done(remove("up0", false, 1));
    control.done(remove("late", false, 1));
    control.done(add_port(port("other"), &[]));
    assert_eq!(configured(&control), ["rp0", "rp1", "other"]);
    control.end();
}

#[test]
fn what_is_at_one_number_with_others_stays() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let mut machine = machine(&folder);
    let at = |id, function| PciPortConfig { pci_device_id: Some(9), pci_function: function, ..port(id) };
    machine.pci_ports.extend([at("first", 0), at("second", 1)]);
    let control = Control::boot(&sim, machine);
    for force in [false, true] {
        refused(&control, remove("first", force, 1), "is at one PCI device number with second");
        refused(&control, remove("second", force, 1), "is at one PCI device number with first");
    }
    control.end();
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let image = folder.sparse("image", 1 << 20);
    let mut machine = machine(&folder);
    machine.pci_ports.push(PciPortConfig { hotplug: false, ..port("fixed") });
    let control = Control::boot(&sim, machine);
    let before = sim.resources();
    let downstream = PciPortConfig { kind: PciPortKind::Downstream, bus: Some("rp0".into()), ..port("dp0") };
    let root_below = PciPortConfig { bus: Some("rp0".into()), ..port("late") };
    let at = |device| PciPortConfig { pci_device_id: Some(device), ..port("late") };
    let two = [port("dp0"), port("dp1")];
    let three = [port("dp0"), port("dp1"), port("dp2")];
    let greedy = PciPortConfig { pref_reserve: Some(ByteSize(2 << 30)), ..port("dp0") };
    for (port, below, reason) in [
        (port("rp0"), &[][..], "--pci-port id=rp0: is given twice"),
        (port("_late"), &[], "does not start with \"_\""),
        (downstream, &[], "comes with its switch"),
        (root_below, &[], "a root port is on the root bus"),
        (upstream("up0", "rp0"), &[], "a switch comes whole"),
        (upstream("up0", "nowhere"), &two, "there is no --pci-port of that id"),
        (upstream("up0", "fixed"), &two, "give the port hotplug=on"),
        (
            upstream("up0", "rp1"),
            &two,
            "needs 3 bus numbers (one for each of its ports), and bus=rp1 has 0 left",
        ),
        (upstream("up0", "rp0"), &three, "begin with bus_reserve=4 or more for rp0"),
        (
            upstream("up0", "rp0"),
            &[greedy],
            "pref_reserve: the switch is to keep 2G, of the 1G that bus=rp0 keeps",
        ),
        (port("late"), &two, "only an upstream port has downstream ports"),
        (at(1), &[], "another device is at PCI address 0000:00:01.0"),
        (at(0), &[], "0 is the host bridge's"),
        (PciPortConfig { pci_segment: 1, ..port("late") }, &[], "num_pci_segments"),
        (PciPortConfig { bus_reserve: 250, ..port("late") }, &[], "bus numbers end at 255; use fewer ports"),
        (PciPortConfig { mem_reserve: Some(ByteSize(1 << 30)), ..port("late") }, &[], "of 32-bit memory"),
    ] {
        refused(&control, add_port(port, below), reason);
    }
    assert_eq!(sim.resources(), before, "nothing is left of them");
    // A slot has one device.
    control.done(disk(&image, "rp0"));
    refused(
        &control,
        add_port(upstream("up0", "rp0"), &two),
        "another device is told to be at the same place",
    );
    control.end();
}

#[test]
fn bus_numbers_are_used_again_and_found_in_a_row() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let mut machine = config(&folder);
    machine.pci_segments = vec![PciSegmentConfig { buses: Some(256), ..PciSegmentConfig::default() }];
    let control = Control::boot(&sim, machine);
    let keeping = |id: &str, bus_reserve| add_port(PciPortConfig { bus_reserve, ..port(id) }, &[]);
    control.done(keeping("a", 99));
    control.done(keeping("b", 99));
    control.done(remove("a", false, 30_000));
    // There are 155, of which the port that stays has those in the middle.
    let reason = "needs 141 bus numbers, and PCI segment 0 has 100 left in a row; lower bus_reserve";
    refused(&control, keeping("c", 140), reason);
    control.done(keeping("c", 99));
    control.done(Request::Reboot);
    control.done(keeping("d", 54));
    control.end();
}

#[test]
fn a_machine_has_as_many_bus_numbers_as_it_began_with() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let control = Control::boot(&sim, config(&folder));
    let keeping = |id: &str, bus_reserve| add_port(PciPortConfig { bus_reserve, ..port(id) }, &[]);
    let reason = "needs 16 bus numbers, and PCI segment 0 has 15 left in a row; lower bus_reserve, begin with more \
                  (--pci-segment pci_segment=0,buses=256)";
    refused(&control, keeping("a", 15), reason);
    control.done(keeping("a", 14));
    refused(&control, keeping("b", 0), "has 0 left");
    // What is there now does not make room for more.
    control.done(Request::Reboot);
    refused(&control, keeping("b", 0), "has 0 left");
    control.end();
}

#[test]
fn nothing_comes_below_a_port_that_is_to_go() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let image = folder.sparse("image", 1 << 20);
    let control = Control::boot(&sim, machine(&folder));
    control.done(add_port(PciPortConfig { bus_reserve: 2, ..port("late") }, &[]));
    assert_eq!(kind(control.call(remove("late", false, 1))), ErrorKind::Timeout);
    refused(&control, disk(&image, "late"), "it is to be removed");
    refused(&control, add_port(upstream("up0", "late"), &[port("dp0")]), "it is to be removed");
    control.done(remove("late", true, 30_000));
    // The guest has not let go of it; its name is free.
    control.done(add_port(port("late"), &[]));
    control.done(disk(&image, "late"));
    control.end();
}

#[test]
fn a_guest_that_ejects_a_port_that_nobody_asked_for_keeps_it() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let (told, ejected) = std::sync::mpsc::channel();
    sim.program(0, move |cpu| {
        write32(cpu, eject(), !0);
        let _ = told.send(());
        ignore(cpu);
    });
    let control = Control::boot(&sim, machine(&folder));
    ejected.recv().unwrap();
    assert_eq!(places(&control), json!({"rp0": "0000:00:01.0", "rp1": "0000:00:02.0"}));
    control.end();
}

/// Writes anything to the registers of what may be a port.
fn scribble(cpu: &mut SimCpu<'_>, random: &mut Random) {
    const ADDRESS: u16 = 0xcf8;
    const DATA: u16 = 0xcfc;
    let (bus, device) = (random.below(12), random.below(12));
    // Command, bus numbers, windows, bridge control, and what the capabilities of ports have.
    const REGISTERS: [u64; 12] = [0x04, 0x18, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x3c, 0x44, 0x58, 0x60, 0x64];
    let register = match random.below(2) {
        0 => REGISTERS[random.below(REGISTERS.len() as u64) as usize],
        _ => random.below(64) * 4,
    };
    let address = 0x8000_0000 | bus << 16 | device << 11 | register;
    write32(cpu, Port(ADDRESS), address as u32);
    let value = match register {
        0x18 => random.below(12) << 16 | random.below(12) << 8,
        _ => random.below(1 << 32),
    };
    let _ = read32(cpu, Port(DATA));
    write32(cpu, Port(DATA), value as u32);
}

#[test]
fn a_guest_that_scribbles_on_ports_harms_nothing_while_they_come_and_go() {
    if native() != Architecture::X86_64 {
        return;
    }
    let folder = Folder::new();
    let image = folder.sparse("image", 1 << 20);
    for seed in 1..=20 {
        let sim = Arc::new(Sim::new());
        let scribbles = Arc::new(AtomicBool::new(false));
        let still = Arc::clone(&scribbles);
        sim.program(0, move |cpu| {
            let mut random = Random(seed);
            loop {
                if still.load(Ordering::SeqCst) {
                    scribble(cpu, &mut random);
                }
                if random.below(8) == 0 {
                    release(cpu);
                }
                idle(cpu);
                std::thread::yield_now();
            }
        });
        let control = Control::boot(&sim, machine(&folder));
        let before = sim.resources();
        scribbles.store(true, Ordering::SeqCst);
        let mut random = Random(seed * 77);
        for _ in 0..200 {
            let force = random.below(2) == 0;
            let request = match random.below(8) {
                0 | 1 => add_port(PciPortConfig { bus_reserve: 2, ..port("late") }, &[]),
                2 => add_port(upstream("up0", "rp0"), &[port("dp0")]),
                3 => add_port(upstream("up0", "late"), &[port("dp0")]),
                4 => disk(&image, ["late", "dp0", "rp0"][random.below(3) as usize]),
                5 => remove("data", force, 1),
                6 => remove("up0", force, 1),
                _ => remove("late", force, 1),
            };
            if let Err(error) = control.call(request) {
                assert!(error.kind != ErrorKind::Internal, "{error}");
            }
        }
        for id in ["data", "up0", "late"] {
            let gone = control.call(remove(id, true, 30_000));
            assert!(gone.is_ok() || kind(gone) == ErrorKind::NotFound, "{id}");
        }
        scribbles.store(false, Ordering::SeqCst);
        control.done(Request::Reboot);
        // Each port that stays has a source once a driver has turned its messages on.
        let of_ports = |now: Resources| now.interrupt_sources.saturating_sub(before.interrupt_sources);
        let but_those = |now: Resources| Resources { interrupt_sources: before.interrupt_sources, ..now };
        while of_ports(sim.resources()) > 2 || but_those(sim.resources()) != before {
            std::thread::yield_now();
        }
        control.end();
        assert_eq!(sim.resources(), Resources::default());
    }
}
