use super::*;
use crate::ivshmem::Ivshmem;
use machine::inspect::Inspect;
use machine::interrupt::recording::Sources;
use pci::function::Function;
use std::io::Write;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SELF: i64 = 3;
const PEER: i64 = 7;

fn send(server: &UnixStream, number: i64, file: Option<RawFd>) {
    let bytes = number.to_le_bytes();
    match file {
        Some(file) => server.send_with_fd(&bytes[..], file).unwrap(),
        None => (&*server).write(&bytes).unwrap(),
    };
}

fn memory() -> File {
    let path = std::env::temp_dir().join(format!("vivarium-ivshmem-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let _ = std::fs::remove_file(path);
    file
}

struct Bench {
    server: UnixStream,
    device: Ivshmem,
    link: Link,
    sources: Arc<Sources>,
}

fn bench(vectors: u16) -> Bench {
    let (server, client) = UnixStream::pair().unwrap();
    send(&server, VERSION, None);
    send(&server, SELF, None);
    send(&server, MEMORY, Some(memory().as_raw_fd()));
    let joined = join_on(client).unwrap();
    let (peers, sources) = (Arc::new(Peers::default()), Arc::new(Sources::default()));
    let (device, handle) =
        Ivshmem::with_doorbell(4096, joined.number, Arc::clone(&peers), vectors, sources.clone()).unwrap();
    Bench { server, device, link: Link::new(joined, peers, handle).unwrap(), sources }
}

impl Bench {
    /// The server gives peer `number` one more vector.
    fn vector(&self, number: i64) -> EventFd {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        send(&self.server, number, Some(event.as_raw_fd()));
        event
    }

    fn ring(&mut self, peer: i64, vector: u16) {
        let value = (peer as u32) << 16 | u32::from(vector);
        self.device.bar_write(0, 12, &value.to_le_bytes());
    }

    fn enable_vectors(&mut self) {
        for vector in 0..2 {
            self.device.bar_write(1, vector * 16, &0xfee0_0000_u64.to_le_bytes());
            self.device.bar_write(1, vector * 16 + 8, &vector.to_le_bytes());
        }
        let mut at = [0];
        self.device.config_read(0x34, &mut at);
        self.device.config_write(u16::from(at[0]) + 2, &0x8000_u16.to_le_bytes());
    }
}

#[test]
fn peers_interrupt_each_other() {
    let mut bench = bench(2);
    let mut number = [0; 4];
    bench.device.bar_read(0, 8, &mut number);
    assert_eq!(i64::from(u32::from_le_bytes(number)), SELF);
    bench.enable_vectors();
    let peer = bench.vector(PEER);
    let own = [bench.vector(SELF), bench.vector(SELF), bench.vector(SELF)];
    bench.link.run(0);
    bench.ring(PEER, 0);
    assert_eq!(peer.read().unwrap(), 1);
    own[1].write(5).unwrap();
    bench.link.run(0);
    let fired = |vector: usize| bench.sources.get(vector).map_or(0, |source| source.fired());
    assert_eq!((fired(0), fired(1)), (0, 1));
    bench.ring(SELF, 0);
    bench.link.run(0);
    let fired = |vector: usize| bench.sources.get(vector).map_or(0, |source| source.fired());
    assert_eq!((fired(0), fired(1)), (1, 1), "a machine can interrupt itself");
    let link = bench.link.inspect();
    assert_eq!(
        (&link["interrupts"], &link["refused"]),
        (&2.into(), &1.into()),
        "it has two vectors, not three"
    );
}

#[test]
fn who_is_not_there_is_not_interrupted() {
    let mut bench = bench(1);
    let peer = bench.vector(PEER);
    bench.link.run(0);
    for (number, vector) in [(PEER, 1), (PEER, u16::MAX), (8, 0), (0xffff, 0)] {
        bench.ring(number, vector);
    }
    send(&bench.server, PEER, None);
    bench.link.run(0);
    bench.ring(PEER, 0);
    assert!(peer.read().is_err());
    let tree = bench.device.inspect();
    assert_eq!((&tree["peers"]["missed"], &tree["peers"]["rung"]), (&5.into(), &0.into()));
}

#[test]
fn an_event_that_can_take_no_more_does_not_keep_the_guest() {
    let mut bench = bench(1);
    let event = EventFd::new(0).unwrap();
    event.write(u64::MAX - 1).unwrap();
    send(&bench.server, PEER, Some(event.as_raw_fd()));
    bench.link.run(0);
    bench.ring(PEER, 0);
    assert_eq!(bench.device.inspect()["peers"]["full"], 1);
}

#[test]
fn nonsense_is_counted_and_a_server_that_is_gone_is_not_heard() {
    let mut bench = bench(1);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    send(&bench.server, -5, None);
    send(&bench.server, i64::MAX, Some(event.as_raw_fd()));
    // In two parts.
    let bytes = PEER.to_le_bytes();
    bench.server.send_with_fd(&bytes[..3], event.as_raw_fd()).unwrap();
    bench.link.run(0);
    (&bench.server).write_all(&bytes[3..]).unwrap();
    bench.link.run(0);
    bench.ring(PEER, 0);
    assert_eq!(event.read().unwrap(), 1);
    drop(bench.server);
    bench.link.run(0);
    let tree = bench.link.inspect();
    assert_eq!((&tree["connected"], &tree["refused"]), (&false.into(), &2.into()));
    let mut ready = [EpollEvent::default()];
    assert_eq!(bench.link.epoll.wait(0, &mut ready).unwrap(), 0, "its end wakes nobody");
}

#[test]
fn what_is_no_server_is_refused() {
    let memory = memory();
    let memory = Some(memory.as_raw_fd());
    for messages in [
        &[][..],
        &[(1, None)],
        &[(0, memory)],
        &[(0, None), (-1, None)],
        &[(0, None), (0x1_0000, None)],
        &[(0, None), (3, memory)],
        &[(0, None), (3, None), (-1, None)],
        &[(0, None), (3, None), (4, memory)],
        &[(0, None), (3, None)],
    ] {
        let (server, client) = UnixStream::pair().unwrap();
        messages.iter().for_each(|(number, file)| send(&server, *number, *file));
        drop(server);
        assert!(join_on(client).is_err(), "{messages:?}");
    }
}
