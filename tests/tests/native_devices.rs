//! The devices, driven by the bare-metal guest.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;
use vivarium_tests::host::{Folder, Tap, shell};
use vivarium_tests::terminal::Terminal;
use vivarium_tests::{Feature, MonitorBuilder, Report, events, lacks, native, rate};

/// Rings and engines that a disk can be driven by.
const VARIANTS: [&str; 6] = [
    "qd=8 packed=0 event_idx=0",
    "qd=8 packed=0 event_idx=1 indirect=1",
    "qd=8 packed=1 event_idx=0",
    "qd=8 packed=1 event_idx=1",
    "qd=8 packed=1 event_idx=1 indirect=1",
    // As deep as so short a ring can be, with three descriptors a request.
    "qd=2 packed=0 event_idx=1 ring=8",
];

fn disk(path: &Path, keys: &str) -> [String; 2] {
    ["--disk".into(), format!("path={}{keys}", path.display())]
}

/// With every kind of ring.
fn disks_keep_what_is_written(engine: &str) {
    let folder = Folder::on_disk();
    let path = folder.sparse("disk", 32 << 20);
    for direct in ["off", "on"] {
        let task = VARIANTS.map(|variant| {
            format!(
                "blk-verify salt=7 size=1M {variant}; blk-seqwrite check=1 n=128 bs=128K size=16M {variant}; \
                 blk-randread check=1 n=500 size=16M {variant}; blk-randwrite check=1 n=500 size=16M {variant}"
            )
        });
        let report = MonitorBuilder::bare(&task.join("; "))
            .args(disk(&path, &format!(",engine={engine},direct={direct},serial=number-of-twenty-ch")))
            .start()
            .complete();
        for line in report.of("blk-verify") {
            assert_eq!(line.get("serial"), Some("\"number-of-twenty-ch\""), "{line:?}");
        }
        let mut errors = report.of("blk-randread").filter_map(|line| line.get("errors"));
        assert!(errors.all(|errors| errors == "0"), "{report:?}");
    }
}

#[test]
fn disks_keep_what_is_written_with_every_kind_of_ring_by_io_uring() {
    disks_keep_what_is_written("io_uring");
}

#[test]
fn disks_keep_what_is_written_with_every_kind_of_ring_by_threads() {
    disks_keep_what_is_written("threads");
}

/// The pattern that the guest's `check=1` writes: see its README.
fn pattern(sector: u64, word: u64, salt: u64) -> u64 {
    (64 * sector + word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

#[test]
fn the_image_holds_exactly_what_the_guest_wrote() {
    let folder = Folder::on_disk();
    let path = folder.sparse("disk", 8 << 20);
    for (salt, engine) in [(3, "io_uring"), (4, "threads")] {
        MonitorBuilder::bare(&format!("blk-seqwrite check=1 salt={salt} bs=64K qd=16 size=8M queues=4"))
            .args(disk(&path, &format!(",num_queues=4,engine={engine}")))
            .start()
            .complete();
        let bytes = std::fs::read(&path).unwrap();
        for (at, word) in bytes.chunks_exact(8).enumerate() {
            let (sector, index) = (at as u64 / 64, at as u64 % 64);
            let found = u64::from_le_bytes(word.try_into().unwrap());
            assert_eq!(found, pattern(sector, index, salt), "{engine}: word {index} of sector {sector}");
        }
    }
}

#[test]
fn a_checksum_by_the_guest_is_that_of_the_host() {
    let folder = Folder::new();
    let path = folder.join("disk");
    shell(&format!("head -c 1000448 /dev/urandom >{}", path.display()));
    let report = MonitorBuilder::bare("blk-checksum").args(disk(&path, ",readonly=on")).start().complete();
    let host = shell(&format!(
        "python3 -c 'import sys, zlib; print(zlib.crc32(open(sys.argv[1], \"rb\").read()))' {}",
        path.display()
    ));
    let crc = report.of("blk-checksum").find_map(|line| line.get("crc32")).expect("there is one");
    let crc = u32::from_str_radix(crc.trim_start_matches("0x"), 16).unwrap();
    assert_eq!(crc.to_string(), host.trim());
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let folder = Folder::new();
    let path = folder.join("disk");
    std::fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
    MonitorBuilder::bare("blk-verify").args(disk(&path, ",readonly=on")).start().complete();
    assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0x5a));
}

#[test]
fn entropy_is_fresh() {
    let report = MonitorBuilder::bare("rng bytes=4096; rng bytes=1; rng packed=1").start().complete();
    assert_eq!(report.of("rng").next().and_then(|line| line.get("bytes")), Some("4096"));
}

