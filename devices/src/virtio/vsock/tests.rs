use super::packet::{HEADER, HOST_CID, Header, STREAM, op, shutdown};
use super::*;
use crate::virtio::testing::settle;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use virtio::testing::{Driver, Layout};

const CID: u64 = 3;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENTS: u16 = 2;
/// The guest's buffers, as Linux makes them.
const BUFFER: u32 = 4096;
const NOTHING: [u16; 0] = [];
const ROOM: u32 = 1 << 20;

fn new_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("vivarium-vsock-{}-{number}", std::process::id()))
}

fn vsock() -> Box<dyn VirtioDevice> {
    Box::new(Vsock::open(CID, &new_path()).unwrap())
}

virtio::conformance!(conformance, vsock);

struct Rig {
    driver: Driver,
    path: PathBuf,
    /// Bytes that the guest took of the connection under test.
    taken: u32,
}

impl Rig {
    fn new(layout: Layout) -> Self {
        let path = new_path();
        let device = Vsock::open(CID, &path).unwrap();
        let mut rig = Self { driver: Driver::new(Box::new(device), layout), path, taken: 0 };
        rig.provide(64);
        rig
    }

    fn provide(&mut self, buffers: usize) {
        for _ in 0..buffers {
            self.driver.request(RECEIVE, &[], &[HEADER as u32, BUFFER - HEADER as u32]).unwrap();
        }
        self.driver.kick(RECEIVE);
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }

    /// The guest sends a packet.
    fn say(&mut self, ports: (u32, u32), op: u16, flags: u32, room: u32, bytes: &[u8]) {
        let header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: ports.0,
            dst_port: ports.1,
            len: bytes.len() as u32,
            kind: STREAM,
            op,
            flags,
            buf_alloc: room,
            fwd_cnt: self.taken,
        };
        self.say_raw(&header, bytes);
    }

    fn say_raw(&mut self, header: &Header, bytes: &[u8]) {
        while self.driver.completion(TRANSMIT).is_some() {}
        let (head, rest) = bytes.split_at(bytes.len() / 3);
        self.driver.request(TRANSMIT, &[&header.to_bytes(), head, rest], &[]).unwrap();
        self.driver.kick(TRANSMIT);
    }

    /// What the guest got since it last looked.
    fn heard(&mut self) -> Vec<(Header, Vec<u8>)> {
        settle(&mut self.driver);
        let mut packets = Vec::new();
        while let Some(completion) = self.driver.completion(RECEIVE) {
            let written = completion.written as usize;
            let header = Header::from_bytes(completion.data[..HEADER].try_into().unwrap());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            assert_eq!(header.len as usize, written - HEADER);
            self.taken = self.taken.wrapping_add(header.len);
            packets.push((header, completion.data[HEADER..written].to_vec()));
            self.provide(1);
        }
        packets
    }

    fn ops(&mut self) -> Vec<u16> {
        self.heard().iter().map(|(header, _)| header.op).collect()
    }

    /// All bytes that the guest got.
    fn bytes(&mut self) -> Vec<u8> {
        self.heard()
            .into_iter()
            .filter(|(header, _)| header.op == op::RW)
            .flat_map(|(_, bytes)| bytes)
            .collect()
    }

    /// The guest connects from port 1000 to a program that listens at `port`.
    fn connect(&mut self, port: u32, room: u32) -> UnixStream {
        self.taken = 0;
        let listener = self.listen(port);
        self.say((1000, port), op::REQUEST, 0, room, &[]);
        assert_eq!(self.ops(), [op::RESPONSE]);
        let stream = listener.accept().unwrap().0;
        std::fs::remove_file(format!("{}_{port}", self.path.display())).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    fn connections(&self) -> usize {
        let handler = self.driver.tasks[0].handler.inspect();
        handler["sockets"]["connections"].as_array().unwrap().len()
    }
}

