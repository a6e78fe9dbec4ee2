//! `virtio_vsock`: the socket device, with programs on the host that connect, listen, dawdle and go.

use crate::input::Input;
use crate::program::{self, QUEUE_STEPS, Subject};
use devices::virtio::vsock::Vsock;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use virtio::testing::{Completion, Driver};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENTS: u16 = 2;
const CID: u64 = 3;
const HEADER: u32 = 44;
/// The first port that programs on the host get.
const FIRST_PORT: u32 = 1 << 30;

/// All queues of the device.
pub fn virtio_vsock(data: &[u8]) {
    let input = &mut Input::new(data);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("vivarium-fuzz-vsock-{}-{number}", std::process::id()));
    let device = Vsock::open(CID, &path).expect("the host has sockets");
    let mut host = Host { path, listener: None, peers: Vec::new() };
    program::run(Driver::attach(Box::new(device)), &mut host, QUEUE_STEPS, None, input);
}

struct Host {
    path: PathBuf,
    /// A program that listens at port 1.
    listener: Option<UnixListener>,
    peers: Vec<UnixStream>,
}

impl Host {
    fn listened(&self) -> PathBuf {
        PathBuf::from(format!("{}_1", self.path.display()))
    }

    fn stop_listening(&mut self) {
        if self.listener.take().is_some() {
            let _ = std::fs::remove_file(self.listened());
        }
    }

    fn keep(&mut self, peer: UnixStream) {
        peer.set_nonblocking(true).expect("a socket can be non-blocking");
        self.peers.push(peer);
        if self.peers.len() > 4 {
            self.peers.remove(0);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop_listening();
    }
}

fn packet(ports: (u32, u32), op: u16, flags: u32, room: u32, forwarded: u32, len: u32) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER as usize);
    header.extend(CID.to_le_bytes());
    header.extend(2_u64.to_le_bytes());
    header.extend(ports.0.to_le_bytes());
    header.extend(ports.1.to_le_bytes());
    header.extend(len.to_le_bytes());
    header.extend(1_u16.to_le_bytes());
    header.extend(op.to_le_bytes());
    for field in [flags, room, forwarded] {
        header.extend(field.to_le_bytes());
    }
    header
}

impl Subject for Host {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        match input.below(8) {
            0 | 1 => {
                driver.request(RECEIVE, &[], &[HEADER + 1 + u32::from(input.u8()) * 16]);
            }
            2 => {
                driver.request(EVENTS, &[], &[8]);
            }
            _ => {
                let host = input.choose(&[1, 1, 2, FIRST_PORT, FIRST_PORT + 1, FIRST_PORT + 2]);
                let ports = (u32::from(input.below(4)), host);
                let op = input.choose(&[1, 2, 3, 4, 5, 5, 5, 6, 7, 0, 8]);
                let flags = input.below(4).into();
                let room = input.choose(&[0, 1, 64, 4096, 1 << 18, u32::MAX]);
                let forwarded = if input.flag() { input.u32() } else { 0 };
                let len = usize::from(input.u8()) * input.choose(&[0_usize, 1, 16, 1024]);
                let mut header = packet(ports, op, flags, room, forwarded, len as u32);
                if input.below(16) == 15 {
                    let at = usize::from(input.below(HEADER as u16));
                    header[at] = input.u8();
                }
                driver.request(TRANSMIT, &[&header, &vec![b'g'; len]], &[]);
            }
        }
        true
    }

    fn host(&mut self, _driver: &mut Driver, input: &mut Input<'_>) {
        match input.below(8) {
            0 => {
                if let Ok(mut peer) = UnixStream::connect(&self.path) {
                    let _ = peer.write_all(format!("CONNECT {}\n", input.below(4)).as_bytes());
                    self.keep(peer);
                }
            }
            1 => {
                if let Ok(mut peer) = UnixStream::connect(&self.path) {
                    let len = usize::from(input.below(40));
                    let _ = peer.write_all(input.bytes(len));
                    self.keep(peer);
                }
            }
            2 => match self.listener {
                Some(_) => self.stop_listening(),
                None => {
                    let listener = UnixListener::bind(self.listened()).expect("the host has sockets");
                    listener.set_nonblocking(true).expect("a socket can be non-blocking");
                    self.listener = Some(listener);
                }
            },
            3 => {
                if let Some(Ok((peer, _))) = self.listener.as_ref().map(UnixListener::accept) {
                    self.keep(peer);
                }
            }
            4 => {
                let length = usize::from(input.u8()) * usize::from(input.u8() & 63);
                if let Some(peer) = self.peers.last_mut() {
                    // As much as the socket takes.
                    let _ = peer.write(&vec![b'h'; length]);
                }
            }
            5 => {
                let mut buffer = [0; 4096];
                if let Some(peer) = self.peers.last_mut() {
                    let _ = peer.read(&mut buffer);
                }
            }
            6 => {
                let how = input.choose(&[std::net::Shutdown::Read, std::net::Shutdown::Write]);
                if let Some(peer) = self.peers.last() {
                    let _ = peer.shutdown(how);
                }
            }
            _ => drop(self.peers.pop()),
        }
    }

    fn check(&mut self, queue: u16, completion: &Completion) {
        let Some(written) = completion.data.get(..completion.written as usize) else { return };
        if queue == RECEIVE {
            assert!(written.len() >= HEADER as usize);
            let (header, bytes) = written.split_at(HEADER as usize);
            assert_eq!(header[24..28], (bytes.len() as u32).to_le_bytes());
            assert!(matches!(header[30], 1..=7), "operation {}", header[30]);
            assert!(header[30] == 5 || bytes.is_empty());
        }
    }

    fn answers(&self, queue: u16) -> bool {
        // A program is too short to make more refusals than the device keeps.
        queue == TRANSMIT
    }

    fn calm(&mut self, _driver: &mut Driver) {
        self.peers.clear();
        self.stop_listening();
    }

    fn works(&mut self, driver: &mut Driver) {
        driver.call(TRANSMIT, &[&packet((77, 1), 1, 0, 0, 0, 0)], &[]);
        let answer = driver.call(RECEIVE, &[], &[256]);
        assert_eq!((answer.written, answer.data[30]), (HEADER, 3), "nobody listens");
    }
}