#[test]
fn the_console_speaks_and_listens() {
    let mut terminal = Terminal::new();
    let mut command =
        MonitorBuilder::bare("console text=are-you-there read=4 secs=60; console packed=1 text=over")
            .replace("--serial", "null")
            .replace("--console", "tty")
            .command();
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    terminal.wait_for("are-you-there");
    terminal.type_in("yes\r");
    terminal.wait_for("over");
    assert!(child.wait().unwrap().success());
}

/// Frames of the guest's own EtherType.
const ETHER_TYPE: &str = "0x88b5";

#[test]
fn a_tap_carries_frames_both_ways() {
    let tap = Tap::new("vivt0", 1, "192.0.2.1/24");
    for packed in [0, 1] {
        let mut monitor = MonitorBuilder::bare(&format!("net-echo n=200 packed={packed} secs=60"))
            .args(["--net", "tap=vivt0,mac=02:00:00:00:00:05"])
            .start();
        monitor.wait_for("ready=1");
        // 200 frames of every size there is, out and back.
        let script = format!(
            "import socket, os\n\
             s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons({ETHER_TYPE}))\n\
             s.bind(('vivt0', {ETHER_TYPE}))\n\
             s.settimeout(60)\n\
             for n in range(200):\n\
            \x20   body = os.urandom(46 + n * 7)\n\
            \x20   s.send(bytes.fromhex('020000000005020000000001') + ({ETHER_TYPE}).to_bytes(2, 'big') + body)\n\
            \x20   back = s.recv(4096)\n\
            \x20   assert back[14:] == body, (n, back)\n\
             print('all')"
        );
        let file = std::env::temp_dir().join(format!("echo-{}.py", std::process::id()));
        std::fs::write(&file, script).unwrap();
        assert_eq!(shell(&format!("python3 {}", file.display())), "all\n");
        std::fs::remove_file(file).unwrap();
        monitor.complete();
    }
    drop(tap);
}

#[test]
fn a_tap_made_for_the_guest_goes_with_it() {
    let mut monitor =
        MonitorBuilder::bare("net-tx n=1000 end=reset").args(["--net", "tap=vivt1,ip=198.51.100.1"]).start();
    monitor.wait_for("@@ done rc=0");
    assert!(shell("ip -o addr show dev vivt1").contains("198.51.100.1/24"));
    monitor.signal(libc::SIGINT);
    assert_eq!(monitor.wait().status, Some(0));
    assert!(!Path::new("/sys/class/net/vivt1").exists());
}

#[test]
fn rate_limits_hold() {
    let folder = Folder::new();
    let path = folder.sparse("disk", 64 << 20);
    // 2 MiB a second, then 500 requests a second. The clock is the guest's own.
    for (keys, task, unit, limit) in [
        ("bw_size=2097152,bw_refill_time=1000", "blk-randread bs=4K qd=16 secs=3", "bytes", 2_097_152.0),
        ("ops_size=500,ops_refill_time=1000", "blk-randread bs=4K qd=16 secs=3", "ops", 500.0),
        ("bw_size=2097152,bw_refill_time=1000", "blk-randwrite bs=16K qd=4 secs=3", "bytes", 2_097_152.0),
    ] {
        rate::holds(keys, limit, 0.1, || {
            let report = MonitorBuilder::bare(task).args(disk(&path, &format!(",{keys}"))).start().complete();
            let name = task.split(' ').next().unwrap();
            (report.number(name, unit) as f64 - limit) / (report.number(name, "ns") as f64 / 1e9)
        });
    }
}

/// What is left of a report's figure after `at_once`, a second.
fn a_second(report: &Report, task: &str, unit: &str, at_once: f64) -> f64 {
    let sum = |key: &str| {
        report.of(task).filter_map(|line| line.get(key)).map(|text| text.parse::<f64>().unwrap()).sum::<f64>()
    };
    (sum(unit) - at_once) / (sum("ns") / 1e9)
}

#[test]
fn disks_of_a_group_share_its_limit() {
    let folder = Folder::new();
    let paths = ["a", "b"].map(|name| folder.sparse(name, 64 << 20));
    rate::holds("a group", 500.0, 0.1, || {
        // What the first has left of the full bucket the second finds gone.
        let report = MonitorBuilder::bare("blk-randread qd=16 secs=3; blk-randread dev=1 qd=16 secs=3")
            .args(["--rate-limit-group", "id=slow,ops_size=500,ops_refill_time=1000"])
            .args(paths.iter().flat_map(|path| disk(path, ",rate_limit_group=slow")))
            .start()
            .complete();
        a_second(&report, "blk-randread", "ops", 500.0)
    });
}

#[test]
fn a_burst_passes_once() {
    let folder = Folder::new();
    let path = folder.sparse("disk", 64 << 20);
    let burst = native().burst();
    let keys = format!(",ops_size=500,ops_refill_time=1000,ops_one_time_burst={burst}");
    rate::holds("500 after a burst", 500.0, 0.1, || {
        let report =
            MonitorBuilder::bare("blk-randread qd=16 secs=4").args(disk(&path, &keys)).start().complete();
        a_second(&report, "blk-randread", "ops", f64::from(burst) + 500.0)
    });
}

