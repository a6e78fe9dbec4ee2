//! The server by which machines that share memory find each other (QEMU, `docs/specs/ivshmem-spec.rst`, "Client-Server
//! protocol"), seen from a client.
//!
//! The server sends messages of one 64-bit number, little-endian, some with a file descriptor, and hears none:
//!
//! | number | descriptor | |
//! |---|---|---|
//! | 0 | | first: the protocol's version |
//! | 0 to 65535 | | second: this client's number |
//! | -1 | the memory | third |
//! | a peer's or this client's | an event | its next vector |
//! | a peer's | | it is gone |
//!
//! All after the third come at any time: [`Link`] takes them, on a worker.

use super::peers::Peers;
use pci::msix::MsixHandle;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use virtio::device::{Progress, QueueHandler, QueueTask};
use virtio::queue::Queue;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const VERSION: i64 = 0;
const MEMORY: i64 = -1;
/// What epoll tells the socket by; vectors are told by their numbers.
const SOCKET: u64 = u64::MAX;
/// Messages taken, and events looked at, before others have their turn.
const BUDGET: usize = 64;

/// Why a server cannot be joined.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The host's answer.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The answer.
        source: io::Error,
    },
    /// The server says something else than it should.
    #[error("the server does not speak ivshmem's protocol: {0}")]
    Protocol(&'static str),
}

/// A server that was joined.
#[derive(Debug)]
pub struct Joined {
    /// The number that this machine has among its peers.
    pub number: u16,
    /// The shared memory.
    pub memory: File,
    /// What comes from the server from now on.
    messages: Messages,
}

/// Connects to the server at `path`, and takes what it sends at once, waiting for `patience` at most for each.
///
/// # Errors
/// When there is no server, or it is not one of this kind.
pub fn join(path: &Path, patience: Duration) -> Result<Joined, JoinError> {
    let host = |what| move |source| JoinError::Host { what, source };
    let socket = UnixStream::connect(path).map_err(host("connecting to the server"))?;
    socket.set_read_timeout(Some(patience)).map_err(host("setting a time limit"))?;
    join_on(socket)
}

/// As [`join`], over a connection to a server.
///
/// # Errors
/// When the server is not one of this kind.
pub fn join_on(socket: UnixStream) -> Result<Joined, JoinError> {
    let mut messages = Messages { socket, bytes: [0; 8], length: 0, file: None };
    let mut next = |what: &'static str| match messages.next() {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(JoinError::Host { what, source: io::ErrorKind::TimedOut.into() }),
        Err(source) => Err(JoinError::Host { what, source }),
    };
    if !matches!(next("the server's version")?, Message { number: VERSION, file: None }) {
        return Err(JoinError::Protocol("its version is not 0"));
    }
    let Message { number, file: None } = next("this machine's number")? else {
        return Err(JoinError::Protocol("a descriptor came where this machine's number was expected"));
    };
    let number = u16::try_from(number)
        .map_err(|_| JoinError::Protocol("this machine's number is not from 0 to 65535"))?;
    let Message { number: MEMORY, file: Some(memory) } = next("the memory")? else {
        return Err(JoinError::Protocol("the memory was expected as its third message"));
    };
    let unblocked = messages.socket.set_nonblocking(true);
    unblocked.map_err(|source| JoinError::Host { what: "setting up the connection", source })?;
    Ok(Joined { number, memory, messages })
}

/// A message.
#[derive(Debug)]
struct Message {
    number: i64,
    file: Option<File>,
}

/// The stream of messages.
#[derive(Debug)]
struct Messages {
    socket: UnixStream,
    /// The start of a message that is not all there yet.
    bytes: [u8; 8],
    length: usize,
    file: Option<File>,
}

impl Messages {
    /// The next message; `None`: it is not there yet.
    ///
    /// # Errors
    /// When the connection failed or ended.
    fn next(&mut self) -> io::Result<Option<Message>> {
        while let Some(rest) = self.bytes.get_mut(self.length..).filter(|rest| !rest.is_empty()) {
            match self.socket.recv_with_fd(rest) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((count, file)) => {
                    self.length = self.length.saturating_add(count);
                    self.file = file.or(self.file.take());
                }
                Err(error) => match io::Error::from(error) {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    error => return Err(error),
                },
            }
        }
        self.length = 0;
        Ok(Some(Message { number: i64::from_le_bytes(self.bytes), file: self.file.take() }))
    }
}

