//! Runs the three queues (virtio 1.2, 5.10.2): packets to the guest, packets from it, events.

use super::Shared;
use super::connection::MOST_BURST;
use super::mux::{Mux, Next, Outcome};
use super::packet::{HEADER, Header, op};
use super::socket::{self, MAX_SEGMENTS};
use machine::clock::Clock;
use machine::inspect::Inspect;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use virtio::chain::{Chain, Segment};
use virtio::device::{Progress, QueueHandler};
use virtio::queue::{Queue, QueueError};

/// Packets each way before others have their turn.
const BUDGET: usize = 64;
/// The event that all connections are gone (5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

pub(super) struct Handler {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    mux: Mux,
    receive: Queue,
    transmit: Queue,
    events: Queue,
    chain: Chain,
    /// Chains that a burst is read into, and how many bytes after the header each is to take.
    stock: Vec<(Chain, u32)>,
    spare: Vec<Chain>,
    segments: Vec<Segment>,
    /// There is something for the guest, and it has no buffers.
    starved: bool,
    to_guest: u64,
    from_guest: u64,
    malformed: u64,
}

impl Handler {
    pub(super) fn new(
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        mux: Mux,
        [receive, transmit, events]: [Queue; 3],
    ) -> Self {
        Self {
            shared,
            clock,
            mux,
            receive,
            transmit,
            events,
            chain: Chain::new(),
            stock: Vec::with_capacity(MOST_BURST),
            spare: Vec::with_capacity(MOST_BURST),
            segments: Vec::new(),
            starved: false,
            to_guest: 0,
            from_guest: 0,
            malformed: 0,
        }
    }

    /// Takes the guest's packets. `true`: there may be more.
    fn hear(&mut self) -> bool {
        for _ in 0..BUDGET {
            // A queue that is broken has told the driver already.
            if self.mux.is_choked() || !matches!(self.transmit.pop(&mut self.chain), Ok(true)) {
                return false;
            }
            let mut header = [0; HEADER];
            if self.chain.read_at(0, &mut header) == HEADER {
                let header = Header::from_bytes(&header);
                self.mux.hear(&header, &self.chain, HEADER as u64);
                if header.op == op::RW {
                    self.from_guest = self.from_guest.wrapping_add(header.len.into());
                }
            } else {
                self.malformed = self.malformed.wrapping_add(1);
            }
            self.transmit.push(self.chain.token(), 0);
        }
        true
    }

    /// Gives the guest what there is for it. `true`: there may be more.
    fn tell(&mut self) -> bool {
        for _ in 0..BUDGET {
            self.starved = self.mux.has_words() && !self.receive.has_available();
            if self.starved {
                return false;
            }
            let told = match self.mux.next() {
                None => return false,
                Some(Next::Packet(header)) => self.packet(&header),
                Some(Next::Bytes(index)) => self.bytes(index),
            };
            if told.is_err() {
                // The driver has been told.
                return false;
            }
        }
        true
    }

    fn packet(&mut self, header: &Header) -> Result<(), QueueError> {
        if !self.restock()? {
            return Err(QueueError::Broken);
        }
        self.use_first(header, 0);
        Ok(())
    }

