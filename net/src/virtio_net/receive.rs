//! The handler of a receive queue (virtio 1.2, 5.1.6.3 and 5.1.6.4).
//!
//! Packets are read from the link straight into the driver's buffers. A packet's size is not known before it is read, so as many
//! buffers are offered as the largest one takes, and those it does not need stay in stock for the next. While there are no
//! buffers, packets wait in the link.

use super::header;
use super::state::{Counters, Shared};
use crate::features::Features;
use crate::link::{Interest, Link, Readiness};
use machine::doorbell::Doorbell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio::chain::{Chain, Segment};
use virtio::device::{Progress, QueueHandler};
use virtio::queue::{Queue, QueueError};
use virtio::rate_limit::RateLimiter;

/// Packets taken before others have their turn.
const BUDGET: usize = 128;
/// `IOV_MAX`, less one for what tells that a packet was cut off.
const MAX_SEGMENTS: usize = 1023;

/// The most segments of one buffer; what has more is refused. Buffers of whole packets have up to 34 in common drivers.
const BUFFER_SEGMENTS: usize = 128;

/// Runs one receive queue.
pub(super) struct Receive {
    queue: Queue,
    pair: usize,
    link: Arc<dyn Link>,
    interest: Interest,
    wake: Doorbell,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    limiter: RateLimiter,
    mergeable: bool,
    /// The largest packet the link may give, header included.
    max_packet: u64,
    /// Chains popped and not used yet, oldest first.
    stock: VecDeque<Chain>,
    /// Chains to be popped into.
    spare: Vec<Chain>,
    /// The segments offered to the link.
    segments: Vec<Segment>,
    /// Where the first byte of a packet goes that the buffers offered have no room for.
    spill: Box<[u8; 1]>,
    waiting: Waiting,
    /// The next packet is paid for at the limiter.
    paid: bool,
    /// Bytes of the last packet, to be paid for with the next: its size was not known when it was.
    owed: u64,
    link_failed: bool,
}

/// What the handler waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// A packet.
    Packet,
    /// Buffers.
    Buffers,
    /// The rate limit.
    Limit,
    /// The driver to use this queue pair, or to reset the device.
    Driver,
}

/// How taking one packet went.
enum Taken {
    /// It was taken, or dropped, or is to be tried again.
    Packet,
    /// It was not, and this has to be waited for.
    Wait(Waiting),
}

/// What a [`Receive`] is made of.
pub(super) struct Parts {
    pub(super) queue: Queue,
    pub(super) pair: usize,
    pub(super) link: Arc<dyn Link>,
    pub(super) wake: Doorbell,
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<Counters>,
    pub(super) limiter: RateLimiter,
    pub(super) features: Features,
    /// Largest packet without Ethernet's header and without segmentation.
    pub(super) mtu: u16,
}

