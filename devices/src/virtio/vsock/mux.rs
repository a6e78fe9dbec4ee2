//! All connections of a device, between the guest's packets and the host's sockets.
//!
//! Nothing here knows of queues: packets come in with [`Mux::hear`], and what the guest is to get is asked for with
//! [`Mux::next`]. Sockets are watched by one epoll descriptor, edge by edge: a connection that the guest has no room for
//! costs nothing while it waits. Everything is bounded: connections, programs that have not said what they want, what is
//! kept for a host that reads slowly, and refusals that wait for the guest's buffers.

mod deadlines;
mod greeting;

pub(super) use greeting::FIRST_PORT;

use super::connection::{Connection, Ports, State};
use super::packet::{HOST_CID, Header, STREAM, op};
use super::socket;
use deadlines::{CLOSE, LINGER};
use machine::inspect::Inspect;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use virtio::chain::{Chain, Segment};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

/// The most connections.
pub const MAX_CONNECTIONS: usize = 1024;
/// So many connections may have `LARGE_WINDOW` bytes under way to the host, further ones `SMALL_WINDOW`.
const LARGE_WINDOWS: usize = 64;
const LARGE_WINDOW: u32 = 256 << 10;
const SMALL_WINDOW: u32 = 32 << 10;
/// Refusals that may wait for the guest's buffers before its packets do.
const MAX_REPLIES: usize = 256;
const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
/// Events taken at once.
const EVENTS: usize = 32;

/// What the guest is to get next.
pub(super) enum Next {
    /// A packet without bytes.
    Packet(Header),
    /// What can be read of the connection with this number; then [`Mux::was_read`].
    Bytes(usize),
}

/// How a read of a connection ended.
pub(super) enum Outcome {
    /// So many bytes went to the guest; whether that is all that was asked for.
    Read { filled: bool },
    /// There is nothing now.
    Empty,
    /// There is nothing more.
    Ended,
    /// The socket failed.
    Failed,
}

#[derive(Debug, Default)]
struct Counters {
    opened_by_guest: u64,
    opened_by_host: u64,
    refused: u64,
    reset: u64,
    unknown_packets: u64,
}

pub(super) struct Mux {
    cid: u64,
    path: PathBuf,
    listener: UnixListener,
    epoll: Epoll,
    timer: TimerFd,
    slots: Vec<Option<Box<Connection>>>,
    free: BinaryHeap<Reverse<usize>>,
    by_ports: HashMap<Ports, usize>,
    /// Connections with something for the guest, each once.
    ready: VecDeque<usize>,
    replies: VecDeque<Header>,
    greeting: usize,
    /// Programs may be waiting at the listener.
    accepting: bool,
    serial: u32,
    next_port: u32,
    now: u64,
    next_deadline: u64,
    /// The guest is to be told that all its connections are gone (5.10.6.7).
    pub(super) transport_reset: bool,
    scratch: Vec<Segment>,
    counters: Counters,
}

