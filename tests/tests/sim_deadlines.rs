//! What hangs delays nobody for ever: calls on the simulated backend beside files that do not open and CPUs that do not stop.

mod control;

use control::{Control, STUCK, config, disk, ignore, kind};
use hypervisor::sim::Sim;
use std::sync::Arc;
use std::time::Duration;
use vivarium_tests::host::{Folder, HangingFile};
use vmm::api::request::VmState;
use vmm::api::{ErrorKind, Interest, Request};
use vmm::monitor::Limits;

/// A limit that passes at once.
const SHORT: Duration = Duration::from_millis(1);

/// A machine that begins to boot and does not go on until the file is let go.
fn boot_that_hangs(control: &Control, folder: &Folder) -> HangingFile {
    let path = folder.sparse("hangs", 1 << 20);
    let hangs = HangingFile::new(&path);
    control.done(Request::Create(config(folder)));
    control.done(disk(path, "hangs"));
    hangs
}

#[test]
fn a_call_that_nobody_waits_for_is_not_made_when_its_turn_comes() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::start(&sim);
    let hangs = boot_that_hangs(&control, &folder);
    let boot = control.begin(Request::Boot);
    let interest = Interest::default();
    let abandoned = control.begin_for(Request::Pause, interest.clone());
    interest.lose();
    drop(hangs);
    boot.recv_timeout(STUCK).unwrap().unwrap();
    assert!(abandoned.recv_timeout(STUCK).is_err(), "the call is dropped");
    assert_eq!(control.state(), VmState::Running);
    control.end();
}

#[test]
fn a_call_whose_turn_does_not_come_is_answered_at_its_deadline_and_not_made() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::start_with(&sim, Limits { turn: SHORT, ..Limits::default() });
    let hangs = boot_that_hangs(&control, &folder);
    let boot = control.begin(Request::Boot);
    let refused = control.call(Request::Pause).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Timeout);
    assert!(refused.message.contains("its turn did not come"), "{refused}");
    drop(hangs);
    boot.recv_timeout(STUCK).unwrap().unwrap();
    assert_eq!(control.state(), VmState::Running);
    control.end();
}

#[test]
fn a_call_that_hangs_is_answered_at_its_deadline() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::start_with(&sim, Limits { long_call: SHORT, ..Limits::default() });
    let hangs = boot_that_hangs(&control, &folder);
    assert_eq!(kind(control.call(Request::Boot)), ErrorKind::Timeout);
    drop(hangs);
    control.wait_for("booted");
    control.end();
}
