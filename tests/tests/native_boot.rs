//! The bare-metal guest: that it boots, and what of the machine it can tell about itself.

use vivarium_tests::host::{Folder, shell};
use vivarium_tests::{Feature, MonitorBuilder, has, lacks, native};

#[test]
fn the_guest_boots_and_powers_off() {
    let exit = MonitorBuilder::bare("hello").start().wait();
    assert_eq!((exit.status, exit.errors.as_str()), (Some(0), ""));
    assert!(exit.output.starts_with("@@ hello"), "{}", exit.output);
}

#[test]
fn the_guest_is_entered_as_it_should_be_with_the_memory_it_was_given() {
    let (entry, clock) = native().bare_guest();
    for size in ["64M", "3G", "5G"] {
        let report = MonitorBuilder::bare("boot; clock")
            .replace("--memory", format!("size={size}"))
            .start()
            .complete();
        let lines: Vec<_> = report.of("boot").filter_map(|line| line.get("ram")).map(str::to_owned).collect();
        assert!(report.of("boot").any(|line| line.get("entry") == Some(entry)), "{report:?}");
        assert!(report.of("clock").any(|line| line.get("source") == Some(clock)), "{report:?}");
        let total: u64 = lines.iter().map(|range| length(range)).sum();
        let asked: u64 = size.trim_end_matches(['M', 'G']).parse::<u64>().unwrap()
            << if size.ends_with('G') { 30 } else { 20 };
        // What the tables below 1 MiB take is not the guest's.
        assert!(total <= asked && total > asked - (1 << 20), "{size}: {lines:?}");
        let end = format!("..{:#x}", native().end_of_ram(asked));
        assert!(lines.iter().any(|range| range.ends_with(&end)), "{end}: {lines:?}");
    }
}

fn length(range: &str) -> u64 {
    let parse = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let (start, end) = range.split_once("..").unwrap();
    parse(end) - parse(start)
}

#[test]
fn memory_beyond_the_hole_holds_what_is_written() {
    let report = MonitorBuilder::bare("memory touch=64").replace("--memory", "size=5G").start().complete();
    assert_eq!(report.number("memory", "bytes"), 64 << 20);
}

#[test]
fn processors_start_and_count_together() {
    let spare = if has(Feature::SpareCpus) { ",max=6" } else { "" };
    let many = native().many_cpus().into();
    for (cpus, topology) in [(1, ""), (2, ""), (4, ",topology=2:1:1:2"), (3, spare), (16, ""), (many, "")] {
        let line = format!("smp cpus={cpus}");
        let report = MonitorBuilder::bare(&line)
            .args(["--cpus", &format!("boot={cpus}{topology}")])
            .start()
            .complete();
        assert_eq!(report.number("smp", "cpus"), cpus, "{report:?}");
    }
}

#[test]
fn the_machine_restarts_in_place_again_and_again() {
    let folder = Folder::new();
    let disk = folder.sparse("disk", 16 << 20);
    let mut monitor = MonitorBuilder::bare("hello; smp cpus=2; blk-verify size=64K; rng end=reset")
        .args(["--cpus", "boot=2", "--disk", &format!("path={}", disk.display())])
        .start();
    let pid = monitor.pid();
    for _ in 0..=native().restarts() {
        monitor.wait_for("@@ done rc=0");
    }
    assert_eq!(monitor.pid(), pid);
    monitor.signal(libc::SIGINT);
    assert_eq!(monitor.wait().status, Some(0));
}

#[test]
fn every_way_to_restart_restarts() {
    let port = has(Feature::Ports).then_some("end=s5:0x602:0x01");
    for end in ["end=reset"].into_iter().chain(port) {
        let mut monitor = MonitorBuilder::bare(&format!("hello {end}")).start();
        for _ in 0..3 {
            monitor.wait_for("@@ done rc=0");
        }
    }
}

#[test]
fn a_triple_fault_ends_with_the_registers_and_status_1() {
    if lacks(Feature::TripleFault) {
        return;
    }
    let exit = MonitorBuilder::bare("hello end=triple").start().wait();
    assert_eq!(exit.status, Some(1), "{exit:?}");
    assert!(exit.errors.contains("CPU 0 cannot go on"), "{}", exit.errors);
    assert!(exit.errors.to_lowercase().contains("rip"), "{}", exit.errors);
}

#[test]
fn a_guest_that_halts_for_good_is_ended_by_a_signal() {
    let mut monitor = MonitorBuilder::bare("hello end=halt").start();
    monitor.wait_for("@@ done rc=0");
    monitor.signal(libc::SIGINT);
    assert_eq!(monitor.wait().status, Some(0));
}

#[test]
fn interrupts_of_every_kind_arrive() {
    let folder = Folder::new();
    let disk = folder.sparse("disk", 16 << 20);
    for packed in [0, 1] {
        let report = MonitorBuilder::bare(&format!("irq packed={packed}"))
            .args(["--disk", &format!("path={}", disk.display())])
            .start()
            .complete();
        for kind in ["self", "timer", "halt", "msix"] {
            let line = report.of("irq").find(|line| line.get("kind") == Some(kind));
            assert_eq!(line.and_then(|line| line.get("n")), Some("100"), "{kind}: {report:?}");
        }
    }
}

#[test]
fn ports_and_debug_console_carry_the_guests_words() {
    if lacks(Feature::Ports) {
        return;
    }
    let folder = Folder::new();
    let file = folder.join("debug");
    let exit = MonitorBuilder::bare("hello; exits n=500; exits n=500 kind=mmio out=e9")
        .args(["--debug-console", &format!("file={}", file.display())])
        .start()
        .wait();
    assert_eq!(exit.status, Some(0), "{exit:?}");
    assert_eq!(exit.output, "", "the serial port is not used");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("@@ exits kind=mmio n=500") && text.contains("@@ done rc=0"), "{text}");
}

#[test]
fn threads_are_named_after_what_they_run() {
    let folder = Folder::new();
    let disk = folder.sparse("disk", 16 << 20);
    let mut monitor = MonitorBuilder::bare("hello; blk-randread qd=4 secs=30 queues=2 end=reset")
        .args(["--cpus", "boot=2", "--disk", &format!("path={},num_queues=2", disk.display())])
        .start();
    monitor.wait_for("@@ hello");
    let names = || shell(&format!("cat /proc/{}/task/*/comm 2>/dev/null || true", monitor.pid()));
    // The driver starts its queues a moment after it has spoken. By these first letters libvirt tells CPUs and I/O threads from
    // others, to run them where it is told to.
    let wanted = ["vcpu0", "vcpu1", "_disk0-q0", "_disk0-q1"];
    let mut found = names();
    for _ in 0..10_000 {
        if wanted.iter().all(|name| found.lines().any(|line| line == *name)) {
            return;
        }
        found = names();
    }
    panic!("there are only {found}");
}