impl Mux {
    /// Listens at `path` for programs that want to connect to the guest.
    pub(super) fn new(cid: u64, path: &Path) -> io::Result<Self> {
        let listener = socket::listen(path)?;
        let epoll = Epoll::new()?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), EpollEvent::new(edge, LISTENER))?;
        epoll.ctl(ControlOperation::Add, timer.as_raw_fd(), EpollEvent::new(edge, TIMER))?;
        Ok(Self {
            cid,
            path: path.to_owned(),
            listener,
            epoll,
            timer,
            slots: Vec::new(),
            free: BinaryHeap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            greeting: 0,
            accepting: true,
            serial: 0,
            next_port: FIRST_PORT,
            now: 0,
            next_deadline: u64::MAX,
            transport_reset: false,
            scratch: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// Readable when there is something to do.
    pub(super) fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Ends all connections. New ones get ports from `next_port` on.
    pub(super) fn clear(&mut self, next_port: u32) {
        self.slots.clear();
        self.free.clear();
        self.by_ports.clear();
        self.ready.clear();
        self.replies.clear();
        self.greeting = 0;
        self.next_deadline = u64::MAX;
        self.transport_reset = false;
        self.accepting = true;
        self.next_port = next_port.max(FIRST_PORT);
    }

    /// It is `now`, monotonic, in nanoseconds: takes what happened on the host. `true`: there may be more.
    pub(super) fn look(&mut self, now: u64) -> bool {
        self.now = now;
        if now >= self.next_deadline {
            self.expire();
        }
        let mut events = [EpollEvent::default(); EVENTS];
        // The only error that can occur is an interruption; what was ready still is.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            match event.data() {
                LISTENER => self.accepting = true,
                // It is an edge, and the deadlines were looked at.
                TIMER => {}
                token => {
                    let index = token as u32 as usize;
                    if self.get(index).is_some_and(|found| found.serial == (token >> 32) as u32) {
                        self.event(index, event.event_set());
                    }
                }
            }
        }
        self.accept();
        count == EVENTS || (self.accepting && self.has_room())
    }

    /// Whether refusals pile up because the guest gives no buffers for them. Its packets then have to wait.
    pub(super) fn is_choked(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
    }

    /// Whether there may be something for the guest.
    pub(super) fn has_words(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// What the guest is to get next.
    pub(super) fn next(&mut self) -> Option<Next> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(Next::Packet(reply));
        }
        while let Some(index) = self.ready.pop_front() {
            let (cid, deadline) = (self.cid, self.after(CLOSE));
            let Some(connection) = self.get_mut(index) else { continue };
            connection.queued = false;
            // May find that credit is to be asked for.
            let readable = connection.can_read();
            if let Some(header) = connection.next_tidings(cid) {
                let closing = header.op == op::SHUTDOWN && connection.host_is_done();
                if closing {
                    self.set_deadline(index, Some(deadline));
                }
                self.wake(index);
                return Some(Next::Packet(header));
            }
            if readable {
                return Some(Next::Bytes(index));
            }
        }
        None
    }

    /// The connection with this number, to be read from.
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Connection> {
        self.slots.get_mut(index)?.as_deref_mut()
    }

    fn get(&self, index: usize) -> Option<&Connection> {
        self.slots.get(index)?.as_deref()
    }

    /// A read that [`Self::next`] asked for is done.
    pub(super) fn was_read(&mut self, index: usize, outcome: &Outcome) {
        let Some(connection) = self.get_mut(index) else { return };
        match outcome {
            Outcome::Read { filled } => connection.adapt_burst(*filled),
            Outcome::Empty => connection.readable = false,
            Outcome::Ended => connection.read_ended(),
            Outcome::Failed => return self.reset(index),
        }
        self.wake(index);
    }

    /// A packet from the guest, and what follows its header in `chain`.
    pub(super) fn hear(&mut self, header: &Header, chain: &Chain, payload: u64) {
        if header.src_cid != self.cid {
            // There is nobody to tell (5.10.6.1).
            self.counters.unknown_packets = self.counters.unknown_packets.wrapping_add(1);
            return;
        }
        if header.kind != STREAM || header.dst_cid != HOST_CID {
            return self.refuse(header);
        }
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        let Some(index) = self.by_ports.get(&ports).copied() else {
            if header.op == op::REQUEST {
                return self.open(ports, header);
            }
            return self.refuse(header);
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        let Some(connection) = self.get_mut(index) else { return };
        connection.take_credit(header);
        let fine = match (header.op, connection.state) {
            (op::RST, _) => {
                self.remove(index);
                true
            }
            (op::RESPONSE, State::Requested) => self.accepted(index),
            (op::RW, _) if u64::from(header.len) <= chain.readable_len().saturating_sub(payload) => {
                connection.take(chain, payload, header.len, &mut scratch).is_ok()
            }
            (op::CREDIT_UPDATE, State::Established) => true,
            (op::CREDIT_REQUEST, State::Established) => {
                connection.tidings.credit_update = true;
                true
            }
            (op::SHUTDOWN, State::Established) => {
                if connection.guest_shuts_down(header.flags) {
                    self.guest_is_done(index, header);
                }
                true
            }
            _ => false,
        };
        self.scratch = scratch;
        if fine {
            self.watch_room(index);
            self.wake(index);
        } else {
            self.reset(index);
        }
    }

    /// The guest wants a connection to a port of the host.
    fn open(&mut self, ports: Ports, header: &Header) {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{}", ports.host));
        let stream = if self.has_slot() { socket::connect(Path::new(&path)).ok() } else { None };
        let Some(index) = stream.and_then(|stream| self.insert(stream, State::Established, ports)) else {
            return self.refuse(header);
        };
        self.by_ports.insert(ports, index);
        self.counters.opened_by_guest = self.counters.opened_by_guest.wrapping_add(1);
        if let Some(connection) = self.get_mut(index) {
            connection.take_credit(header);
            connection.tidings.response = true;
        }
        self.wake(index);
    }

    /// The guest has closed both ways: it is told that this is known, and the host gets what it has not taken yet.
    fn guest_is_done(&mut self, index: usize, header: &Header) {
        self.replies.push_back(header.refusal());
        let Some(connection) = self.get_mut(index) else { return };
        if !connection.has_unsent() {
            return self.remove(index);
        }
        connection.state = State::Lingering;
        let ports = connection.ports;
        self.by_ports.remove(&ports);
        let deadline = self.after(LINGER);
        self.set_deadline(index, Some(deadline));
    }

    /// Something happened to a connection's socket.
    fn event(&mut self, index: usize, events: EventSet) {
        let linger = self.after(LINGER);
        let Some(connection) = self.get_mut(index) else { return };
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            match connection.state {
                State::Greeting | State::Lingering => return self.remove(index),
                State::Requested => return self.reset(index),
                State::Established => connection.hang_up(),
            }
        }
        if events.contains(EventSet::OUT) {
            connection.flush();
            if connection.state == State::Lingering {
                if !connection.has_unsent() {
                    return self.remove(index);
                }
                // It takes something. The timer is set for a time before this one.
                connection.deadline = Some(linger);
            }
        }
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
            connection.readable = true;
            if connection.state == State::Greeting {
                self.greet(index);
            }
        }
        self.watch_room(index);
        self.wake(index);
    }

    /// Has the socket watched for room while something waits for it.
    fn watch_room(&mut self, index: usize) {
        let Self { slots, epoll, .. } = self;
        let Some(connection) = slots.get_mut(index).and_then(Option::as_deref_mut) else { return };
        if connection.has_unsent() == connection.waits_for_room {
            return;
        }
        connection.waits_for_room = !connection.waits_for_room;
        let fd = connection.stream.as_raw_fd();
        let event = watched(index, connection);
        if let Err(error) = epoll.ctl(ControlOperation::Modify, fd, event) {
            tracing::warn!(%error, "a vsock connection cannot be watched");
            self.reset(index);
        }
    }

    /// Puts a connection in the list if it has something for the guest.
    fn wake(&mut self, index: usize) {
        let Some(connection) = self.get_mut(index) else { return };
        // May find that credit is to be asked for.
        let readable = connection.can_read();
        if (readable || connection.has_tidings()) && !connection.queued {
            connection.queued = true;
            self.ready.push_back(index);
        }
    }

    fn has_slot(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < MAX_CONNECTIONS
    }

    fn insert(&mut self, stream: UnixStream, state: State, ports: Ports) -> Option<usize> {
        let index = match self.free.pop() {
            Some(Reverse(index)) => index,
            None if self.slots.len() < MAX_CONNECTIONS => {
                self.slots.push(None);
                self.slots.len().saturating_sub(1)
            }
            None => return None,
        };
        let window = if index < LARGE_WINDOWS { LARGE_WINDOW } else { SMALL_WINDOW };
        self.serial = self.serial.wrapping_add(1);
        let connection = Box::new(Connection::new(stream, state, ports, self.serial, window));
        let event = watched(index, &connection);
        if let Err(error) = self.epoll.ctl(ControlOperation::Add, connection.stream.as_raw_fd(), event) {
            tracing::warn!(%error, "a vsock connection cannot be watched");
            self.free.push(Reverse(index));
            return None;
        }
        *self.slots.get_mut(index)? = Some(connection);
        Some(index)
    }

    /// Ends a connection, for the host at least. Closing its socket ends the watch.
    fn remove(&mut self, index: usize) {
        let Some(connection) = self.slots.get_mut(index).and_then(Option::take) else { return };
        self.free.push(Reverse(index));
        match connection.state {
            State::Greeting => self.greeting = self.greeting.saturating_sub(1),
            // Another may have its ports by now.
            State::Lingering => {}
            State::Requested | State::Established => {
                self.by_ports.remove(&connection.ports);
            }
        }
        if connection.queued {
            self.ready.retain(|ready| *ready != index);
        }
    }

    /// Ends a connection, and tells the guest if it knows of it.
    fn reset(&mut self, index: usize) {
        let cid = self.cid;
        let Some(connection) = self.get_mut(index) else { return };
        let known = match connection.state {
            State::Requested => !connection.tidings.request,
            State::Established => true,
            State::Greeting | State::Lingering => false,
        };
        let header = connection.header(cid, op::RST, 0);
        if known {
            self.counters.reset = self.counters.reset.wrapping_add(1);
            self.replies.push_back(header);
        }
        self.remove(index);
    }

    /// Answers a packet that belongs to no connection (5.10.6.4).
    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.counters.refused = self.counters.refused.wrapping_add(1);
            self.replies.push_back(header.refusal());
        }
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

machine::inspect!(Mux, this => {
    connections: this.slots.iter().flatten().map(Inspect::inspect).collect::<Vec<_>>(),
    waiting_to_greet: this.greeting,
    refusals_waiting: this.replies.len(),
    ..this.counters,
});

machine::inspect!(Counters { opened_by_guest, opened_by_host, refused, reset, unknown_packets });

/// What a connection's socket is watched for, and the number it is told by.
fn watched(index: usize, connection: &Connection) -> EpollEvent {
    let mut events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if connection.waits_for_room {
        events |= EventSet::OUT;
    }
    EpollEvent::new(events, u64::from(connection.serial) << 32 | index as u64)
}