/// Everything that is there.
fn read_all(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let mut buffer = [0; 65536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (all, true),
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (all, false),
            // A peer that closed without having read everything.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (all, true),
            Err(error) => panic!("{error}"),
        }
    }
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[test]
fn a_program_on_the_host_connects_to_the_guest() {
    for layout in Layout::all() {
        let mut rig = Rig::new(layout);
        let mut cid = [0; 8];
        rig.driver.read_config(0, &mut cid);
        assert_eq!(u64::from_le_bytes(cid), CID);

        let mut client = UnixStream::connect(&rig.path).unwrap();
        client.write_all(b"CONN").unwrap();
        assert_eq!(rig.ops(), NOTHING);
        client.write_all(b"ECT 1234\nearly").unwrap();
        let (request, _) = rig.heard()[0];
        assert_eq!((request.op, request.dst_port, request.src_port), (op::REQUEST, 1234, FIRST_PORT));
        client.set_nonblocking(true).unwrap();
        assert_eq!(read_all(&mut client), (vec![], false));

        rig.say((1234, FIRST_PORT), op::RESPONSE, 0, ROOM, &[]);
        assert_eq!(rig.bytes(), b"early");
        assert_eq!(read_all(&mut client), (format!("OK {FIRST_PORT}\n").into_bytes(), false));
        rig.say((1234, FIRST_PORT), op::RW, 0, ROOM, b"hello from the guest");
        rig.heard();
        assert_eq!(read_all(&mut client), (b"hello from the guest".to_vec(), false));

        // The next one gets another port; its guest refuses.
        let mut refused = UnixStream::connect(&rig.path).unwrap();
        refused.write_all(b"connect 99\n").unwrap();
        assert_eq!(rig.heard()[0].0.src_port, FIRST_PORT + 1);
        rig.say((99, FIRST_PORT + 1), op::RST, 0, 0, &[]);
        rig.heard();
        assert_eq!(read_all(&mut refused), (vec![], true));
        assert_eq!(rig.connections(), 1);
    }
}

#[test]
fn the_guest_connects_to_programs_on_the_host() {
    for layout in Layout::all() {
        let mut rig = Rig::new(layout);
        let mut stream = rig.connect(52, ROOM);
        let sent = pattern(0, 10_000);
        rig.say((1000, 52), op::RW, 0, ROOM, &sent);
        rig.heard();
        assert_eq!(read_all(&mut stream), (sent, false));
        let answer = pattern(5, 150_000);
        let mut got = Vec::new();
        for part in answer.chunks(50_000) {
            stream.write_all(part).unwrap();
            got.extend(rig.bytes());
        }
        assert_eq!(got, answer);

        // Half closed: the guest has sent all, and still gets the rest.
        rig.say((1000, 52), op::SHUTDOWN, shutdown::SEND, ROOM, &[]);
        assert_eq!(rig.ops(), NOTHING);
        assert_eq!(read_all(&mut stream), (vec![], true));
        stream.write_all(b"the rest").unwrap();
        assert_eq!(rig.bytes(), b"the rest");
        drop(stream);
        let (last, _) = rig.heard()[0];
        assert_eq!((last.op, last.flags), (op::SHUTDOWN, shutdown::BOTH));
        rig.say((1000, 52), op::RST, 0, 0, &[]);
        assert_eq!(rig.ops(), NOTHING);
        assert_eq!(rig.connections(), 0);
    }
}

#[test]
fn the_host_can_close_one_way_and_then_the_other() {
    let mut rig = Rig::new(Layout::SPLIT);
    let mut stream = rig.connect(1, ROOM);
    stream.write_all(b"last").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let packets = rig.heard();
    assert_eq!(packets[0].1, b"last");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (op::SHUTDOWN, shutdown::SEND));
    rig.say((1000, 1), op::RW, 0, ROOM, b"more");
    rig.heard();
    assert_eq!(read_all(&mut stream).0, b"more");
    drop(stream);
    let (header, _) = rig.heard()[0];
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::BOTH));
    // A guest that does not answer is told that it is over.
    rig.driver.clock.advance(Duration::from_secs(9));
    assert_eq!(rig.ops(), [op::RST]);
    assert_eq!(rig.connections(), 0);
}

