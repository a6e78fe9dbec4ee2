//! The control group of a jail, seen from the host: what its settings say, and that they hold.
//!
//! The guest is the bare-metal one; what is wanted here is a host with control groups of version 2, as stock kernels have.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use vivarium_tests::host::Folder;
use vivarium_tests::{Monitor, Report, required};

/// A user that no one is.
const USER: u32 = 61_234;

/// Two levels that are not there before.
const PARENT: &str = "vivarium-test/machines";

/// More than the guest's disk can be read with, bytes a second.
const DISK_LIMIT: u64 = 4 << 20;

fn has_control_groups() -> bool {
    let found = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if !found {
        println!("@@SKIP this host has no cgroup v2 at /sys/fs/cgroup");
    }
    found
}

/// A folder with a kernel, and a disk that the user may write.
fn files() -> Folder {
    let folder = Folder::on_disk();
    std::fs::set_permissions(folder.join("."), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(required("VIVARIUM_BARE_GUEST"), folder.join("kernel")).unwrap();
    let disk = folder.join("disk");
    std::fs::write(&disk, vec![7; 32 << 20]).unwrap();
    chown(disk, Some(USER), Some(USER)).unwrap();
    folder
}

/// A jail with those settings, whose guest does `task`; and its control group.
fn start(id: &str, settings: &[String], folder: &Folder, task: &str) -> (Monitor, PathBuf) {
    let mut command = Command::new(required("VIVARIUM_BIN"));
    let user = USER.to_string();
    command.args(["jail", "--id", id, "--uid", &user, "--gid", &user, "--parent-cgroup", PARENT]);
    command.args(settings.iter().flat_map(|setting| ["--cgroup", setting]));
    command.arg("--").arg("--kernel").arg(folder.join("kernel"));
    command.args(["--memory", "size=128M", "--serial", "tty", "--console", "off", "--cmdline", task]);
    command.arg("--disk").arg(format!("path={},direct=on", folder.join("disk").display()));
    (Monitor::start(command), Path::new("/sys/fs/cgroup").join(PARENT).join(id))
}

/// The disk that a folder is on, as `io.max` names it; `None` where that is no disk of its own.
fn disk_of(folder: &Folder) -> Option<String> {
    let device = std::fs::metadata(folder.join(".")).unwrap().dev();
    let name = format!("{}:{}", libc::major(device), libc::minor(device));
    let place = std::fs::canonicalize(Path::new("/sys/dev/block").join(name)).ok()?;
    let whole = if place.join("partition").exists() { place.parent()?.to_owned() } else { place };
    Some(std::fs::read_to_string(whole.join("dev")).ok()?.trim().to_owned())
}

fn number(group: &Path, file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(group.join(file)).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{file} has no {key}: {text}")).parse().unwrap()
}

#[test]
fn limits_are_set_on_the_machine_and_hold() {
    if !has_control_groups() {
        return;
    }
    let folder = files();
    let mut settings: Vec<_> =
        ["cpu.max=50000 100000", "memory.max=1073741824", "pids.max=64"].map(str::to_owned).into();
    let disk = disk_of(&folder);
    match &disk {
        Some(disk) => settings.push(format!("io.max={disk} rbps={DISK_LIMIT}")),
        None => println!("the folder for images is on no disk of its own: io.max is left out"),
    }
    let task = "blk-seqread bs=64K qd=4 secs=4; hello; end=spin";
    let (mut monitor, group) = start("limits", &settings, &folder, task);
    monitor.wait_for("@@ hello");

    let processes = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    let outer = monitor.pid();
    let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
    let machine = children.split_whitespace().next().expect("the jail has one process");
    assert!(processes.lines().any(|line| line == machine), "{machine} is not among {processes}");
    for setting in &settings {
        let (file, value) = setting.split_once('=').unwrap();
        let found = std::fs::read_to_string(group.join(file)).unwrap();
        assert!(found.contains(value), "{file} is {found}");
    }
    if disk.is_some() {
        let bytes = Report::new(monitor.output()).number("blk-seqread", "bytes");
        let nanoseconds = Report::new(monitor.output()).number("blk-seqread", "ns");
        // The kernel grants a slice's worth at once.
        let most = u128::from(DISK_LIMIT) * u128::from(nanoseconds) / 1_000_000_000 * 5 / 4 + (1 << 20);
        assert!(u128::from(bytes) <= most, "{bytes} bytes in {nanoseconds} ns exceed {DISK_LIMIT} a second");
    }
    // The guest spins, and has had half a CPU: sooner or later it was told to wait.
    while number(&group, "cpu.stat", "nr_throttled") == 0 {
        assert!(monitor.elapsed().as_secs() < 120, "the CPU limit does not hold");
        std::thread::yield_now();
    }
    assert!(number(&group, "memory.stat", "anon") > 1 << 20, "the guest's memory counts");

    monitor.signal(libc::SIGTERM);
    let exit = monitor.wait();
    assert_eq!(exit.status, Some(0), "{}", exit.errors);
    assert!(!group.exists(), "the group goes with the machine");
}

#[test]
fn a_machine_that_takes_more_memory_than_it_may_ends_alone() {
    if !has_control_groups() {
        return;
    }
    let folder = files();
    let settings = ["memory.max=50331648".to_owned(), "memory.swap.max=0".to_owned()];
    let (monitor, group) = start("memory", &settings, &folder, "hello; memory touch=100; end=spin");
    let exit = monitor.wait();
    // Ended by the kernel, with signal 9; who made the jail lives to tell.
    assert_eq!(exit.status, Some(128 + libc::SIGKILL), "{}{}", exit.output, exit.errors);
    assert!(exit.output.contains("@@ hello") && !exit.output.contains("@@ memory"), "{}", exit.output);
    assert!(!group.exists() && !Path::new("/run/vivarium/jail/memory").exists());
}

#[test]
fn limits_of_a_killed_jail_are_not_those_of_the_next_one() {
    if !has_control_groups() {
        return;
    }
    let folder = files();
    let run = |settings: &str| {
        let (mut monitor, group) = start("again", &[settings.to_owned()], &folder, "hello; end=spin");
        monitor.wait_for("@@ hello");
        (monitor, group)
    };
    let (monitor, group) = run("pids.max=48");
    monitor.signal(libc::SIGKILL);
    monitor.wait();
    assert!(group.exists(), "who is killed cannot clean up");
    let (monitor, group) = run("memory.max=1073741824");
    assert_eq!(std::fs::read_to_string(group.join("pids.max")).unwrap().trim(), "max");
    monitor.signal(libc::SIGTERM);
    let exit = monitor.wait();
    assert_eq!(exit.status, Some(0), "{}", exit.errors);
    assert!(!group.exists() && !Path::new("/run/vivarium/jail/again").exists());
}
