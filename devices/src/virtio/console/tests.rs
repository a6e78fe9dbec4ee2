use super::control::{Message, event};
use super::*;
use crate::host_console::Mode;
use crate::virtio::testing::settle;
use machine::inspect::json;
use machine::state::Saved;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use virtio::testing::{Driver, Layout};

fn socket_path(test: &str, number: usize) -> PathBuf {
    std::env::temp_dir().join(format!("vivarium-console-{}-{test}-{number}", std::process::id()))
}

/// A channel on a socket, which is removed with it. The first port becomes a console.
fn port(name: &str, path: &Path) -> Port {
    let host = HostConsole::open(&Mode::Socket(path.to_owned())).unwrap();
    Port { name: name.to_owned(), console: false, host }
}

fn null_ports(count: usize) -> Vec<Port> {
    let host = || HostConsole::open(&Mode::Null).unwrap();
    (0..count).map(|number| Port { name: number.to_string(), console: false, host: host() }).collect()
}

fn start(ports: Vec<Port>) -> Driver {
    Driver::new(Box::new(Console::new(ports).unwrap()), Layout::SPLIT)
}

virtio::conformance!(single, || Box::new(Console::new(null_ports(1)).unwrap()));
virtio::conformance!(multiport, || Box::new(Console::new(null_ports(3)).unwrap()));

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

/// Sends a control message as the driver.
fn say(driver: &mut Driver, port: usize, event: u16, value: u16) {
    let header = Message::new(port, event, value).header();
    driver.request(CONTROL_TRANSMIT, &[&header], &[]).unwrap();
    settle(driver);
    assert!(driver.completion(CONTROL_TRANSMIT).is_some());
}

/// Control messages to the driver: port, event, value, payload.
fn hear(driver: &mut Driver) -> Vec<(u32, u16, u16, Vec<u8>)> {
    let mut messages = Vec::new();
    loop {
        if driver.ring(CONTROL_RECEIVE).in_flight() == 0 {
            driver.request(CONTROL_RECEIVE, &[], &[64]).unwrap();
        }
        settle(driver);
        let Some(answer) = driver.completion(CONTROL_RECEIVE) else { return messages };
        let bytes = &answer.data[..answer.written as usize];
        let message = Message::from_bytes(bytes[..8].try_into().unwrap());
        messages.push((message.port, message.event, message.value, bytes[8..].to_vec()));
    }
}

/// What the guest received in the next buffer.
fn input(driver: &mut Driver, queue: u16) -> Option<Vec<u8>> {
    let mut answer = driver.completion(queue)?;
    answer.data.truncate(answer.written as usize);
    Some(answer.data)
}

#[test]
fn a_single_port_works_both_ways_without_control_queues() {
    let path = socket_path("single", 0);
    for layout in Layout::all() {
        let console = Console::new(vec![port("", &path)]).unwrap();
        let mut driver = Driver::new(Box::new(console), layout);
        driver.initialize(layout, F_SIZE);
        let mut client = connect(&path);
        driver.request(1, &[b"Linux ", b"version 6.12\n"], &[]).unwrap();
        settle(&mut driver);
        assert!(driver.completion(1).is_some());
        assert_eq!(received(&mut client), b"Linux version 6.12\n");
        // Input waits on the host until there are buffers.
        client.write_all(b"root\n").unwrap();
        settle(&mut driver);
        driver.request(0, &[], &[3]).unwrap();
        driver.request(0, &[], &[3]).unwrap();
        assert!(driver.kick(0), "the driver is asked to tell of buffers that are waited for");
        settle(&mut driver);
        assert_eq!(input(&mut driver, 0).unwrap(), b"roo");
        assert_eq!(input(&mut driver, 0).unwrap(), b"t\n");
    }
}

