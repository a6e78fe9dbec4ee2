//! `virtio_console`: the console device, with one port or several, on sockets or on nothing.

use crate::input::Input;
use crate::program::{self, QUEUE_STEPS, Subject};
use devices::host_console::{HostConsole, Mode};
use devices::virtio::console::{Console, Port};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use virtio::testing::{Completion, Driver};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;

/// All queues of the device.
pub fn virtio_console(data: &[u8]) {
    let input = &mut Input::new(data);
    let choice = input.u8();
    let ports = if choice & 1 == 0 { 1 } else { 3 };
    // Only the last port has a peer: a socket costs more than all the rest.
    let socket = (choice & 6 == 6).then(|| {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        std::env::temp_dir().join(format!("vivarium-fuzz-{}-{number}", std::process::id()))
    });
    let port = |number: usize| {
        let mode = match &socket {
            Some(path) if number + 1 == ports => Mode::Socket(path.clone()),
            _ => Mode::Null,
        };
        let host = HostConsole::open(&mode).expect("the host has descriptors");
        Port { name: format!("port{number}"), console: number == 1, host }
    };
    let console = Console::new((0..ports).map(port).collect()).expect("there are few ports");
    let mut terminal = Terminal { ports, socket, peer: None };
    program::run(Driver::attach(Box::new(console)), &mut terminal, QUEUE_STEPS, None, input);
}

struct Terminal {
    ports: usize,
    socket: Option<PathBuf>,
    peer: Option<UnixStream>,
}

impl Terminal {
    fn drain(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(peer) = &mut self.peer
            && peer.read(&mut buffer).is_ok_and(|count| count > 0)
        {}
    }
}

impl Subject for Terminal {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        let queues = if self.ports == 1 { 2 } else { 2 * (self.ports as u16 + 1) };
        let queue = input.below(queues);
        if queue == CONTROL_TRANSMIT {
            let mut message = [0; 8];
            message[0] = input.below(4) as u8;
            message[4] = input.below(9) as u8;
            message[6] = input.below(3) as u8;
            driver.request(queue, &[&message], &[]);
        } else if queue % 2 == TRANSMIT {
            let length = 1 + usize::from(if input.below(8) == 0 { input.u16() } else { input.u8().into() });
            driver.request(queue, &[&vec![b'x'; length]], &[]);
        } else {
            driver.request(queue, &[], &[1 + u32::from(input.u8())]);
        }
        true
    }

    fn host(&mut self, _driver: &mut Driver, input: &mut Input<'_>) {
        let Some(path) = &self.socket else { return };
        match input.below(4) {
            0 => self.peer = None,
            1 => {
                self.peer = UnixStream::connect(path).ok();
                if let Some(peer) = &self.peer {
                    peer.set_nonblocking(true).expect("a socket can be non-blocking");
                }
            }
            2 => {
                let length = usize::from(input.u8()) * usize::from(input.u8() & 31);
                if let Some(peer) = &mut self.peer {
                    // As much as the socket takes, if anybody is there.
                    let _ = peer.write(&vec![b'i'; length]);
                }
            }
            _ => self.drain(),
        }
    }

    fn check(&mut self, queue: u16, completion: &Completion) {
        if queue == CONTROL_RECEIVE && self.ports > 1 {
            let event = completion.data.get(4).copied();
            assert!(completion.written < 5 || matches!(event, Some(1 | 4..=7)), "event {event:?}");
        } else if queue % 2 == RECEIVE {
            let written = completion.data.get(..completion.written as usize);
            assert!(written.is_some_and(|data| data.iter().all(|byte| *byte == b'i')));
        }
    }

    fn answers(&self, queue: u16) -> bool {
        // The driver may have left control messages without buffers, so its own need not be heard.
        queue % 2 == TRANSMIT && queue != CONTROL_TRANSMIT
    }

    fn calm(&mut self, _driver: &mut Driver) {
        // A console that is dropped gives a peer who reads slowly time.
        self.peer = None;
    }

    fn works(&mut self, driver: &mut Driver) {
        driver.call(TRANSMIT, &[b"hello"], &[]);
        if self.ports > 1 {
            driver.call(CONTROL_TRANSMIT, &[&[0, 0, 0, 0, 0, 0, 1, 0]], &[]);
            let answer = driver.call(CONTROL_RECEIVE, &[], &[64]);
            assert_eq!(answer.data[..8], [0, 0, 0, 0, 1, 0, 0, 0], "port 0 is announced");
        }
    }
}