#[test]
fn a_limit_of_packets_holds() {
    let tap = Tap::new("vivt2", 1, "192.0.2.1/24");
    rate::holds("500 packets", 500.0, 0.1, || {
        let report = MonitorBuilder::bare("net-tx size=100 secs=4")
            .args(["--net", &format!("tap={},ops_size=500,ops_refill_time=1000", tap.name)])
            .start()
            .complete();
        a_second(&report, "net-tx", "packets", 500.0)
    });
}

#[test]
fn a_socket_shows_a_late_joiner_what_was_said() {
    let folder = Folder::new();
    let socket = folder.join("serial");
    let mut child = MonitorBuilder::bare("hello end=halt")
        .replace("--serial", format!("socket={}", socket.display()))
        .command()
        .spawn()
        .unwrap();
    let mut peer = loop {
        assert!(child.try_wait().unwrap().is_none(), "the monitor runs");
        if let Ok(peer) = std::os::unix::net::UnixStream::connect(&socket) {
            break peer;
        }
    };
    peer.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut text = String::new();
    let mut byte = [0];
    while !text.contains("@@ done rc=0") {
        peer.read_exact(&mut byte).unwrap();
        text.push(char::from(byte[0]));
    }
    drop(peer);
    // The guest says no more; who joins now sees it all the same.
    let mut peer = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let mut late = vec![0; text.len()];
    peer.read_exact(&mut late).unwrap();
    assert_eq!(String::from_utf8(late).unwrap(), text);
    peer.write_all(b"nobody reads this").unwrap();
    // SAFETY: the child was not waited for, so its id is still its own.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists(), "the socket is removed");
}

#[test]
fn the_guest_reads_the_hosts_clocks_and_hears_an_alarm() {
    let now = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let start = now();
    let report = MonitorBuilder::bare("rtc; rtc packed=1").arg("--rtc").start().complete();
    let end = now();
    let utc: Vec<_> = report.of("rtc").filter(|line| line.get("kind") == Some("4")).collect();
    assert_eq!(utc.len(), 2, "{report:?}");
    for line in utc {
        let told: u128 = line.get("second").unwrap().parse().unwrap();
        assert!((start..=end).contains(&told), "{line:?}");
    }
    assert_eq!(report.of("rtc").filter(|line| line.get("alarm") == Some("1")).count(), 2, "{report:?}");
}

#[test]
fn a_guest_that_falls_silent_is_told_of_and_restarted_or_ended_by_its_virtio_watchdog() {
    if lacks(Feature::LongWaits) {
        return;
    }
    let folder = Folder::new();
    // Their limit is 20 seconds, at the same time.
    let [mut restarted, mut ended] = ["reset", "poweroff"].map(|action| {
        MonitorBuilder::bare("watchdog n=1 end=halt")
            .args(["--watchdog", &format!("model=virtio,action={action},id=dog")])
            .arg("--event-monitor")
            .arg(folder.join(action))
            .start()
    });
    let silent = "@@ watchdog dev=0 pings=2";
    ended.wait_for(silent);
    restarted.wait_for(silent);
    restarted.wait_for(silent);
    restarted.signal(libc::SIGTERM);
    let exits = [restarted.wait(), ended.wait()];
    for (exit, action) in exits.into_iter().zip(["reset", "poweroff"]) {
        if action == "poweroff" {
            assert_eq!(exit.status, Some(0), "{}{}", exit.output, exit.errors);
        }
        let mut fired = events(&folder.join(action)).into_iter().filter(|(name, _)| name == "watchdog");
        let (_, told) = fired.next().unwrap_or_else(|| panic!("{action}: nothing is told"));
        assert_eq!((&told["id"], &told["action"]), (&"dog".into(), &action.into()));
    }
}

/// A stock kernel does the same where it has a driver, which those for Arm do not have.
#[test]
fn a_panic_that_the_guest_tells_of_by_pci_is_reported() {
    let folder = Folder::new();
    let events = folder.join("events");
    let exit =
        MonitorBuilder::bare("pvpanic").arg("--pvpanic").arg("--event-monitor").arg(&events).start().wait();
    assert!(exit.output.contains("@@ pvpanic understood=0x3 events=0x1"), "{}", exit.output);
    assert!(exit.output.contains("@@ done rc=0"), "{}", exit.output);
    assert_eq!(exit.errors.matches("the guest reports a panic").count(), 1, "{}", exit.errors);
    let events = std::fs::read_to_string(events).unwrap();
    assert_eq!(events.matches("\"event\":\"panic\"").count(), 1, "{events}");
    assert_eq!(exit.status, Some(0), "{}", exit.errors);
}
