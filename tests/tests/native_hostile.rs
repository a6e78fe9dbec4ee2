//! Guests that do what they must not. The monitor lives, other devices work, and the abused device works again after a
//! reset: the guest checks the last two, and fails a case in which they are not so.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use vivarium_tests::host::Folder;
use vivarium_tests::{Exit, Feature, MonitorBuilder, Report, lacks, native};

/// A machine with two disks, a network of its own and an entropy source, whose guest does `task`.
fn run(task: &str, keys: &str) -> Report {
    let folder = Folder::new();
    let (victim, witness) = (folder.sparse("victim", 16 << 20), folder.sparse("witness", 16 << 20));
    let monitor = MonitorBuilder::bare(task)
        .arg("--disk")
        .arg(format!("path={}{keys}", victim.display()))
        .arg(format!("path={}", witness.display()))
        .start();
    let Exit { status, signal, output, errors } = monitor.wait();
    let last = errors.lines().rev().take(20).collect::<Vec<_>>().join("\n");
    assert!(
        status == Some(0) && output.contains("@@ done rc=0"),
        "{task}: status {status:?}, signal {signal:?}; the guest printed:\n{output}\nand the last errors are:\n{last}"
    );
    assert!(!errors.contains("panicked"), "{last}");
    Report::new(&output)
}

#[test]
fn no_abuse_of_a_ring_does_harm() {
    let variants = ["", ",engine=threads", ",direct=on,engine=io_uring"];
    for keys in variants.into_iter().take(native().variants(variants.len())) {
        let report = run("ring-abuse case=all", keys);
        assert!(report.number("ring-abuse", "cases") > 90, "{report:?}");
        assert_eq!(report.number("ring-abuse", "failed"), 0);
        for line in report.of("ring-abuse").filter(|line| line.get("case").is_some()) {
            assert_eq!(line.get("skipped"), None, "a disk offers all that the cases need: {line:?}");
        }
    }
}

#[test]
fn an_abused_disk_of_several_queues_recovers() {
    let report = run(
        "ring-abuse case=all; blk-verify queues=4; blk-randwrite check=1 n=500 queues=4",
        ",num_queues=4",
    );
    assert_eq!(report.number("ring-abuse", "failed"), 0);
}

#[test]
fn a_disk_without_packed_rings_survives_what_applies_to_it() {
    let report = run("ring-abuse case=all", ",packed=off");
    assert_eq!(report.number("ring-abuse", "failed"), 0);
    assert!(
        report.of("ring-abuse").any(|line| line.get("skipped") == Some("1")),
        "packed rings are not offered"
    );
}

#[test]
fn random_port_accesses_do_no_harm() {
    if lacks(Feature::Ports) {
        return;
    }
    let tasks: Vec<_> = (1..=3).map(|seed| format!("pio-fuzz n=2000 seed={seed}")).collect();
    let narrow = "pio-fuzz n=1000 seed=9 low=0x0 high=0xff; pio-fuzz n=1000 seed=9 low=0x3f8 high=0x3ff";
    run(&format!("{}; {narrow}", tasks.join("; ")), "");
}

#[test]
fn random_accesses_to_device_memory_do_no_harm() {
    let tasks: Vec<_> = (1..=4).map(|seed| format!("mmio-fuzz n=3000 seed={seed}")).collect();
    run(&tasks.join("; "), "");
}

#[test]
fn random_accesses_while_devices_reach_memory_end_the_guest_at_most() {
    let folder = Folder::new();
    for seed in 1..=3 {
        let disk = folder.sparse("disk", 16 << 20);
        let exit = MonitorBuilder::bare(&format!("mmio-fuzz n=3000 dma=1 seed={seed}"))
            .args(["--disk", &format!("path={}", disk.display())])
            .start()
            .wait();
        // A device may be told to write over the guest, whose CPU then cannot go on; nothing else may end the monitor.
        let ended = match exit.status {
            Some(0) => true,
            Some(1) => exit.errors.contains("CPU ") && exit.errors.contains(" cannot go on: "),
            _ => false,
        };
        assert!(ended && !exit.errors.contains("panicked"), "{exit:?}");
    }
}

#[test]
fn random_accesses_to_configuration_space_do_no_harm() {
    let tasks: Vec<_> = (1..=4).map(|seed| format!("config-fuzz n=1500 seed={seed}")).collect();
    run(&tasks.join("; "), "");
    let tasks: Vec<_> = (5..=8).map(|seed| format!("config-fuzz n=1500 seed={seed}")).collect();
    run(&format!("{} ecam=1", tasks.join("; ")), ",num_queues=4");
}

#[test]
fn processors_that_pull_at_the_same_devices_do_no_harm() {
    let folder = Folder::new();
    for (seed, cpus) in [(1, 2), (2, 4)] {
        let disk = folder.sparse("disk", 16 << 20);
        let report = MonitorBuilder::bare(&format!("race-fuzz n=500 seed={seed} cpus={cpus} ecam=1"))
            .args(["--cpus", &format!("boot={cpus}")])
            .args(["--disk", &format!("path={},num_queues=2", disk.display())])
            .start()
            .complete();
        assert_eq!(report.number("race-fuzz", "failed"), 0);
    }
}

