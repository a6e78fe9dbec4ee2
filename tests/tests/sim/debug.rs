//! A debugger's hold on a machine of the simulated backend: CPUs that come meanwhile, and watchdogs.

use crate::control::{Control, STUCK, config, ignore};
use hypervisor::sim::Sim;
use std::sync::Arc;
use std::sync::mpsc::channel;
use vivarium_tests::host::Folder;
use vivarium_tests::{Feature, lacks};
use vmm::api::Request;
use vmm::api::request::Resize;
use vmm::config::{PciPlaceConfig, WatchdogConfig, WatchdogModel};
use vmm::machine::Machine;
use vmm::machine::debugger::{Going, Link};

/// Has something done to the machine as a debugger does.
fn inquire<T: Send + 'static>(control: &Control, ask: impl FnOnce(&mut Machine) -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    control.inquire(Box::new(move |machine| drop(sender.send(ask(machine.unwrap())))));
    receiver.recv_timeout(STUCK).unwrap()
}

#[test]
fn a_cpu_that_comes_under_a_debugger_stops_where_the_others_do() {
    if lacks(Feature::SpareCpus) {
        return;
    }
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let mut machine = config(&folder);
    machine.cpus.max_vcpus = Some(3);
    let control = Control::boot(&sim, machine);
    let resize = |count| Request::Resize(Resize { desired_vcpus: Some(count), ..Resize::default() });
    let told = |number| inquire(&control, move |machine| machine.describe_cpu(number).unwrap());
    control.done(resize(2));
    assert!(told(1).contains("debugger None"), "{}", told(1));
    let (link, _stops, _bell) = Link::new().unwrap();
    inquire(&control, |machine| machine.attach_debugger(link)).unwrap();
    inquire(&control, |machine| machine.go_on(&Going::default())).unwrap();
    control.done(resize(3));
    for number in 0..3 {
        assert!(told(number).contains("software_breakpoints: true"), "{}", told(number));
    }
    inquire(&control, Machine::detach_debugger).unwrap();
    for number in 0..3 {
        assert!(told(number).contains("debugger None"), "{}", told(number));
    }
    control.end();
}

#[test]
fn a_watchdog_that_was_held_by_a_pause_is_let_go_by_a_restart() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let mut machine = config(&folder);
    let watchdog = WatchdogConfig { model: WatchdogModel::Virtio, ..WatchdogConfig::default() };
    machine.watchdog = vec![watchdog].into();
    machine.pci_places = vec![PciPlaceConfig {
        id: "__watchdog_virtio".into(),
        pci_device_id: Some(7),
        ..PciPlaceConfig::default()
    }];
    let control = Control::boot(&sim, machine);
    let held = || control.inspect("pci/0000:00:07.0/device/held");
    assert_eq!(held(), false);
    control.done(Request::Pause);
    assert_eq!(held(), true);
    control.done(Request::Reboot);
    assert_eq!(held(), false);
    control.end();
}

#[test]
fn time_does_not_pass_for_a_watchdog_while_a_debugger_holds_the_guest() {
    if lacks(Feature::Ports) {
        return;
    }
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, |cpu| {
        // The lock register of device 7, by configuration mechanism 1: enable.
        cpu.port_write32(0xcf8, 0x8000_3868);
        cpu.port_write8(0xcfc, 2);
        ignore(cpu);
    });
    let mut machine = config(&folder);
    machine.watchdog = vec![WatchdogConfig::default()].into();
    machine.pci_places =
        vec![PciPlaceConfig { id: "__watchdog".into(), pci_device_id: Some(7), ..PciPlaceConfig::default() }];
    let control = Control::boot(&sim, machine);
    let runs = || {
        let watchdog = control.inspect("pci/0000:00:07.0");
        assert!(watchdog.get("deadline_ns").is_some(), "{watchdog}");
        !watchdog["deadline_ns"].is_null()
    };
    while !runs() {}
    let (link, _stops, _bell) = Link::new().unwrap();
    inquire(&control, |machine| machine.attach_debugger(link)).unwrap();
    assert!(!runs(), "the guest stands still");
    // A pause in between changes nothing.
    control.done(Request::Pause);
    control.done(Request::Resume);
    assert!(!runs());
    inquire(&control, |machine| machine.go_on(&Going::default())).unwrap();
    assert!(runs());
    inquire(&control, Machine::stop_for_debugger).unwrap();
    assert!(!runs());
    inquire(&control, Machine::detach_debugger).unwrap();
    assert!(runs());
    control.end();
}