#[test]
fn queues_keep_their_place_when_a_driver_without_control_is_stopped() {
    let path = socket_path("place", 0);
    let ports =
        vec![port("", &path), port("a", &path.with_extension("a")), port("b", &path.with_extension("b"))];
    let mut driver = Driver::new(Box::new(Console::new(ports).unwrap()), Layout::SPLIT);
    driver.initialize(Layout::SPLIT, F_SIZE);
    for _ in 0..2 {
        driver.request(7, &[b"x"], &[]).unwrap();
        settle(&mut driver);
        assert!(driver.completion(7).is_some());
        driver.stop();
        driver.start();
    }
}

/// Linux drops what it gets before it has opened a console.
#[test]
fn a_single_port_gets_input_when_it_is_open() {
    let path = socket_path("early", 0);
    let console = Console::new(vec![port("", &path)]).unwrap();
    assert_eq!((console.features(), console.queue_sizes().len()), (F_SIZE | F_MULTIPORT, 4));
    let mut driver = Driver::new(Box::new(console), Layout::SPLIT);
    let mut client = connect(&path);
    client.write_all(b"early").unwrap();
    driver.request(0, &[], &[16]).unwrap();
    driver.kick(0);
    settle(&mut driver);
    say(&mut driver, 0, event::DEVICE_READY, 1);
    say(&mut driver, 0, event::PORT_READY, 1);
    assert_eq!(input(&mut driver, 0), None);
    say(&mut driver, 0, event::PORT_OPEN, 1);
    assert_eq!(input(&mut driver, 0).unwrap(), b"early");
}

#[test]
fn ports_are_announced_set_up_and_opened() {
    let paths = [socket_path("multi", 0), socket_path("multi", 1)];
    let console = Console::new(vec![port("", &paths[0]), port("org.vivarium.agent", &paths[1])]).unwrap();
    assert_eq!((console.features(), console.queue_sizes().len()), (F_SIZE | F_MULTIPORT, 6));
    let mut driver = Driver::new(Box::new(console), Layout::SPLIT);
    assert_eq!(hear(&mut driver), [], "nothing before the driver is ready");
    say(&mut driver, 0, event::DEVICE_READY, 1);
    let added = [(0, event::DEVICE_ADD, 0, vec![]), (1, event::DEVICE_ADD, 0, vec![])];
    assert_eq!(hear(&mut driver), added);
    say(&mut driver, 0, event::PORT_READY, 1);
    assert_eq!(hear(&mut driver), [(0, event::CONSOLE_PORT, 1, vec![]), (0, event::PORT_OPEN, 1, vec![])]);
    say(&mut driver, 1, event::PORT_READY, 1);
    assert_eq!(hear(&mut driver), [(1, event::PORT_NAME, 1, b"org.vivarium.agent".to_vec())]);
    let mut client = connect(&paths[1]);
    assert_eq!(hear(&mut driver), [(1, event::PORT_OPEN, 1, vec![])]);
    // Input is not sent to a port that nobody in the guest has open.
    client.write_all(b"ping").unwrap();
    driver.request(4, &[], &[64]).unwrap();
    settle(&mut driver);
    assert_eq!(input(&mut driver, 4), None);
    say(&mut driver, 1, event::PORT_OPEN, 1);
    assert_eq!(input(&mut driver, 4).unwrap(), b"ping");
    driver.request(5, &[b"pong"], &[]).unwrap();
    settle(&mut driver);
    assert_eq!(received(&mut client), b"pong");
    drop(client);
    assert_eq!(hear(&mut driver), [(1, event::PORT_OPEN, 0, vec![])]);
    let mut next = connect(&paths[1]);
    assert_eq!(hear(&mut driver), [(1, event::PORT_OPEN, 1, vec![])]);
    assert_eq!(received(&mut next), b"", "what was said to others is not said again");
}