/// What CPUs there are, and how many the guest is told of: where none can come and go the hypervisor answers, else the monitor.
const POWER: [(&str, &[&str], &str); 2] =
    [("boot=4", &[], "cpus=4"), ("boot=4,max=7", &["--platform", "acpi=on"], "cpus=4 max=7")];

#[test]
fn processors_that_start_and_stop_each_other_run_once_for_each_start() {
    if lacks(Feature::FirmwareStartsCpus) {
        return;
    }
    for (cpus, platform, known) in POWER {
        let report = MonitorBuilder::bare(&format!("power-fuzz n=500 {known}; smp cpus=4"))
            .args(["--cpus", cpus])
            .args(platform)
            .start()
            .complete();
        assert!(report.number("power-fuzz", "starts") > 50, "{report:?}");
        assert_eq!(report.number("smp", "cpus"), 4, "{report:?}");
    }
}

#[test]
fn a_processor_that_begins_nowhere_neither_ends_nor_holds_the_machine() {
    if lacks(Feature::FirmwareStartsCpus) {
        return;
    }
    for (cpus, platform, known) in POWER {
        let mut monitor = MonitorBuilder::bare(&format!("power-fuzz n=50 lost=1 {known} end=reset"))
            .args(["--cpus", cpus])
            .args(platform)
            .start();
        // The restart finds one that is lost, and others that are off.
        (0..2).for_each(|_| _ = monitor.wait_for("@@ done rc=0"));
        monitor.signal(libc::SIGINT);
        assert_eq!(monitor.wait().status, Some(0));
    }
}

#[test]
fn an_access_that_no_hypervisor_can_carry_out_is_an_exception_of_the_guests() {
    if lacks(Feature::UndescribedAccesses) {
        return;
    }
    let report = run("wide-access; blk-verify", "");
    assert_eq!(report.number("wide-access", "failed"), 0);
    assert!(report.number("wide-access", "made") > 20, "{report:?}");
}

#[test]
fn a_console_nobody_reads_does_not_hold_up_the_guest() {
    if lacks(Feature::Ports) {
        return;
    }
    // 1 MiB of output, far more than a pipe or the monitor keeps.
    let folder = Folder::new();
    let debug = folder.join("debug");
    let mut command = MonitorBuilder::bare("exits n=2000 kind=pio at=0x3f8 out=e9")
        .args(["--debug-console", &format!("file={}", debug.display())])
        .command();
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(std::fs::read_to_string(debug).unwrap().contains("@@ done rc=0"));
}

#[test]
fn nobody_reading_the_log_does_not_hold_up_the_guest() {
    if lacks(Feature::Ports) {
        return;
    }
    let folder = Folder::new();
    let (disk, debug) = (folder.sparse("disk", 16 << 20), folder.join("debug"));
    // Every case is logged; the log's reader is gone from the start.
    let mut command =
        MonitorBuilder::bare("ring-abuse case=desc-loop; ring-abuse case=head-oob; blk-verify out=e9")
            .args(["--disk", &format!("path={}", disk.display())])
            .args(["--debug-console", &format!("file={}", debug.display())])
            .command();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = command.stderr(writer).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let text = std::fs::read_to_string(debug).unwrap();
    assert!(text.contains("@@ done rc=0"), "{text}");
}

#[test]
fn a_reader_of_the_log_that_does_not_read_does_not_hold_up_the_guest() {
    if lacks(Feature::Ports) {
        return;
    }
    let folder = Folder::new();
    let (disk, debug) = (folder.sparse("disk", 16 << 20), folder.join("debug"));
    let (mut reader, writer) = std::io::pipe().unwrap();
    // Nothing goes into the pipe any more: what is logged would have to wait.
    let full = fill(&writer);
    let mut command = MonitorBuilder::bare(
        "ring-abuse case=desc-loop; ring-abuse case=head-oob; blk-verify out=e9 end=spin",
    )
    .args(["--disk", &format!("path={}", disk.display())])
    .args(["--debug-console", &format!("file={}", debug.display())])
    .command();
    let mut child = command.stdout(std::process::Stdio::null()).stderr(writer).spawn().unwrap();
    drop(command);
    while !std::fs::read_to_string(&debug).is_ok_and(|text| text.contains("@@ done rc=0")) {
        assert!(child.try_wait().unwrap().is_none(), "the monitor ended");
        std::thread::yield_now();
    }
    // A reader that comes late gets what waited for it, also while the machine runs.
    let mut log = vec![0; full];
    reader.read_exact(&mut log).unwrap();
    let mut log = BufReader::new(reader);
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    assert!(line.contains("WARN"), "{line}");
    // SAFETY: the child has not been waited for, so the number is its own.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Writes to a pipe until it takes no more, and returns how much it took.
fn fill(pipe: &std::io::PipeWriter) -> usize {
    let waits = |waits: bool| {
        let flags = if waits { 0 } else { libc::O_NONBLOCK };
        // SAFETY: sets the flags of an open descriptor.
        unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, flags) }
    };
    waits(false);
    let mut taken = 0;
    while let Ok(count) = { pipe }.write(&[0; 1]) {
        taken += count;
    }
    waits(true);
    taken
}
