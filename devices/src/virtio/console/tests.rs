use super::control::{Message, event};
use super::*;
use crate::host_console::Mode;
use crate::virtio::testing::Bench;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use virtio::testing::Buffer;

/// A port on a socket of its own, removed with it.
fn port(name: &str, path: &Path) -> Port {
    let host = HostConsole::open(&Mode::Socket(path.to_owned())).unwrap();
    Port { name: name.to_owned(), console: false, host }
}

fn socket_path(test: &str, number: usize) -> PathBuf {
    std::env::temp_dir().join(format!("vivarium-console-{}-{test}-{number}", std::process::id()))
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// What is there to read now.
fn received(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        all.extend_from_slice(&buffer[..count]);
    }
    all
}

fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

/// Sends a control message as the driver.
fn say(bench: &mut Bench, port: usize, event: u16, value: u16) {
    bench.write(0x7000, &Message::new(port, event, value).header());
    bench.ring(CONTROL_TRANSMIT).add(&[readable(0x7000, 8)]).unwrap();
    bench.run();
    assert!(bench.ring(CONTROL_TRANSMIT).take_used().is_some());
}

/// Control messages to the driver, with the buffers they came in given back: port, event, value, payload.
fn hear(bench: &mut Bench) -> Vec<(u32, u16, u16, Vec<u8>)> {
    let mut messages = Vec::new();
    loop {
        // One buffer at a time, as all are at one address.
        if bench.ring(CONTROL_RECEIVE).in_flight() == 0 {
            bench.ring(CONTROL_RECEIVE).add(&[writable(0x6000, 64)]).unwrap();
        }
        bench.run();
        let Some(used) = bench.ring(CONTROL_RECEIVE).take_used() else { return messages };
        let bytes = bench.read(0x6000, used.written as usize);
        let message = Message::from_bytes(bytes[..8].try_into().unwrap());
        messages.push((message.port, message.event, message.value, bytes[8..].to_vec()));
    }
}

#[test]
fn a_single_port_works_both_ways_without_control_queues() {
    let path = socket_path("single", 0);
    let mut console = Console::new(vec![port("", &path)]).unwrap();
    assert_eq!((console.features(), console.queue_sizes().len()), (F_SIZE, 2));
    let mut bench = Bench::start(&mut console, &[0, 1], F_SIZE);
    let mut client = connect(&path);
    bench.write(0x8000, b"Linux version 6.12\n");
    bench.ring(1).add(&[readable(0x8000, 6), readable(0x8006, 13)]).unwrap();
    bench.run();
    assert!(bench.ring(1).take_used().is_some());
    assert_eq!(received(&mut client), b"Linux version 6.12\n");
    // Input waits on the host until there are buffers.
    client.write_all(b"root\n").unwrap();
    bench.run();
    bench.ring(0).add(&[writable(0x9000, 3)]).unwrap();
    bench.ring(0).add(&[writable(0x9003, 3)]).unwrap();
    bench.run();
    assert_eq!(bench.ring(0).take_used().unwrap().written, 3);
    assert_eq!(bench.ring(0).take_used().unwrap().written, 2);
    assert_eq!(bench.read(0x9000, 5), b"root\n");
}

#[test]
fn ports_are_announced_set_up_and_opened() {
    let paths = [socket_path("multi", 0), socket_path("multi", 1)];
    let ports = vec![port("", &paths[0]), port("org.vivarium.agent", &paths[1])];
    let mut console = Console::new(ports).unwrap();
    assert_eq!((console.features(), console.queue_sizes().len()), (F_SIZE | F_MULTIPORT, 6));
    let mut bench = Bench::start(&mut console, &[0, 1, 2, 3, 4, 5], F_SIZE | F_MULTIPORT);
    assert_eq!(hear(&mut bench), [], "nothing before the driver is ready");
    say(&mut bench, 0, event::DEVICE_READY, 1);
    assert_eq!(hear(&mut bench), [(0, event::DEVICE_ADD, 0, vec![]), (1, event::DEVICE_ADD, 0, vec![])]);
    say(&mut bench, 0, event::PORT_READY, 1);
    assert_eq!(hear(&mut bench), [(0, event::CONSOLE_PORT, 1, vec![]), (0, event::PORT_OPEN, 1, vec![])]);
    say(&mut bench, 1, event::PORT_READY, 1);
    assert_eq!(hear(&mut bench), [(1, event::PORT_NAME, 1, b"org.vivarium.agent".to_vec())]);
    let mut client = connect(&paths[1]);
    bench.run();
    assert_eq!(hear(&mut bench), [(1, event::PORT_OPEN, 1, vec![])]);
    // Input is not sent to a port that nobody in the guest has open.
    client.write_all(b"ping").unwrap();
    bench.ring(4).add(&[writable(0x8000, 64)]).unwrap();
    bench.run();
    assert_eq!(bench.ring(4).take_used(), None);
    say(&mut bench, 1, event::PORT_OPEN, 1);
    assert_eq!(bench.ring(4).take_used().unwrap().written, 4);
    assert_eq!(bench.read(0x8000, 4), b"ping");
    drop(client);
    bench.run();
    assert_eq!(hear(&mut bench), [(1, event::PORT_OPEN, 0, vec![])]);
}

