//! Machines whose files the host does not open: everybody else is answered meanwhile, and the machine can be given up.

use crate::control::{Control, STUCK, config, disk, ignore, kind};
use hypervisor::sim::{Resources, Sim};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use vivarium_tests::host::{Folder, HangingFile};
use vmm::api::request::VmState;
use vmm::api::{Answer, ErrorKind, Request};
use vmm::config::{ConsoleMode, DiskConfig, VmConfig};
use vmm::machine::Ended;
use vmm::monitor::{Limits, Monitor};

/// A machine with the disk at `image`, and a serial port whose output goes to a file that is not there yet.
fn with_disk(folder: &Folder, image: &Path) -> Box<VmConfig> {
    let mut config = config(folder);
    config.disks.push(DiskConfig { path: Some(image.to_owned()), ..DiskConfig::default() });
    config.serial.mode = ConsoleMode::File;
    config.serial.file = Some(output(folder));
    config
}

fn output(folder: &Folder) -> PathBuf {
    folder.join("output")
}

/// Begins to boot a machine whose image the host does not open before what is returned is dropped.
fn begin_to_boot(control: &Control, folder: &Folder) -> (Receiver<Answer>, HangingFile) {
    let image = folder.sparse("image", 1 << 20);
    let hangs = HangingFile::new(&image);
    control.done(Request::Create(with_disk(folder, &image)));
    let boot = control.begin(Request::Boot);
    control.wait_for("booting");
    (boot, hangs)
}

#[test]
fn a_machine_whose_image_cannot_be_opened_keeps_nothing_waiting_and_can_be_given_up() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::start(&sim);
    let (boot, hangs) = begin_to_boot(&control, &folder);
    control.done(Request::Ping);
    assert_eq!(control.state(), VmState::Created);
    assert_eq!(kind(control.call(Request::Counters)), ErrorKind::State);
    // What changes the machine waits its turn, and is told then that there is none.
    let changes =
        [disk(folder.sparse("other", 1 << 20), "other"), Request::Pause].map(|call| control.begin(call));
    control.done(Request::Shutdown);
    assert_eq!(kind(boot.recv_timeout(STUCK).unwrap()), ErrorKind::Conflict);
    let [added, paused] = changes.map(|call| call.recv_timeout(STUCK).unwrap());
    assert!(added.is_ok(), "it is in the configuration");
    assert_eq!(kind(paused), ErrorKind::State);
    assert!(!output(&folder).exists(), "what was made for it is gone");
    control.done(Request::Delete);

    // What it has taken is not free yet, so there is no other machine before the host has let go of it.
    let other = folder.sparse("other_image", 1 << 20);
    control.done(Request::Create(with_disk(&folder, &other)));
    let refused = control.call(Request::Boot).expect_err("the other still has the console").to_string();
    assert!(refused.contains("given up"), "{refused}");
    drop(hangs);
    while control.call(Request::Boot).is_err() {
        std::thread::yield_now();
    }
    control.done(Request::Pause);
    assert_eq!(control.state(), VmState::Paused);
    control.done(Request::Delete);
    control.end();
}

#[test]
fn a_machine_that_is_given_up_in_time_is_taken_apart_before_anybody_is_told() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let control = Control::start_with(&sim, Limits { last_chance: STUCK, ..Limits::default() });
    let (boot, hangs) = begin_to_boot(&control, &folder);
    let delete = control.begin(Request::Delete);
    control.done(Request::Ping);
    drop(hangs);
    assert!(delete.recv_timeout(STUCK).unwrap().is_ok());
    assert_eq!(kind(boot.recv_timeout(STUCK).unwrap()), ErrorKind::Conflict);
    assert_eq!(sim.resources(), Resources::default());
    assert!(!output(&folder).exists());
    assert_eq!(kind(control.call(Request::Info)), ErrorKind::NotFound);
    control.end();
}

#[test]
fn the_process_can_be_ended_while_a_machine_is_being_built() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let control = Control::start(&sim);
    let (boot, hangs) = begin_to_boot(&control, &folder);
    assert!(matches!(control.end(), Ended::Terminated));
    assert_eq!(kind(boot.recv_timeout(STUCK).unwrap()), ErrorKind::Conflict);
    assert!(!output(&folder).exists());
    drop(hangs);
}

#[test]
fn a_machine_of_the_command_line_that_cannot_be_had_ends_the_process() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let image = folder.join("absent");
    let mut monitor = Monitor::new(sim as _).unwrap();
    monitor.boot(*with_disk(&folder, &image)).unwrap();
    let error = monitor.run().unwrap_err().to_string();
    assert!(error.starts_with(&format!("--disk path={}: ", image.display())), "{error}");
    assert!(!output(&folder).exists());
}