#[test]
fn what_belongs_to_no_connection_is_refused_once() {
    let mut rig = Rig::new(Layout::PACKED);
    for op in [op::REQUEST, op::RESPONSE, op::RW, op::SHUTDOWN, op::CREDIT_REQUEST, 0, 99] {
        rig.say((7, 8), op, 0, 0, &[]);
        let (header, _) = rig.heard()[0];
        assert_eq!((header.op, header.src_port, header.dst_port), (op::RST, 8, 7), "operation {op}");
    }
    rig.say((7, 8), op::RST, 0, 0, &[]);
    let stream =
        Header { src_cid: CID, dst_cid: HOST_CID, kind: STREAM, op: op::REQUEST, ..Header::default() };
    rig.say_raw(&Header { src_cid: 4, ..stream }, &[]);
    rig.driver.request(TRANSMIT, &[&[1; HEADER - 1]], &[]).unwrap();
    rig.driver.kick(TRANSMIT);
    assert_eq!(rig.ops(), NOTHING, "there is nobody to answer");
    rig.say_raw(&Header { kind: 2, ..stream }, &[]);
    assert_eq!(rig.heard()[0].0.kind, 2, "an unknown kind of socket is refused as such");
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut rig = Rig::new(Layout::SPLIT);
    let mut stream = rig.connect(9, 10);
    stream.write_all(&pattern(0, 25)).unwrap();
    let packets = rig.heard();
    assert_eq!(packets[0].1, pattern(0, 10));
    assert_eq!(packets[1].0.op, op::CREDIT_REQUEST);
    assert_eq!(packets.len(), 2);
    rig.say((1000, 9), op::CREDIT_UPDATE, 0, 10, &[]);
    assert_eq!(rig.bytes(), pattern(10, 10));
    rig.say((1000, 9), op::CREDIT_UPDATE, 0, 10, &[]);
    assert_eq!(rig.bytes(), pattern(20, 5));
    rig.say((1000, 9), op::CREDIT_REQUEST, 0, 10, &[]);
    assert_eq!(rig.ops(), [op::CREDIT_UPDATE]);
}

#[test]
fn a_slow_program_is_waited_for_within_the_guests_credit() {
    for layout in [Layout::SPLIT, Layout::PACKED] {
        let mut rig = Rig::new(layout);
        let mut stream = rig.connect(9, ROOM);
        rig.say((1000, 9), op::CREDIT_REQUEST, 0, ROOM, &[]);
        let told = rig.heard()[0].0;
        let (window, mut taken) = (told.buf_alloc, told.fwd_cnt);
        // As Linux does, to the last byte of credit, until nothing moves any more.
        let (mut sent, mut got) = (0_usize, Vec::new());
        let mut stuck = false;
        while sent < 3_000_000 {
            let free = window - (sent as u32).wrapping_sub(taken);
            let len = free.min(50_001) as usize;
            if len > 0 {
                rig.say((1000, 9), op::RW, 0, ROOM, &pattern(sent, len));
                sent += len;
            }
            for (header, _) in rig.heard() {
                assert_eq!(header.op, op::CREDIT_UPDATE);
                taken = header.fwd_cnt;
            }
            if window == (sent as u32).wrapping_sub(taken) {
                stuck = true;
                let mut part = [0; 70_000];
                let count = stream.read(&mut part).unwrap();
                got.extend_from_slice(&part[..count]);
            }
        }
        assert!(stuck, "the program was never too slow");
        loop {
            let (bytes, _) = read_all(&mut stream);
            if bytes.is_empty() {
                break;
            }
            got.extend(bytes);
            rig.heard();
        }
        assert_eq!(got.len(), sent);
        assert!(got == pattern(0, sent), "all bytes in their order");

        rig.say((1000, 9), op::RW, 0, ROOM, &vec![0; window as usize + 1]);
        assert_eq!(rig.ops().last(), Some(&op::RST), "more than it has credit for");
        assert_eq!(rig.connections(), 0);
    }
}

#[test]
fn what_the_guest_sent_before_it_closed_arrives() {
    let mut rig = Rig::new(Layout::SPLIT);
    let mut stream = rig.connect(9, ROOM);
    let all = pattern(0, 250_000);
    rig.say((1000, 9), op::RW, 0, ROOM, &all);
    rig.say((1000, 9), op::SHUTDOWN, shutdown::BOTH, ROOM, &[]);
    assert_eq!(rig.ops().last(), Some(&op::RST), "the guest need not wait for the host");
    let mut got = Vec::new();
    loop {
        let (bytes, end) = read_all(&mut stream);
        got.extend(bytes);
        if end {
            break;
        }
        rig.heard();
    }
    assert!(got == all, "{} bytes", got.len());
    assert_eq!(rig.connections(), 0);
}

