//! The bare-metal guest under GDB, and a guest that has things logged without end.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use vivarium_tests::ctl::{ctl, done};
use vivarium_tests::host::{Folder, shell};
use vivarium_tests::{Exit, MonitorBuilder, required};

/// What GDB prints, given these commands.
fn gdb(socket: &Path, commands: &[&str]) -> String {
    let commands = commands.iter().map(|command| format!("-ex '{command}'")).collect::<Vec<_>>().join(" ");
    let (guest, socket) = (required("VIVARIUM_BARE_GUEST"), socket.display());
    // The guest is 64-bit code that a 32-bit entry leads to.
    shell(&format!(
        "gdb -nx -batch -ex 'set architecture i386:x86-64' -ex 'file {}' -ex 'target remote {socket}' {commands} 2>&1",
        guest.display()
    ))
}

/// Waits for the monitor's socket.
fn await_socket(socket: &Path) {
    while !socket.exists() {
        std::thread::yield_now();
    }
}

#[test]
fn gdb_steps_through_the_first_instructions_and_lets_the_guest_go() {
    let folder = Folder::new();
    let socket = folder.join("gdb");
    let monitor =
        MonitorBuilder::bare("hello").args(["--gdb", &format!("path={}", socket.display())]).start();
    await_socket(&socket);
    let output = gdb(
        &socket,
        &[
            "info threads",
            "printf \"before %lx\\n\", $rip",
            "stepi",
            "stepi",
            "printf \"after %lx\\n\", $rip",
            "x/2xb $rip",
            "monitor registers",
            "detach",
        ],
    );
    let place = |name: &str| {
        let line = output.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{output}"));
        u64::from_str_radix(&line[name.len()..], 16).unwrap()
    };
    let (before, after) = (place("before "), place("after "));
    assert!(before < after && after - before < 32, "two instructions on: {output}");
    assert!(output.contains("cr3") && output.contains("detached"), "{output}");
    // It was held from its first instruction on, and does all of its task now.
    monitor.complete();
}

#[test]
fn the_debuggers_socket_goes_with_the_machine() {
    for (options, signal) in [
        ("", Some(libc::SIGINT)),
        ("", None),
        ("--landlock", Some(libc::SIGTERM)),
        ("--api-socket path=FOLDER/api", Some(libc::SIGXCPU)),
    ] {
        let folder = Folder::new();
        let socket = folder.join("gdb");
        let options = options.replace("FOLDER", &folder.join("").display().to_string());
        let task = if signal.is_some() { "hello end=halt" } else { "hello" };
        let mut monitor = MonitorBuilder::bare(task)
            .args(options.split_whitespace())
            .args(["--gdb", &format!("path={},wait=off", socket.display())])
            .start();
        monitor.wait_for("@@ done rc=0");
        if let Some(signal) = signal {
            monitor.signal(signal);
        }
        assert_eq!(monitor.wait().status, Some(0), "{options}");
        assert!(!socket.exists(), "{options}: the socket is left");
    }
}

#[test]
fn a_guest_cannot_fill_the_log() {
    let folder = Folder::new();
    let tasks = ["ring-abuse case=all"; 5].join("; ");
    let monitor = MonitorBuilder::bare(&tasks)
        .args(["--log-format", "json"])
        .arg("--disk")
        .arg(format!("path={}", folder.sparse("victim", 16 << 20).display()))
        .arg(format!("path={}", folder.sparse("witness", 16 << 20).display()))
        .start();
    let Exit { status, output, errors, .. } = monitor.wait();
    assert!(status == Some(0) && output.contains("@@ done rc=0"), "{output}\n{errors}");
    let lines: Vec<serde_json::Value> = errors
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    // Ten lines in each ten seconds, of each of the few places that have anything to say.
    let seconds = lines.last().map_or(0.0, |line| line["time"].as_f64().unwrap());
    let mut places = std::collections::BTreeMap::<_, usize>::new();
    for line in &lines {
        *places.entry(line["message"].to_string()).or_default() += 1;
    }
    let most = 10 * (seconds as usize / 10 + 1);
    assert!(places.values().all(|&lines| lines <= most), "in {seconds} s: {places:?}");
    // What is left out is told with the next line of that place, if there is one.
    let told = lines.iter().map(|line| line["left_out"].as_u64().unwrap_or(0)).sum::<u64>();
    println!("{} lines, {told} told as left out, in {seconds} s", lines.len());
    assert!(places.values().any(|&lines| lines >= 10), "the guest did cause some: {places:?}");
}

#[test]
fn a_core_dump_that_cannot_be_completed_leaves_nothing_in_the_way_of_the_next() {
    let folder = Folder::new();
    let socket = folder.join("api");
    let mut monitor = MonitorBuilder::bare("hello; end=halt").arg("--api-socket").arg(&socket).start();
    monitor.wait_for("@@ hello");
    let largest_file = |bytes: u64| {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: reads the limit, which outlives the call.
        let set = unsafe {
            libc::prlimit(monitor.pid().cast_signed(), libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut())
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    };
    done(&socket, &["pause"]);
    let core = folder.join("core");
    let url = format!("file://{}", core.display());
    largest_file(1 << 20);
    let output = ctl(&socket, &["coredump", &url]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && errors.contains("could not be written: File too large"), "{errors}");
    assert!(!core.exists());
    largest_file(libc::RLIM_INFINITY);
    done(&socket, &["coredump", &url]);
    assert_eq!(std::fs::metadata(&core).unwrap().permissions().mode() & 0o777, 0o600);
}