impl Receive {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let Parts { queue, pair, link, wake, shared, counters, limiter, features, mtu } = parts;
        /// Ethernet's header with a VLAN tag, and the packet's own.
        const HEADERS: u64 = 14 + 4 + header::SIZE as u64;
        let large = features.intersects(Features::GUEST_LARGE);
        Ok(Self {
            interest: Interest::new(link.descriptor(), Readiness::Readable, Some(&wake))?,
            queue,
            pair,
            link,
            wake,
            shared,
            counters,
            limiter,
            mergeable: features.contains(Features::MRG_RXBUF),
            max_packet: if large { header::MAX_LARGE } else { u64::from(mtu).saturating_add(HEADERS) },
            stock: VecDeque::new(),
            spare: Vec::new(),
            segments: Vec::new(),
            spill: Box::new([0]),
            waiting: Waiting::Packet,
            paid: false,
            owed: 0,
            link_failed: false,
        })
    }

    /// Pays for the next packet; an error tells when to ask again.
    fn pay(&mut self) -> Result<(), u64> {
        if !self.paid {
            self.limiter.consume(self.owed)?;
            self.paid = true;
            self.owed = 0;
        }
        Ok(())
    }

    /// Takes one packet from the link.
    fn take(&mut self) -> Result<Taken, QueueError> {
        let capacity = self.offer()?;
        if capacity == 0 {
            return Ok(Taken::Wait(Waiting::Buffers));
        }
        if capacity < self.max_packet {
            self.segments.push(Segment::new(self.spill.as_mut_ptr(), self.spill.len()));
        }
        // SAFETY: the segments are of chains of the queue, which keeps its memory mapped, and of `spill`.
        let length = match unsafe { self.link.receive(&self.segments) } {
            Ok(0) => return Ok(self.link_error(None)),
            Ok(length) => length as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Taken::Wait(Waiting::Packet));
            }
            Err(error) => return Ok(self.link_error(Some(&error))),
        };
        self.paid = false;
        self.owed = length;
        if length < header::MIN_FRAME.saturating_add(header::SIZE as u64) {
            self.counters.malformed.add(1);
        } else if length > capacity || !self.shared.link_up.load(Ordering::Relaxed) {
            self.counters.dropped.add(1);
        } else {
            self.deliver(length);
            self.counters.packets.add(1);
            self.counters.bytes.add(length.saturating_sub(header::SIZE as u64));
        }
        Ok(Taken::Packet)
    }

    /// Puts together the segments for one packet. Returns their size: 0 if there are no buffers.
    fn offer(&mut self) -> Result<u64, QueueError> {
        self.segments.clear();
        let mut capacity = 0_u64;
        let mut chains = 0_usize;
        let mut refused = 0_u16;
        while capacity < self.max_packet && (self.mergeable || chains == 0) {
            if chains == self.stock.len() && !self.restock()? {
                break;
            }
            let Some(chain) = self.stock.get(chains) else { break };
            if !usable(chain) {
                // In its turn, since chains in stock may go back to the ring, and only in order. And not for ever, should the
                // driver make them as fast as they are refused.
                if chains > 0 || refused >= self.queue.size() {
                    break;
                }
                refused = refused.saturating_add(1);
                self.counters.malformed.add(1);
                self.use_first(0);
                continue;
            }
            if self.segments.len().saturating_add(chain.writable().len()) > MAX_SEGMENTS {
                break;
            }
            self.segments.extend_from_slice(chain.writable());
            capacity = capacity.saturating_add(chain.writable_len());
            chains = chains.saturating_add(1);
        }
        Ok(capacity)
    }

    /// Pops one chain into the stock; `false`: there is none.
    fn restock(&mut self) -> Result<bool, QueueError> {
        let mut chain = self.spare.pop().unwrap_or_else(|| Chain::of_at_most(BUFFER_SEGMENTS));
        let popped = self.queue.pop(&mut chain)?;
        if popped {
            self.stock.push_back(chain);
        } else {
            self.spare.push(chain);
        }
        Ok(popped)
    }

    /// Gives the first chain in stock to the driver.
    fn use_first(&mut self, written: u32) {
        if let Some(chain) = self.stock.pop_front() {
            self.queue.push_held(chain.token(), written);
            self.spare.push(chain);
        }
    }

    /// Gives the driver the packet of `length` bytes that lies in the first chains in stock.
    fn deliver(&mut self, length: u64) {
        let mut buffers = 0_u16;
        let mut left = length;
        for chain in &self.stock {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(chain.writable_len());
            buffers = buffers.saturating_add(1);
        }
        if let Some(chain) = self.stock.front() {
            // The header is all in the first one.
            let _ = chain.write_at(header::NUM_BUFFERS, &buffers.to_le_bytes());
        }
        let mut left = length;
        for _ in 0..buffers {
            let written = left.min(self.stock.front().map_or(0, Chain::writable_len));
            left = left.saturating_sub(written);
            // A packet is much smaller than 4 GiB.
            self.use_first(written as u32);
        }
    }

    /// The link does not work any more, or not for this queue pair.
    fn link_error(&mut self, error: Option<&io::Error>) -> Taken {
        // So says a tap of a pair that is not in use, which may be by now; and one that was deleted.
        let detached = error.is_some_and(|error| error.raw_os_error() == Some(libc::EBADFD));
        if detached && self.wake.take() {
            return Taken::Packet;
        }
        if self.shared.is_active(self.pair) && !self.link_failed {
            // At the 1st, 2nd, 4th, 8th...: a driver can bring it about again.
            if self.counters.link_errors.add(1).is_power_of_two() {
                match error {
                    Some(error) => tracing::warn!(pair = self.pair, %error, "a network link failed"),
                    None => tracing::warn!(pair = self.pair, "the other end of a network link is gone"),
                }
            }
            // A pair that is used anew is tried anew.
            self.link_failed = !detached;
        }
        Taken::Wait(Waiting::Driver)
    }

    /// Gives the chains in stock back to the ring, as if never popped.
    fn unstock(&mut self) {
        while let Some(chain) = self.stock.pop_back() {
            self.queue.unpop(chain.token());
            self.spare.push(chain);
        }
    }
}

/// Whether a chain can take a packet, or a part of one: a packet's header lies in one buffer (virtio 1.2, 5.1.6.3.1).
fn usable(chain: &Chain) -> bool {
    chain.writable_len() >= header::SIZE as u64 && !chain.is_oversized()
}

impl QueueHandler for Receive {
    fn run(&mut self, now: u64) -> Progress {
        self.wake.take();
        self.queue.disable_notifications();
        self.queue.begin_batch(now);
        let mut progress = Progress::More;
        for _ in 0..BUDGET {
            if self.link_failed || !self.shared.is_active(self.pair) {
                self.waiting = Waiting::Driver;
                progress = Progress::Idle;
                break;
            }
            if let Err(until) = self.pay() {
                self.waiting = Waiting::Limit;
                progress = Progress::Until(until);
                break;
            }
            match self.take() {
                Ok(Taken::Packet) => {}
                Ok(Taken::Wait(waiting)) => {
                    self.waiting = waiting;
                    progress = Progress::Idle;
                    break;
                }
                // The queue told the transport.
                Err(_) => {
                    self.waiting = Waiting::Driver;
                    progress = Progress::Idle;
                    break;
                }
            }
        }
        if progress != Progress::More && self.waiting != Waiting::Packet {
            self.interest.set(false);
        }
        self.queue.notify();
        progress
    }

    fn arm(&mut self) -> bool {
        self.interest.set(self.waiting == Waiting::Packet);
        self.waiting == Waiting::Buffers && self.queue.enable_notifications()
    }

    fn has_work(&self) -> bool {
        self.waiting == Waiting::Buffers && self.queue.has_available()
    }

    fn event_sources(&self) -> Vec<RawFd> {
        vec![self.interest.descriptor()]
    }

    fn quiesce(&mut self) -> bool {
        self.interest.set(false);
        self.unstock();
        self.queue.notify();
        true
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn into_queues(mut self: Box<Self>) -> Vec<Queue> {
        self.unstock();
        vec![self.queue]
    }
}

machine::inspect!(Receive, this => {
    pair,
    waiting_for: format!("{:?}", this.waiting).to_lowercase(),
    link_failed,
    stock: this.stock.len(),
    room_for_segments: this.stock.iter().chain(&this.spare).map(Chain::room).sum::<usize>(),
    max_packet,
    rate_limit: this.limiter,
    counters,
    queue,
});