#[test]
fn a_program_that_takes_nothing_is_not_waited_for_for_ever() {
    let mut rig = Rig::new(Layout::SPLIT);
    let mut stream = rig.connect(9, ROOM);
    let unsent = |rig: &Rig| {
        let handler = rig.driver.tasks[0].handler.inspect();
        handler["sockets"]["connections"][0]["unsent"].as_u64().unwrap()
    };
    while unsent(&rig) < 200_000 {
        rig.say((1000, 9), op::RW, 0, ROOM, &pattern(0, 20_000));
        rig.heard();
    }
    rig.say((1000, 9), op::SHUTDOWN, shutdown::BOTH, ROOM, &[]);
    assert_eq!(rig.ops(), [op::RST]);
    assert!(stream.read(&mut [0; 70_000]).unwrap() > 0);
    rig.driver.clock.advance(Duration::from_secs(61));
    assert_eq!((rig.ops(), rig.connections()), (NOTHING.into(), 1), "it took something in time");
    rig.driver.clock.advance(Duration::from_secs(61));
    assert_eq!((rig.ops(), rig.connections()), (NOTHING.into(), 0));
}

#[test]
fn greetings_are_bounded_in_length_number_and_time() {
    let mut rig = Rig::new(Layout::SPLIT);
    for bad in [
        "CONNECT x\n",
        "CONNECT 1 2\n",
        "CONNECT 4294967296\n",
        "HELLO 1\n",
        "\n",
        "CONNECT 1                        ",
    ] {
        let mut client = UnixStream::connect(&rig.path).unwrap();
        client.write_all(bad.as_bytes()).unwrap();
        assert_eq!(rig.ops(), NOTHING, "{bad:?}");
        client.set_nonblocking(true).unwrap();
        assert_eq!(read_all(&mut client), (vec![], true), "{bad:?}");
    }
    let silent: Vec<_> = (0..70).map(|_| UnixStream::connect(&rig.path).unwrap()).collect();
    assert_eq!(rig.ops(), NOTHING);
    assert_eq!(rig.connections(), 64);
    let mut late = UnixStream::connect(&rig.path).unwrap();
    late.write_all(b"CONNECT 5\n").unwrap();
    rig.driver.clock.advance(Duration::from_secs(11));
    assert_eq!(rig.ops(), [op::REQUEST], "the silent ones have made room");
    assert_eq!(rig.connections(), 7);
    rig.driver.clock.advance(Duration::from_secs(11));
    assert_eq!(rig.ops(), [op::RST], "nor is the guest waited for for ever");
    assert_eq!(rig.connections(), 0);
    drop(silent);
}

#[test]
fn refusals_that_the_guest_has_no_buffers_for_stop_its_packets() {
    let path = new_path();
    let device = Vsock::open(CID, &path).unwrap();
    let mut rig = Rig { driver: Driver::new(Box::new(device), Layout::SPLIT), path, taken: 0 };
    let mut taken = 0;
    for port in 0..300 {
        rig.say((port, 1), op::RW, 0, 0, &[]);
        settle(&mut rig.driver);
    }
    while rig.driver.completion(TRANSMIT).is_some() {
        taken += 1;
    }
    assert!(taken <= 1, "the last one is not taken");
    let mut refused = 0;
    while refused < 300 {
        rig.provide(50);
        let heard = rig.ops().len();
        assert!(heard > 0, "{refused} of 300");
        refused += heard;
    }
}

#[test]
fn connections_outlast_a_pause_but_not_a_restore() {
    let mut rig = Rig::new(Layout::PACKED);
    let mut stream = rig.connect(9, ROOM);
    stream.write_all(b"before ").unwrap();
    rig.driver.stop();
    stream.write_all(b"after").unwrap();
    rig.driver.start();
    assert_eq!(rig.bytes(), b"before after");

    // The memory of the guest is as it was; the device is another.
    rig.driver.request(EVENTS, &[], &[8]).unwrap();
    rig.driver.stop();
    let state = rig.driver.function.save().unwrap();
    rig.driver.function.restore(&state).unwrap();
    rig.driver.start();
    assert_eq!(rig.connections(), 0);
    assert_eq!(rig.ops(), NOTHING);
    let event = rig.driver.completion(EVENTS).unwrap();
    assert_eq!((event.written, &event.data[..4]), (4, &[0; 4][..]));
    assert_eq!(read_all(&mut stream).0, b"");
    rig.say((1000, 9), op::RW, 0, ROOM, b"x");
    assert_eq!(rig.ops(), [op::RST]);
    rig.connect(10, ROOM);
}

#[test]
fn a_dead_socket_is_taken_over_and_a_living_one_is_not() {
    let path = new_path();
    drop(UnixListener::bind(&path).unwrap());
    let first = Vsock::open(CID, &path).unwrap();
    assert!(Vsock::open(CID, &path).is_err());
    drop(first);
    assert!(!path.exists());
    assert!(Vsock::open(CID, Path::new(&"x".repeat(LONGEST_PATH + 1))).is_err());
}
