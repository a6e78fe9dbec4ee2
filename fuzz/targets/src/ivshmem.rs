//! `ivshmem`: configuration space and registers of the function that shares memory, and what comes from its server.

use crate::input::Input;
use devices::ivshmem::server::{Link, join_on};
use devices::ivshmem::{Ivshmem, Peers};
use machine::inspect::Inspect;
use machine::interrupt::recording::Sources;
use machine::state::Saved;
use pci::function::Function;
use std::hint::black_box;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use virtio::device::QueueHandler;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// This machine's number among its peers.
const NUMBER: u16 = 2;

/// Accesses, saved states, and messages from a server.
pub fn ivshmem(data: &[u8]) {
    let input = &mut Input::new(data);
    let size = 1 << (12 + input.below(40));
    let mut server = input.flag().then(|| Server::new(size, 1 + input.below(64)));
    let mut plain = Ivshmem::new(size).expect("its BARs fit");
    while !input.is_empty() {
        let length = 1_usize << input.below(3);
        let offset = input.u16() & !(length as u16 - 1);
        let bar = input.choose(&[0, 0, 1, 2]);
        let device = server.as_mut().map_or(&mut plain, |server| &mut server.device);
        match input.below(8) {
            0 => {
                black_box(device.config_write(offset & 0xfff, input.bytes(length)));
            }
            1 => device.config_read(offset & 0xfff, &mut [0xff; 4][..length]),
            2 => device.bar_read(bar, (offset & 0xfff).into(), &mut [0xff; 4][..length]),
            3 => {
                black_box(device.bar_write(bar, (offset & 0xfff).into(), input.bytes(length)));
            }
            4 => {
                let state = device.save().expect("the state can be saved");
                device.reset();
                device.restore(&state).expect("a device takes its own state");
                assert_eq!(device.save().expect("the state can be saved"), state);
            }
            5 => {
                black_box(device.inspect());
                if input.flag() {
                    device.reset();
                }
            }
            6 => {
                let (peer, vector) = (input.u16() & 3, input.u16() & 7);
                let value = u32::from(peer) << 16 | u32::from(vector);
                black_box(device.bar_write(0, 12, &value.to_le_bytes()));
            }
            _ => {
                if let Some(server) = &mut server {
                    server.step(input);
                }
            }
        }
    }
    let device = server.as_mut().map_or(&mut plain, |server| &mut server.device);
    device.reset();
    let mut mask = [0xff; 4];
    device.bar_read(0, 0, &mut mask);
    assert_eq!(mask, [0; 4]);
}

/// A server, and a machine that has joined it.
struct Server {
    /// `None` once the server has ended.
    socket: Option<UnixStream>,
    event: EventFd,
    device: Ivshmem,
    link: Link,
}

impl Server {
    fn new(size: u64, vectors: u16) -> Self {
        let (socket, client) = UnixStream::pair().expect("the host has sockets");
        let event = EventFd::new(EFD_NONBLOCK).expect("the host has descriptors");
        for number in [0, i64::from(NUMBER)] {
            (&socket).write_all(&number.to_le_bytes()).expect("there is room");
        }
        let memory = (-1_i64).to_le_bytes();
        socket.send_with_fd(&memory[..], event.as_raw_fd()).expect("there is room");
        let joined = join_on(client).expect("the server keeps to the protocol");
        let peers = Arc::<Peers>::default();
        let (device, handle) =
            Ivshmem::with_doorbell(size, NUMBER, Arc::clone(&peers), vectors, Arc::<Sources>::default())
                .expect("its BARs fit");
        let link = Link::new(joined, peers, handle).expect("the host has descriptors");
        Self { socket: Some(socket), event, device, link }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let number = if input.flag() { i64::from(input.u16() & 3) } else { input.u64().cast_signed() };
        let bytes = number.to_le_bytes();
        let part = &bytes[..if input.below(8) == 0 { 1 + usize::from(input.below(8)) } else { 8 }];
        match (input.below(16), &mut self.socket) {
            (0, socket) => *socket = None,
            (1..=3, _) => self.event.write(1).expect("its counter is far from the limit"),
            (4..=9, Some(socket)) => {
                socket.send_with_fd(part, self.event.as_raw_fd()).expect("there is room");
            }
            (10..=11, Some(socket)) => (&*socket).write_all(part).expect("there is room"),
            _ => {}
        }
        black_box(self.link.run(0));
        black_box(self.link.inspect());
    }
}