#[test]
fn a_channel_waits_for_its_slow_peer_and_loses_nothing() {
    let paths = [socket_path("slow", 0), socket_path("slow", 1)];
    let mut console = Console::new(vec![port("", &paths[0]), port("data", &paths[1])]).unwrap();
    let mut bench = Bench::start(&mut console, &[0, 1, 2, 3, 4, 5], F_SIZE | F_MULTIPORT);
    let mut client = connect(&paths[1]);
    // Much more than the socket and the replay buffer hold.
    let piece: Vec<u8> = (0..0x10000_u32).map(|n| (n % 253) as u8).collect();
    bench.write(0x20000, &piece);
    let (mut sent, mut done, mut got) = (0, 0, Vec::new());
    for _ in 0..1000 {
        if sent < 32 && bench.ring(5).add(&[readable(0x20000, 0x10000)]).is_some() {
            sent += 1;
        }
        bench.run();
        while bench.ring(5).take_used().is_some() {
            done += 1;
        }
        if sent == 32 || bench.ring(5).room() == 0 {
            assert!(done < 32 || got.len() > 0x10000, "the peer must have been waited for");
            got.extend(received(&mut client));
        }
        if got.len() == 32 * piece.len() {
            break;
        }
    }
    assert_eq!(done, 32);
    assert!(got.chunks(piece.len()).all(|chunk| chunk == piece), "bytes lost or changed");
}

#[test]
fn a_console_never_waits_for_its_reader() {
    let path = socket_path("stuck", 0);
    let mut console = Console::new(vec![port("", &path)]).unwrap();
    let mut bench = Bench::start(&mut console, &[0, 1], F_SIZE);
    let _client = connect(&path);
    for _ in 0..32 {
        bench.ring(1).add(&[readable(0x20000, 0x10000)]).unwrap();
        bench.run();
        assert!(bench.ring(1).take_used().is_some());
    }
}

#[test]
fn state_is_carried_over_to_another_machine() {
    let paths =
        [socket_path("move", 0), socket_path("move", 1), socket_path("move", 2), socket_path("move", 3)];
    let mut old = Console::new(vec![port("", &paths[0]), port("a", &paths[1])]).unwrap();
    let mut bench = Bench::start(&mut old, &[0, 1, 2, 3, 4, 5], F_MULTIPORT);
    let mut client = connect(&paths[1]);
    say(&mut bench, 0, event::DEVICE_READY, 1);
    say(&mut bench, 1, event::PORT_READY, 1);
    say(&mut bench, 1, event::PORT_OPEN, 1);
    // Input that no longer fits.
    client.write_all(b"abcdef").unwrap();
    bench.ring(4).add(&[writable(0x8000, 2)]).unwrap();
    bench.run();
    bench.quiesce();
    let state = old.save().unwrap();
    let mut new = Console::new(vec![port("", &paths[2]), port("a", &paths[3])]).unwrap();
    new.restore(&state).unwrap();
    assert_eq!(new.save().unwrap(), state);
    let mut bench = Bench::start(&mut new, &[0, 1, 2, 3, 4, 5], F_MULTIPORT);
    bench.ring(4).add(&[writable(0x8000, 64)]).unwrap();
    bench.run();
    assert_eq!(bench.ring(4).take_used().unwrap().written, 4);
    assert_eq!(bench.read(0x8000, 4), b"cdef");
    // What was announced and not heard is still to be heard.
    let messages = hear(&mut bench);
    assert_eq!(messages[..2], [(0, event::DEVICE_ADD, 0, vec![]), (1, event::DEVICE_ADD, 0, vec![])]);
}

