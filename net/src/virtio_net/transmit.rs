//! The handler of a transmit queue (virtio 1.2, 5.1.6.2).
//!
//! Packets go to the link straight from the driver's buffers, except for their header, which is copied and checked first. What a
//! full link has no room for waits in the ring.

use super::header;
use super::state::{Counters, Shared};
use crate::features::Features;
use crate::link::{Interest, Link, Readiness};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio::chain::{Chain, Segment};
use virtio::device::{Progress, QueueHandler};
use virtio::queue::Queue;
use virtio::rate_limit::RateLimiter;

/// Packets sent before others have their turn.
const BUDGET: usize = 128;
/// `IOV_MAX`.
const MAX_SEGMENTS: usize = 1024;

/// Runs one transmit queue.
pub(super) struct Transmit {
    queue: Queue,
    pair: usize,
    link: Arc<dyn Link>,
    interest: Interest,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    limiter: RateLimiter,
    features: Features,
    chain: Chain,
    segments: Vec<Segment>,
    /// The packet's header, in one place.
    header: Box<[u8; header::SIZE]>,
    waiting: Waiting,
    /// The next packet is paid for at the limiter.
    paid: bool,
}

/// What the handler waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// A packet.
    Packet,
    /// Room in the link.
    Link,
    /// The rate limit.
    Limit,
}

/// What a [`Transmit`] is made of.
pub(super) struct Parts {
    pub(super) queue: Queue,
    pub(super) pair: usize,
    pub(super) link: Arc<dyn Link>,
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<Counters>,
    pub(super) limiter: RateLimiter,
    pub(super) features: Features,
}

impl Transmit {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let Parts { queue, pair, link, shared, counters, limiter, features } = parts;
        Ok(Self {
            interest: Interest::new(link.descriptor(), Readiness::Writable, None)?,
            queue,
            pair,
            link,
            shared,
            counters,
            limiter,
            features,
            chain: Chain::new(),
            segments: Vec::new(),
            header: Box::new([0; header::SIZE]),
            waiting: Waiting::Packet,
            paid: false,
        })
    }

    /// Puts together the segments of the packet in `chain`; `false`: it makes no sense.
    fn prepare(&mut self) -> bool {
        let header_size = header::SIZE as u64;
        let length = self.chain.readable_len();
        if length < header_size.saturating_add(header::MIN_FRAME) || length > header::MAX_LARGE {
            return false;
        }
        if self.chain.read_at(0, &mut *self.header) != header::SIZE
            || !header::sanitize(&mut self.header, self.features)
        {
            return false;
        }
        self.segments.clear();
        self.segments.push(Segment::new(self.header.as_mut_ptr(), self.header.len()));
        self.chain.append_readable(header_size, length.saturating_sub(header_size), &mut self.segments);
        self.segments.len() <= MAX_SEGMENTS
    }

    /// Deals with the packet in `chain`. `false`: the link has no room for it.
    fn send(&mut self) -> bool {
        if !self.prepare() {
            self.counters.malformed.add(1);
            return true;
        }
        if !self.shared.link_up.load(Ordering::Relaxed) {
            self.counters.dropped.add(1);
            return true;
        }
        // SAFETY: the segments are of a chain of the queue, which keeps its memory mapped, and of `header`.
        match unsafe { self.link.send(&self.segments) } {
            Ok(length) => {
                self.counters.packets.add(1);
                self.counters.bytes.add((length as u64).saturating_sub(header::SIZE as u64));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => {
                self.counters.link_errors.add(1);
            }
        }
        true
    }
}

impl QueueHandler for Transmit {
    fn run(&mut self, now: u64) -> Progress {
        self.queue.disable_notifications();
        self.queue.begin_batch(now);
        let mut progress = Progress::More;
        for _ in 0..BUDGET {
            match self.queue.pop(&mut self.chain) {
                Ok(true) => {}
                // None, or the ring makes no sense and the transport was told.
                Ok(false) | Err(_) => {
                    self.waiting = Waiting::Packet;
                    progress = Progress::Idle;
                    break;
                }
            }
            if !self.paid
                && let Err(until) = self.limiter.consume(self.chain.readable_len())
            {
                self.queue.unpop(self.chain.token());
                self.waiting = Waiting::Limit;
                progress = Progress::Until(until);
                break;
            }
            self.paid = true;
            if !self.send() {
                self.queue.unpop(self.chain.token());
                self.waiting = Waiting::Link;
                progress = Progress::Idle;
                break;
            }
            self.paid = false;
            self.queue.push(self.chain.token(), 0);
        }
        if progress != Progress::More && self.waiting != Waiting::Link {
            self.interest.set(false);
        }
        self.queue.notify();
        progress
    }

    fn arm(&mut self) -> bool {
        self.interest.set(self.waiting == Waiting::Link);
        self.waiting == Waiting::Packet && self.queue.enable_notifications()
    }

    fn has_work(&self) -> bool {
        self.waiting == Waiting::Packet && self.queue.has_available()
    }

    fn event_sources(&self) -> Vec<RawFd> {
        vec![self.interest.descriptor()]
    }

    fn quiesce(&mut self) -> bool {
        self.interest.set(false);
        true
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        vec![self.queue]
    }
}

machine::inspect!(Transmit, this => {
    pair,
    waiting_for: format!("{:?}", this.waiting).to_lowercase(),
    rate_limit: this.limiter,
    counters,
    queue,
});
