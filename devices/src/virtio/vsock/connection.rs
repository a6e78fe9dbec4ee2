//! One connection: where it is in its life, and the credit that each side gives the other (virtio 1.2, 5.10.6.3).

use super::packet::{HOST_CID, Header, STREAM, op, shutdown};
use super::socket;
use super::unsent::Unsent;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use virtio::chain::{Chain, Segment};

/// The two ports that tell a connection from all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A program on the host has yet to say which of the guest's ports it wants.
    Greeting,
    /// The guest has yet to answer the request.
    Requested,
    /// Bytes are carried.
    Established,
    /// For the guest it is over; the host has yet to take the last of what the guest sent.
    Lingering,
}

/// What the guest is to be told. Later ones wait for the ones before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tidings {
    pub(super) request: bool,
    pub(super) response: bool,
    pub(super) credit_update: bool,
    pub(super) credit_request: bool,
    pub(super) shutdown: bool,
}

/// How much of a burst of packets is read at once: at the beginning, and at most.
const FIRST_BURST: usize = 2;
pub(super) const MOST_BURST: usize = 32;

pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) state: State,
    pub(super) ports: Ports,
    /// Tells it from others that were in its place before.
    pub(super) serial: u32,
    pub(super) tidings: Tidings,
    /// It is in the list of those with something for the guest.
    pub(super) queued: bool,
    /// When it ends, if its other side is silent; monotonic, in nanoseconds.
    pub(super) deadline: Option<u64>,

    /// From the guest to the host: how much the guest may send ahead.
    window: u32,
    unsent: Unsent,
    /// Bytes the guest sent, bytes the host took, and what the guest knows of these; all wrapping.
    received: u32,
    forwarded: u32,
    forwarded_told: u32,
    /// The guest sends no more, and the host knows.
    guest_ended: bool,
    host_knows_end: bool,
    /// The host takes no more.
    host_deaf: bool,
    /// The socket is watched for room.
    pub(super) waits_for_room: bool,

    /// From the host to the guest: the guest's room, what it passed on, and what it was sent; wrapping.
    guest_room: u32,
    guest_forwarded: u32,
    sent: u32,
    /// There may be something to read.
    pub(super) readable: bool,
    /// All was read.
    host_ended: bool,
    /// The host has closed its end.
    hung_up: bool,
    /// The guest takes no more.
    guest_deaf: bool,
    /// The guest was asked for credit, and has not answered.
    credit_asked: bool,
    /// Packets read at once.
    pub(super) burst: usize,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, state: State, ports: Ports, serial: u32, window: u32) -> Self {
        Self {
            stream,
            state,
            ports,
            serial,
            tidings: Tidings::default(),
            queued: false,
            deadline: None,
            window,
            unsent: Unsent::default(),
            received: 0,
            forwarded: 0,
            forwarded_told: 0,
            guest_ended: false,
            host_knows_end: false,
            host_deaf: false,
            waits_for_room: false,
            guest_room: 0,
            guest_forwarded: 0,
            sent: 0,
            readable: true,
            host_ended: false,
            hung_up: false,
            guest_deaf: false,
            credit_asked: false,
            burst: FIRST_BURST,
        }
    }

    /// A packet of this connection to the guest.
    pub(super) fn header(&mut self, cid: u64, op: u16, len: u32) -> Header {
        // Every packet says how much room there is.
        self.forwarded_told = self.forwarded;
        Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: self.window,
            fwd_cnt: self.forwarded,
        }
    }

    /// The next packet without bytes that the guest is to get.
    pub(super) fn next_tidings(&mut self, cid: u64) -> Option<Header> {
        let op = if std::mem::take(&mut self.tidings.request) {
            op::REQUEST
        } else if self.state != State::Established {
            return None;
        } else if std::mem::take(&mut self.tidings.response) {
            op::RESPONSE
        } else if std::mem::take(&mut self.tidings.credit_update) {
            op::CREDIT_UPDATE
        } else if std::mem::take(&mut self.tidings.credit_request) {
            op::CREDIT_REQUEST
        } else if std::mem::take(&mut self.tidings.shutdown) {
            op::SHUTDOWN
        } else {
            return None;
        };
        let mut header = self.header(cid, op, 0);
        if op == op::SHUTDOWN {
            header.flags = self.host_shutdown();
        }
        Some(header)
    }

    /// What the host will not do any more, as the guest is told.
    fn host_shutdown(&self) -> u32 {
        let send = if self.host_ended { shutdown::SEND } else { 0 };
        let receive = if self.host_deaf { shutdown::RECEIVE } else { 0 };
        send | receive
    }

    /// Whether the host has closed both ways: the guest's last word is waited for.
    pub(super) fn host_is_done(&self) -> bool {
        self.host_shutdown() == shutdown::BOTH
    }

    pub(super) fn has_tidings(&self) -> bool {
        self.tidings != Tidings::default()
    }

    /// The credit that a packet of the guest carries.
    pub(super) fn take_credit(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// How many bytes the guest has room for.
    pub(super) fn credit(&self) -> u32 {
        self.guest_room.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// Whether bytes may be there for the guest, for which it has room. When all that is missing is room, the guest is asked for it.
    pub(super) fn can_read(&mut self) -> bool {
        let wanted =
            self.state == State::Established && self.readable && !self.host_ended && !self.guest_deaf;
        if wanted && self.credit() == 0 {
            if !self.credit_asked {
                self.credit_asked = true;
                self.tidings.credit_request = true;
            }
            return false;
        }
        wanted
    }

    /// So many bytes went to the guest.
    pub(super) fn count_sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// A read filled all it could, or not: so the next one is larger or smaller.
    pub(super) fn adapt_burst(&mut self, filled: bool) {
        self.burst = if filled {
            self.burst.saturating_mul(2).min(MOST_BURST)
        } else {
            (self.burst / 2).max(FIRST_BURST)
        };
    }

    /// The host sends no more.
    pub(super) fn read_ended(&mut self) {
        self.readable = false;
        self.host_ended = true;
        self.host_deaf |= self.hung_up;
        self.tidings.shutdown = true;
    }

    /// The host has closed its end. What it sent before is still there to be read.
    pub(super) fn hang_up(&mut self) {
        if self.hung_up {
            return;
        }
        self.hung_up = true;
        self.readable = true;
        if self.host_ended || self.guest_deaf {
            self.read_ended();
        }
    }

    /// Bytes from the guest: `len` in `chain` from `offset`. `scratch` is overwritten. An error ends the connection.
    pub(super) fn take(
        &mut self,
        chain: &Chain,
        offset: u64,
        len: u32,
        scratch: &mut Vec<Segment>,
    ) -> Result<(), Refused> {
        let kept = u32::try_from(self.unsent.len()).unwrap_or(u32::MAX);
        if self.state != State::Established || self.guest_ended {
            return Err(Refused);
        }
        // More than it was given credit for.
        if kept.saturating_add(len) > self.window {
            return Err(Refused);
        }
        self.received = self.received.wrapping_add(len);
        let mut done = 0_u32;
        while self.unsent.is_empty() && !self.host_deaf && done < len {
            scratch.clear();
            let from = offset.saturating_add(done.into());
            chain.append_readable(from, len.saturating_sub(done).into(), scratch);
            // SAFETY: the segments are of `chain`, which keeps them mapped.
            match unsafe { socket::send(&self.stream, scratch) } {
                // A chain has as many bytes as were asked for; were it not, this must not go on for ever.
                Ok(0) => return Err(Refused),
                Ok(count) => done = done.saturating_add(u32::try_from(count).unwrap_or(u32::MAX)).min(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.host_is_deaf(),
            }
        }
        let left = len.saturating_sub(done);
        if self.host_deaf {
            done = len;
        } else if left > 0 {
            let from = offset.saturating_add(done.into());
            self.unsent.append(chain, from, left as usize, self.window as usize);
        }
        self.forward(done);
        Ok(())
    }

    /// Sends what could not be sent before. An error ends the connection.
    pub(super) fn flush(&mut self) {
        while !self.unsent.is_empty() {
            let segments = self.unsent.segments();
            // SAFETY: the segments are of `unsent`, which stays as it is until after the call.
            match unsafe { socket::send(&self.stream, &segments) } {
                Ok(count) if count > 0 => {
                    self.unsent.consume(count);
                    self.forward(u32::try_from(count).unwrap_or(u32::MAX));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                _ => self.host_is_deaf(),
            }
        }
        self.pass_end_on();
    }

    /// The host takes no more: what there is for it is dropped, as is what comes.
    fn host_is_deaf(&mut self) {
        let dropped = u32::try_from(self.unsent.len()).unwrap_or(u32::MAX);
        self.unsent = Unsent::default();
        self.forward(dropped);
        self.host_deaf = true;
        self.tidings.shutdown = true;
    }

    /// The host took so many bytes: the guest is told before it has used up half of its credit.
    fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
        let used = self.received.wrapping_sub(self.forwarded_told);
        if self.forwarded != self.forwarded_told && used > self.window / 2 {
            self.tidings.credit_update = true;
        }
    }

    /// The guest will not do some things any more. `true`: nothing at all, so that the connection is over for it.
    pub(super) fn guest_shuts_down(&mut self, flags: u32) -> bool {
        if flags & shutdown::RECEIVE != 0 && !self.guest_deaf {
            self.guest_deaf = true;
            self.readable = false;
            // It fails when the host has gone, which its hang-up tells.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if flags & shutdown::SEND != 0 {
            self.guest_ended = true;
            self.pass_end_on();
        }
        self.guest_deaf && self.guest_ended
    }

    /// Once the host has all that the guest sent, it sees its end.
    fn pass_end_on(&mut self) {
        if self.guest_ended && self.unsent.is_empty() && !self.host_knows_end {
            self.host_knows_end = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// How many bytes the host has not taken yet.
    pub(super) fn unsent_len(&self) -> usize {
        self.unsent.len()
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }
}

/// The guest did what it may not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused;

machine::inspect!(Connection, this => {
    guest_port: this.ports.guest,
    host_port: this.ports.host,
    state: format!("{:?}", this.state).to_lowercase(),
    window,
    unsent: this.unsent.len(),
    guest_credit: this.credit(),
    guest_ended,
    host_ended,
});