#[test]
fn a_channel_tells_of_each_peer_when_the_next_waits_already() {
    let paths = [socket_path("next", 0), socket_path("next", 1)];
    let mut driver = start(vec![port("", &paths[0]), port("data", &paths[1])]);
    say(&mut driver, 0, event::DEVICE_READY, 1);
    say(&mut driver, 1, event::PORT_READY, 1);
    let first = connect(&paths[1]);
    settle(&mut driver);
    hear(&mut driver);
    // More than is taken at once: a chain is begun, and its peer is slow.
    driver.request(5, &[&vec![b'a'; 1 << 20]], &[]).unwrap();
    settle(&mut driver);
    assert!(driver.completion(5).is_none());
    let mut next = connect(&paths[1]);
    drop(first);
    settle(&mut driver);
    let told = hear(&mut driver);
    assert_eq!(told, [(1, event::PORT_OPEN, 0, vec![]), (1, event::PORT_OPEN, 1, vec![])]);
    assert!(driver.completion(5).is_some());
    assert_eq!(received(&mut next), b"", "what was said to others is not said to the next");
}

#[test]
fn a_channel_waits_for_its_slow_peer_and_loses_nothing() {
    let paths = [socket_path("slow", 0), socket_path("slow", 1)];
    let mut driver = start(vec![port("", &paths[0]), port("data", &paths[1])]);
    let mut client = connect(&paths[1]);
    // Much more than the socket and the replay buffer hold.
    let piece: Vec<u8> = (0..0x10000_u32).map(|n| (n % 253) as u8).collect();
    const PIECES: usize = 64;
    for _ in 0..PIECES {
        driver.request(5, &[&piece], &[]).unwrap();
    }
    settle(&mut driver);
    assert!(driver.ring(5).in_flight() > 0, "the peer must have been waited for");
    let (mut done, mut got) = (0, Vec::new());
    while done < PIECES || got.len() < PIECES * piece.len() {
        let news = received(&mut client);
        settle(&mut driver);
        let finished = std::iter::from_fn(|| driver.completion(5)).count();
        assert!(finished > 0 || !news.is_empty(), "stuck after {} bytes", got.len());
        got.extend(news);
        done += finished;
    }
    assert!(got.chunks(piece.len()).all(|chunk| chunk == piece), "bytes lost or changed");
}

#[test]
fn a_console_never_waits_for_its_reader() {
    let path = socket_path("stuck", 0);
    let mut driver = start(vec![port("", &path)]);
    let _client = connect(&path);
    for _ in 0..32 {
        driver.request(1, &[&[b'x'; 0x10000]], &[]).unwrap();
        settle(&mut driver);
        assert!(driver.completion(1).is_some());
    }
}

#[test]
fn state_is_carried_over_to_another_machine() {
    let paths: Vec<_> = (0..4).map(|number| socket_path("move", number)).collect();
    let mut old = start(vec![port("", &paths[0]), port("a", &paths[1])]);
    let mut client = connect(&paths[1]);
    say(&mut old, 0, event::DEVICE_READY, 1);
    say(&mut old, 1, event::PORT_READY, 1);
    say(&mut old, 1, event::PORT_OPEN, 1);
    // Input that no longer fits.
    old.request(4, &[], &[2]).unwrap();
    client.write_all(b"abcdef").unwrap();
    settle(&mut old);
    assert_eq!(input(&mut old, 4).unwrap(), b"ab");
    assert!(old.stop());
    let state = old.function.save().unwrap();
    let mut new = start(vec![port("", &paths[2]), port("a", &paths[3])]);
    new.stop();
    new.function.restore(&state).unwrap();
    assert_eq!(new.function.save().unwrap(), state);
    let saved = new.function.device().save().unwrap();
    assert_eq!(saved.fields["ports"][1]["held"], json!(b"cdef"));
    // What was announced and not heard is still to be heard.
    assert_eq!(saved.fields["messages"].as_array().unwrap().len(), 4);
}

