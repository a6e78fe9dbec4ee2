//! The control plane on the simulated backend: calls against machines in every state.

use crate::control::instructions::power_off;
use crate::control::{Control, config, disk, idle, ignore, kind, remove};
use hypervisor::sim::Sim;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vivarium_tests::host::{Folder, lacks_call};
use vmm::api::request::{Coredump, SetThrottle, VmState};
use vmm::api::{ErrorKind, Request};
use vmm::config::landlock::LandlockAccess;
use vmm::config::{DiskConfig, LandlockConfig};
use vmm::machine::Ended;

#[test]
fn a_machine_goes_through_its_states_and_refuses_what_is_not_for_them() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::start(&sim);
    for request in [Request::Info, Request::Boot, Request::Pause, Request::Delete, Request::PowerButton] {
        assert_eq!(kind(control.call(request)), ErrorKind::NotFound);
    }
    control.done(Request::Create(config(&folder)));
    assert_eq!(kind(control.call(Request::Create(config(&folder)))), ErrorKind::Conflict);
    assert_eq!(control.state(), VmState::Created);
    for request in [Request::Pause, Request::Resume, Request::Shutdown, Request::Reboot] {
        assert_eq!(kind(control.call(request)), ErrorKind::State);
    }
    for _ in 0..2 {
        control.done(Request::Boot);
        assert_eq!(control.state(), VmState::Running);
        assert_eq!(kind(control.call(Request::Boot)), ErrorKind::State);
        assert_eq!(kind(control.call(Request::Resume)), ErrorKind::State);
        control.done(Request::Pause);
        assert_eq!(kind(control.call(Request::Pause)), ErrorKind::State);
        assert_eq!(control.state(), VmState::Paused);
        control.done(Request::Resume);
        control.done(Request::Reboot);
        assert_eq!(control.state(), VmState::Running);
        control.done(Request::Shutdown);
        assert_eq!(control.state(), VmState::Created);
    }
    assert_eq!(kind(control.call(Request::Unsupported("vm.snapshot"))), ErrorKind::NotSupported);
    control.done(Request::Delete);
    assert_eq!(kind(control.call(Request::Info)), ErrorKind::NotFound);
    assert!(matches!(control.end(), Ended::Terminated));
}

#[test]
fn a_paused_cpu_does_nothing_until_it_goes_on() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let steps = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&steps);
    sim.program(0, move |cpu| {
        loop {
            idle(cpu);
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let control = Control::boot(&sim, config(&folder));
    control.done(Request::Pause);
    // The step it was in is told by the simulation after the CPU has parked, once.
    let before = steps.load(Ordering::SeqCst);
    for _ in 0..1000 {
        control.info();
    }
    assert!(steps.load(Ordering::SeqCst) <= before + 1);
    control.done(Request::Resume);
    let resumed = steps.load(Ordering::SeqCst);
    while steps.load(Ordering::SeqCst) < resumed + 2 {
        std::thread::yield_now();
    }
    control.end();
}

#[test]
fn a_machine_with_landlock_reaches_the_files_it_named_and_no_others() {
    if lacks_call("landlock_create_ruleset", libc::SYS_landlock_create_ruleset) {
        return;
    }
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    std::fs::create_dir(folder.join("later")).unwrap();
    let (named, other) = (folder.sparse("named", 1 << 20), folder.sparse("other", 1 << 20));
    let (allowed, widened) = (folder.sparse("later/allowed", 1 << 20), folder.sparse("widened", 1 << 20));
    sim.program(0, ignore);
    let mut config = config(&folder);
    config.landlock_enable = true;
    let rule = LandlockConfig { path: folder.join("later"), access: LandlockAccess::ReadWrite };
    config.landlock_rules = vec![rule];
    config.disks.push(DiskConfig { path: Some(named), ..DiskConfig::default() });
    let control = Control::start(&sim);
    control.done(Request::Create(config));
    // What is added before the start is named as well, for as long as there is a machine.
    control.done(disk(widened.clone(), "widened"));
    control.done(Request::Boot);
    control.done(disk(allowed, "allowed"));
    control.done(remove("widened", true, 30_000));
    control.done(disk(widened, "widened"));
    let refusal = control.call(disk(other, "other")).unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::BadRequest);
    assert!(refusal.message.contains("--landlock-rules"), "{}", refusal.message);
    let dump = |name: &str| {
        let destination_url = format!("file://{}", folder.join(name).display());
        control.call(Request::Coredump(Coredump { destination_url }))
    };
    control.done(Request::Pause);
    let refusal = dump("core").unwrap_err();
    assert!(refusal.message.contains("--landlock-rules"), "{}", refusal.message);
    control.wait_for("coredump-failed");
    dump("later/core").unwrap();
    control.wait_for("coredumped");
    control.done(Request::Resume);
    control.done(Request::Reboot);
    control.end();
}

#[test]
fn the_guests_own_power_off_ends_the_process() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let go = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&go);
    sim.program(0, move |cpu| {
        while !gone.load(Ordering::SeqCst) {
            idle(cpu);
        }
        power_off(cpu);
    });
    let control = Control::boot(&sim, config(&folder));
    go.store(true, Ordering::SeqCst);
    control.wait_for("shutdown");
    assert!(matches!(control.thread.join().unwrap(), Ended::PoweredOff));
}

#[test]
fn a_throttled_cpu_is_held_and_still_paused_and_ended_at_once() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let steps = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&steps);
    sim.program(0, move |cpu| {
        loop {
            idle(cpu);
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let control = Control::boot(&sim, config(&folder));
    let throttle = |percent| Request::SetThrottle(SetThrottle { percent });
    let holds = || control.inspect("throttle")["holds"].as_u64().unwrap();
    let goes_on = || {
        let before = steps.load(Ordering::SeqCst);
        while steps.load(Ordering::SeqCst) < before + 10 {
            std::thread::yield_now();
        }
    };
    for percent in [50, 99] {
        control.done(throttle(percent));
        assert_eq!(control.info()["throttle_percent"], percent);
        let before = holds();
        while holds() < before + 3 {
            std::thread::yield_now();
        }
        goes_on();
        control.done(Request::Pause);
        control.done(Request::Counters);
        control.done(Request::Resume);
    }
    assert_eq!(kind(control.call(throttle(100))), ErrorKind::BadRequest);
    control.done(Request::Reboot);
    assert_eq!(control.info()["throttle_percent"], 99, "a guest that restarts is held as before");
    goes_on();
    control.done(throttle(0));
    let before = holds();
    goes_on();
    assert_eq!(holds(), before);
    assert_eq!(control.inspect("throttle")["held"], false);
    control.done(throttle(99));
    control.done(Request::Shutdown);
    assert_eq!(kind(control.call(throttle(1))), ErrorKind::State);
    control.end();
}

#[test]
fn a_machine_restarts_from_its_files_as_they_are_also_without_their_names() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::boot(&sim, config(&folder));
    let path = folder.join("kernel");
    control.done(Request::Reboot);
    let kernel = std::fs::File::options().write(true).open(&path).unwrap();
    kernel.set_len(kernel.metadata().unwrap().len() + 1).unwrap();
    control.done(Request::Reboot);
    control.wait_for("boot-file-changed");
    std::fs::remove_file(&path).unwrap();
    control.done(Request::Reboot);
    kernel.set_len(0).unwrap();
    let refusal = control.call(Request::Reboot).unwrap_err();
    assert!(refusal.message.starts_with("the machine cannot restart: --kernel "), "{refusal}");
    control.wait_for("restart-failed");
    assert!(control.thread.join().is_err(), "the machine thread ends with the error");
}