    /// Reads from a connection straight into the guest's buffers, a burst of packets at once.
    fn bytes(&mut self, index: usize) -> Result<(), QueueError> {
        let Some(connection) = self.mux.get_mut(index) else { return Ok(()) };
        let (mut left, burst) = (connection.credit(), connection.burst);
        self.segments.clear();
        let mut total = 0_usize;
        while self.stock.len() < burst && left > 0 && self.segments.len() < MAX_SEGMENTS && self.restock()? {
            let Some((chain, room)) = self.stock.last_mut() else { break };
            let segments = self.segments.len();
            let free = chain.writable_len().saturating_sub(HEADER as u64);
            *room = u32::try_from(free).unwrap_or(u32::MAX).min(left);
            chain.append_writable(HEADER as u64, (*room).into(), &mut self.segments);
            if self.segments.len() > MAX_SEGMENTS {
                self.segments.truncate(MAX_SEGMENTS);
                if segments > 0 {
                    break;
                }
                *room =
                    u32::try_from(self.segments.iter().map(|part| part.len()).sum::<usize>()).unwrap_or(0);
            }
            left = left.saturating_sub(*room);
            total = total.saturating_add(*room as usize);
        }
        let Some(connection) = self.mux.get_mut(index) else { return Ok(()) };
        // SAFETY: the segments are of chains in stock, which keep them mapped; they are the guest's to have written.
        let read = unsafe { socket::read(&connection.stream, &self.segments) };
        let outcome = match read {
            Ok(0) => Outcome::Ended,
            Ok(count) => {
                self.deliver(index, count);
                Outcome::Read { filled: count >= total }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Outcome::Empty,
            // To be tried again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Outcome::Read { filled: false },
            Err(_) => Outcome::Failed,
        };
        self.unstock(0);
        self.mux.was_read(index, &outcome);
        Ok(())
    }

    /// Gives the guest `count` bytes that lie in the first chains in stock.
    fn deliver(&mut self, index: usize, count: usize) {
        let mut left = u32::try_from(count).unwrap_or(u32::MAX);
        let mut chains = 0_usize;
        for (_, room) in &mut self.stock {
            *room = left.min(*room);
            left = left.saturating_sub(*room);
            chains = chains.saturating_add((*room > 0).into());
        }
        // What is not used goes back first: only so can it.
        self.unstock(chains);
        let cid = self.shared.cid;
        for (chain, len) in self.stock.drain(..) {
            let Some(connection) = self.mux.get_mut(index) else { break };
            let header = connection.header(cid, op::RW, len);
            connection.count_sent(len);
            // It is as large as was asked for.
            let _ = chain.write_at(0, &header.to_bytes());
            self.receive.push(chain.token(), len.saturating_add(HEADER as u32));
            self.to_guest = self.to_guest.wrapping_add(len.into());
            self.spare.push(chain);
        }
    }

    /// Pops one chain into the stock. `false`: there is none.
    fn restock(&mut self) -> Result<bool, QueueError> {
        let mut chain = self.spare.pop().unwrap_or_default();
        if !self.receive.pop(&mut chain)? {
            self.spare.push(chain);
            return Ok(false);
        }
        if chain.writable_len() <= HEADER as u64 {
            let error = QueueError::Request("for packets has no room for one");
            self.receive.fail(error);
            self.spare.push(chain);
            return Err(error);
        }
        self.stock.push((chain, 0));
        Ok(true)
    }

    /// Gives the last chains in stock back to the ring, all but `keep`, as if never popped.
    fn unstock(&mut self, keep: usize) {
        while self.stock.len() > keep {
            let Some((chain, _)) = self.stock.pop() else { break };
            self.receive.unpop(chain.token());
            self.spare.push(chain);
        }
    }

    fn use_first(&mut self, header: &Header, bytes: u32) {
        let Some((chain, _)) = self.stock.pop() else { return };
        let _ = chain.write_at(0, &header.to_bytes());
        self.receive.push(chain.token(), bytes.saturating_add(HEADER as u32));
        self.spare.push(chain);
    }

    /// Tells the driver that all connections are gone, once it has a buffer for that.
    fn tell_reset(&mut self) {
        if !self.mux.transport_reset || !matches!(self.events.pop(&mut self.chain), Ok(true)) {
            return;
        }
        let written = self.chain.write_at(0, &TRANSPORT_RESET.to_le_bytes());
        self.events.push(self.chain.token(), written as u32);
        self.mux.transport_reset = false;
    }

    fn waits_to_tell_reset(&self) -> bool {
        self.mux.transport_reset && self.events.has_available()
    }
}

impl QueueHandler for Handler {
    fn run(&mut self, _now: u64) -> Progress {
        self.receive.disable_notifications();
        self.transmit.disable_notifications();
        self.events.disable_notifications();
        let mut more = self.mux.look(self.clock.monotonic_ns());
        more |= self.hear();
        self.tell_reset();
        more |= self.tell();
        self.transmit.notify();
        self.receive.notify();
        self.events.notify();
        // A chain that broke its queue in the middle of a burst.
        self.unstock(0);
        if more { Progress::More } else { Progress::Idle }
    }

    fn arm(&mut self) -> bool {
        let hears = !self.mux.is_choked() && self.transmit.enable_notifications();
        let tells = self.starved && self.receive.enable_notifications();
        let events = self.mux.transport_reset && self.events.enable_notifications();
        hears || tells || events
    }

    fn has_work(&self) -> bool {
        let hears = !self.mux.is_choked() && self.transmit.has_available();
        hears || (self.starved && self.receive.has_available()) || self.waits_to_tell_reset()
    }

    fn event_sources(&self) -> Vec<RawFd> {
        vec![self.mux.descriptor()]
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.receive, &self.transmit, &self.events]
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        *self.shared.mux() = Some(self.mux);
        vec![self.receive, self.transmit, self.events]
    }
}

machine::inspect!(Handler, this => {
    bytes_to_guest: this.to_guest,
    bytes_from_guest: this.from_guest,
    waits_for_buffers: this.starved,
    malformed,
    sockets: this.mux,
    queues: this.queues().into_iter().map(Inspect::inspect).collect::<Vec<_>>(),
});
