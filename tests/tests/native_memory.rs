//! What a monitor takes of the host's memory beside its guest's.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use vivarium_tests::host::Folder;
use vivarium_tests::{Monitor, MonitorBuilder, required};

/// What a monitor holds besides its guest's memory, which is shared, in KiB: all that it has of the program, which other monitors have
/// too, and its part of each other page that several processes have.
fn held_beside_shared_memory(monitor: &Monitor) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps", monitor.pid())).unwrap();
    let mut sum = 0;
    let program = required("VIVARIUM_BIN").display().to_string();
    let (mut of_guest, mut counted) = (false, "");
    for line in text.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        // A mapping's first line begins with its addresses.
        if first.contains('-') && !first.contains(':') {
            of_guest = line.contains("/memfd:");
            counted = if line.ends_with(&program) { "Rss:" } else { "Pss:" };
        } else if first == counted && !of_guest {
            sum += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    sum
}

#[test]
fn a_monitor_is_small_that_has_just_answered_hundreds_of_calls() {
    let folder = Folder::new();
    let socket = folder.join("api.sock");
    let mut monitor = MonitorBuilder::bare("hello; end=spin")
        .replace("--memory", "size=128M,shared=on")
        .arg("--api-socket")
        .arg(&socket)
        .start();
    monitor.wait_for("@@ hello");
    let mut client = UnixStream::connect(&socket).unwrap();
    let mut answers = BufReader::new(client.try_clone().unwrap());
    for call in 0..300 {
        let path = ["vmm.ping", "vm.info", "vm.counters", "vm.inspect?path="][call % 4];
        write!(client, "GET /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            answers.read_line(&mut line).unwrap();
            if let Some((_, value)) =
                line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        answers.read_exact(&mut body).unwrap();
        assert!(!body.is_empty());
    }
    // Where the order of the program's functions is lost, it is 4.5 MB.
    let held = held_beside_shared_memory(&monitor);
    assert!((500..4000).contains(&held), "{held} KiB");
}
