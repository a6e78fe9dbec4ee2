//! What hangs delays nobody for ever: calls on the simulated backend beside files that do not open and CPUs that do not stop.

mod control;

use control::{Control, STUCK, config, disk, idle, ignore, kind};
use hypervisor::sim::{Resources, Sim};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
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

/// A machine one of whose CPUs the host keeps until the sender is dropped.
fn cpu_that_is_kept(limits: Limits) -> (Arc<Sim>, Folder, Control, Sender<()>) {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let (let_go, held) = channel::<()>();
    let (kept, is_kept) = channel();
    let held = Mutex::new(held);
    sim.program(0, move |cpu| {
        idle(cpu);
        let _ = kept.send(());
        let _ = held.lock().unwrap().recv();
        ignore(cpu);
    });
    let control = Control::start_with(&sim, limits);
    control.done(Request::Create(config(&folder)));
    control.done(Request::Boot);
    is_kept.recv_timeout(STUCK).unwrap();
    (sim, folder, control, let_go)
}

#[test]
fn a_pause_is_given_up_when_the_host_keeps_a_cpu_and_queries_are_answered_meanwhile() {
    let limits = Limits { pause: Duration::from_secs(1), ..Limits::default() };
    let (_sim, _folder, control, let_go) = cpu_that_is_kept(limits);
    let pause = control.begin(Request::Pause);
    assert_eq!(control.state(), VmState::Running);
    let refused = pause.recv_timeout(STUCK).unwrap().unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Timeout);
    assert!(refused.message.contains("the host keeps a CPU"), "{refused}");
    assert_eq!(control.state(), VmState::Running);
    drop(let_go);
    // The host may take longer than a pause's second to let the CPU run.
    while control.call(Request::Pause).is_err_and(|error| error.kind == ErrorKind::Timeout) {}
    assert_eq!(control.state(), VmState::Paused);
    control.end();
}

/// Whether a device is being opened.
fn opens() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name =
        |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.unwrap().path().join("comm"));
    tasks.filter_map(|task| name(task).ok()).any(|name| name.trim() == "open")
}

#[test]
fn a_device_that_is_open_while_the_machine_comes_to_rest_is_there_when_it_does() {
    let (_sim, folder, control, let_go) = cpu_that_is_kept(Limits::default());
    let path = folder.sparse("hangs", 1 << 20);
    let hangs = HangingFile::new(&path);
    let add = control.begin(disk(path, "hangs"));
    let pause = control.begin(Request::Pause);
    // Both are begun. A thread gives itself its name.
    control.done(Request::Ping);
    while !opens() {
        std::thread::yield_now();
    }
    drop(hangs);
    while opens() {
        std::thread::yield_now();
    }
    drop(let_go);
    pause.recv_timeout(STUCK).unwrap().unwrap();
    add.recv_timeout(STUCK).expect("the device was forgotten").unwrap();
    control.end();
}

#[test]
fn a_restart_and_an_end_do_not_wait_for_a_cpu_that_the_host_keeps() {
    let limits = Limits { call: SHORT, leave: SHORT, ..Limits::default() };
    let (sim, _folder, control, let_go) = cpu_that_is_kept(limits);
    assert_eq!(kind(control.call(Request::Reboot)), ErrorKind::Timeout);
    control.done(Request::Ping);
    // It is answered when the machine is left behind.
    control.done(Request::Shutdown);
    control.wait_for("left-behind");
    assert_eq!(control.state(), VmState::Created);
    assert_eq!(kind(control.call(Request::Boot)), ErrorKind::Conflict, "the machine is not gone");
    drop(let_go);
    while sim.resources() != Resources::default() {
        std::thread::yield_now();
    }
    control.end();
}

#[test]
fn the_process_ends_also_when_the_host_keeps_a_cpu() {
    let limits = Limits { leave: SHORT, ..Limits::default() };
    let (_sim, _folder, control, let_go) = cpu_that_is_kept(limits);
    control.done(Request::VmmShutdown);
    assert!(control.thread.join().is_err(), "its error says that something was left behind");
    drop(let_go);
}