#[test]
fn a_reset_gives_the_ports_back_and_forgets_the_driver() {
    let paths = [socket_path("reset", 0), socket_path("reset", 1)];
    let mut driver = start(vec![port("", &paths[0]), port("a", &paths[1])]);
    let mut client = connect(&paths[0]);
    for _ in 0..3 {
        say(&mut driver, 0, event::DEVICE_READY, 1);
        driver.request(1, &[b"hi"], &[]).unwrap();
        settle(&mut driver);
        assert_eq!(received(&mut client), b"hi");
        driver.reset();
        let state: SavedConsole = driver.function.device().save().unwrap().read().unwrap();
        assert_eq!(state, SavedConsole::default());
        driver.initialize(Layout::SPLIT, u64::MAX);
    }
}

#[test]
fn nonsense_on_the_control_queue_is_counted_and_bounded() {
    let mut driver = start(null_ports(MAX_PORTS));
    for round in 0..2000_usize {
        let header = Message::new(round * 7 % 64, (round % 10) as u16, (round / 10 % 2) as u16).header();
        // Refused once the ring is full of what the device leaves alone.
        let _ = driver.request(CONTROL_TRANSMIT, &[&header[..8 - round / 20 % 3]], &[]);
        settle(&mut driver);
        while driver.completion(CONTROL_TRANSMIT).is_some() {}
    }
    assert!(driver.function.is_live());
    let waiting = driver.tasks[0].handler.inspect()["messages_waiting"].as_u64().unwrap();
    assert!(waiting <= 5 * MAX_PORTS as u64, "{waiting}");
    // A driver that hears what it is told can go on.
    hear(&mut driver);
    while driver.completion(CONTROL_TRANSMIT).is_some() {}
    say(&mut driver, 0, event::PORT_OPEN, 1);
}

#[test]
fn the_configuration_has_size_and_ports() {
    let console = Console::new(null_ports(1)).unwrap();
    console.shared.set_size(Some(WindowSize { columns: 132, rows: 43 }));
    let mut config = [0; 16];
    console.config_read(0, &mut config);
    assert_eq!(config, [132, 0, 43, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut part = [0; 2];
    console.config_read(2, &mut part);
    assert_eq!(part, [43, 0]);
    console.config_read(u64::MAX, &mut part);
    for count in [0, MAX_PORTS + 1] {
        assert!(Console::new(null_ports(count)).is_err());
    }
}

#[test]
fn a_resized_window_is_told_to_the_driver() {
    let link = socket_path("resize", 0);
    for multiport in [false, true] {
        let pty = HostConsole::open(&Mode::Pty(Some(link.clone()))).unwrap();
        let mut ports = null_ports(if multiport { 2 } else { 1 });
        ports[0].host = pty;
        let mut driver = start(ports);
        if multiport {
            say(&mut driver, 0, event::DEVICE_READY, 1);
            say(&mut driver, 0, event::PORT_READY, 1);
        }
        let before = driver.config_interrupts();
        let user = std::fs::OpenOptions::new().read(true).write(true).open(&link).unwrap();
        let size = libc::winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the request reads a `winsize`.
        assert_eq!(unsafe { libc::ioctl(user.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
        settle(&mut driver);
        let mut config = [0; 4];
        driver.read_config(0, &mut config);
        assert_eq!(config, [200, 0, 50, 0]);
        assert_eq!(driver.config_interrupts(), before + 1);
        if multiport {
            assert!(hear(&mut driver).contains(&(0, event::RESIZE, 0, vec![200, 0, 50, 0])));
        }
    }
}

#[test]
fn a_console_that_is_gone_takes_what_is_transmitted_and_keeps_buffers_to_receive_in() {
    use virtio::chain::Chain;
    use virtio::stand_in::Request;
    let port = Port { name: String::new(), console: true, host: HostConsole::open(&Mode::Null).unwrap() };
    let refuse = Console::new(vec![port]).unwrap().refusal();
    let chain = Chain::new();
    let answer = |queue| refuse(&Request { queue, queues: 4, features: 0, chain: &chain });
    assert_eq!((0..4).map(answer).collect::<Vec<_>>(), [None, Some(0), None, Some(0)]);
}