#[test]
fn a_reset_gives_the_ports_back_and_forgets_the_driver() {
    let paths = [socket_path("reset", 0), socket_path("reset", 1)];
    let mut console = Console::new(vec![port("", &paths[0]), port("a", &paths[1])]).unwrap();
    let power_on = console.save().unwrap();
    let mut client = connect(&paths[0]);
    for _ in 0..3 {
        let mut bench = Bench::start(&mut console, &[0, 1, 2, 3, 4, 5], F_MULTIPORT);
        say(&mut bench, 0, event::DEVICE_READY, 1);
        bench.write(0x8000, b"hi");
        bench.ring(1).add(&[readable(0x8000, 2)]).unwrap();
        bench.run();
        assert_eq!(received(&mut client), b"hi");
        bench.stop();
        console.reset();
        assert_eq!(console.save().unwrap(), power_on);
    }
}

#[test]
fn nonsense_on_the_control_queue_is_counted_and_bounded() {
    let paths: Vec<_> = (0..MAX_PORTS).map(|number| socket_path("nonsense", number)).collect();
    let mut console = Console::new(paths.iter().map(|path| port("x", path)).collect()).unwrap();
    let queues: Vec<u16> = (0..2 * (MAX_PORTS as u16 + 1)).collect();
    let mut bench = Bench::start(&mut console, &queues, F_MULTIPORT);
    for round in 0..2000_usize {
        let (port, event) = (round * 7 % 64, (round % 10) as u16);
        bench.write(0x7000, &Message::new(port, event, (round % 2) as u16).header());
        let buffers = [readable(0x7000, (round % 9) as u32)];
        // Refused once the ring is full of what the device leaves alone.
        let _ = bench.ring(CONTROL_TRANSMIT).add(&buffers);
        bench.run();
        while bench.ring(CONTROL_TRANSMIT).take_used().is_some() {}
    }
    assert!(!bench.is_broken());
    assert!(bench.inspect()["messages_waiting"].as_u64().unwrap() <= 5 * MAX_PORTS as u64);
    // A driver that hears what it is told can go on.
    hear(&mut bench);
    while bench.ring(CONTROL_TRANSMIT).take_used().is_some() {}
    say(&mut bench, 0, event::PORT_OPEN, 1);
}

#[test]
fn configuration_has_size_and_ports() {
    let path = socket_path("config", 0);
    let console = Console::new(vec![port("", &path)]).unwrap();
    console.shared.set_size(Some(WindowSize { columns: 132, rows: 43 }));
    let mut config = [0; 16];
    console.config_read(0, &mut config);
    assert_eq!(config, [132, 0, 43, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut part = [0; 2];
    console.config_read(2, &mut part);
    assert_eq!(part, [43, 0]);
    console.config_read(u64::MAX, &mut part);
    assert!(Console::new(vec![]).is_err());
}

#[test]
fn a_resized_window_is_told_to_the_driver() {
    let link = socket_path("resize", 0);
    let ports = || {
        let pty = HostConsole::open(&Mode::Pty(Some(link.clone()))).unwrap();
        vec![
            Port { name: String::new(), console: true, host: pty },
            Port { name: "x".to_owned(), console: false, host: HostConsole::open(&Mode::Null).unwrap() },
        ]
    };
    for multiport in [false, true] {
        let features = F_SIZE | if multiport { F_MULTIPORT } else { 0 };
        let mut console = Console::new(ports()).unwrap();
        let mut bench = Bench::start(&mut console, &[0, 1, 2, 3, 4, 5], features);
        if multiport {
            say(&mut bench, 0, event::DEVICE_READY, 1);
            say(&mut bench, 0, event::PORT_READY, 1);
        }
        let user = std::fs::OpenOptions::new().read(true).write(true).open(&link).unwrap();
        let size = libc::winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the request reads a `winsize`.
        assert_eq!(
            unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&user), libc::TIOCSWINSZ, &size) },
            0
        );
        bench.run();
        let mut config = [0; 4];
        console.config_read(0, &mut config);
        assert_eq!(config, [200, 0, 50, 0]);
        assert_eq!(bench.config_changes(), 1);
        if multiport {
            assert!(hear(&mut bench).contains(&(0, event::RESIZE, 0, vec![200, 0, 50, 0])));
        }
    }
}