/// Takes what comes from a server, and interrupts the guest when a peer rings. To be run by a worker.
pub struct Link {
    number: u16,
    messages: Messages,
    peers: Arc<Peers>,
    vectors: MsixHandle,
    /// The events of this machine's vectors.
    events: Vec<File>,
    /// The socket and those events.
    epoll: Epoll,
    connected: bool,
    interrupts: u64,
    refused: u64,
}

impl Link {
    /// The link of a machine whose vectors are `vectors`, that keeps `peers`.
    ///
    /// # Errors
    /// When the host is out of descriptors.
    pub fn new(joined: Joined, peers: Arc<Peers>, vectors: MsixHandle) -> io::Result<Self> {
        let Joined { number, messages, .. } = joined;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, SOCKET);
        epoll.ctl(ControlOperation::Add, messages.socket.as_raw_fd(), event)?;
        let (events, connected) = (Vec::new(), true);
        Ok(Self { number, messages, peers, vectors, events, epoll, connected, interrupts: 0, refused: 0 })
    }

    /// As a worker's task.
    pub fn into_task(self) -> QueueTask {
        QueueTask { name: "link".to_owned(), queues: Vec::new(), handler: Box::new(self) }
    }

    /// Takes what the server sent.
    fn hear(&mut self) {
        for _ in 0..BUDGET {
            match self.messages.next() {
                Ok(Some(message)) => {
                    if self.take(message).is_none() {
                        self.refused = self.refused.saturating_add(1);
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "the server of shared memory is gone: no peer comes or goes any more");
                    let socket = self.messages.socket.as_raw_fd();
                    // It is not watched any more either way: an end is readable for ever.
                    let _ = self.epoll.ctl(ControlOperation::Delete, socket, EpollEvent::default());
                    self.connected = false;
                    return;
                }
            }
        }
    }

    /// `None`: the message makes no sense.
    fn take(&mut self, Message { number, file }: Message) -> Option<()> {
        let peer = u16::try_from(number).ok()?;
        let Some(event) = file else {
            self.peers.remove(peer);
            return Some(());
        };
        unblock(&event).ok()?;
        if peer == self.number {
            // Those beyond what the device has nobody can hear.
            let vector =
                u16::try_from(self.events.len()).ok().filter(|vector| *vector < self.vectors.count())?;
            let own = event.try_clone().ok()?;
            let watch = EpollEvent::new(EventSet::IN, vector.into());
            self.epoll.ctl(ControlOperation::Add, own.as_raw_fd(), watch).ok()?;
            self.events.push(own);
        }
        self.peers.add(peer, event).then_some(())
    }

    /// A peer rang.
    fn interrupt(&mut self, vector: u64) {
        let event = usize::try_from(vector).ok().and_then(|vector| self.events.get(vector));
        if event.is_some_and(|mut event| event.read(&mut [0; 8]).is_ok()) {
            self.interrupts = self.interrupts.saturating_add(1);
            self.vectors.signal(vector as u16);
        }
    }
}

impl QueueHandler for Link {
    fn run(&mut self, _now: u64) -> Progress {
        let mut ready = [EpollEvent::default(); BUDGET];
        // What is not taken now is told again.
        let count = self.epoll.wait(0, &mut ready).unwrap_or(0);
        for event in ready.iter().take(count) {
            match event.data() {
                SOCKET => self.hear(),
                vector => self.interrupt(vector),
            }
        }
        Progress::Idle
    }

    fn arm(&mut self) -> bool {
        false
    }

    fn has_work(&self) -> bool {
        false
    }

    fn event_sources(&self) -> Vec<RawFd> {
        vec![self.epoll.as_raw_fd()]
    }

    fn queues(&self) -> Vec<&Queue> {
        Vec::new()
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        Vec::new()
    }
}

machine::inspect!(Link { connected, interrupts, refused });

/// Makes reading and writing an event not wait.
fn unblock(event: &File) -> io::Result<()> {
    // SAFETY: reads the flags of a descriptor.
    let flags = unsafe { libc::fcntl(event.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: sets flags of a descriptor.
    if flags < 0 || unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
