//! Runs one queue: takes chains, has the image do what they ask for, answers them.

mod load;
mod parts;
mod settle;
mod slot;

use super::counters::Counters;
use super::request::{self, Parsed, Status};
use super::{HostError, Shared};
use crate::image::{Completed, Stream};
use load::{Cost, Load};
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::memory;
use machine::metrics::COUNTED;
use slot::{Doing, Ranges, Slot};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use virtio::chain::Segment;
use virtio::device::{Progress, QueueHandler};
use virtio::queue::{Queue, QueueError};

/// The most requests started in one run, so that handlers on one worker take turns.
const BUDGET: u32 = 128;
/// Requests given to the host at once. Small enough that the driver can take results and make new requests while the host
/// works on the next ones; larger ones save few system calls.
const BATCH: u32 = 8;

/// What the driver and the device agreed upon.
pub(super) struct Terms {
    /// The driver can flush.
    pub(super) can_flush: bool,
    /// How many queues the disk has.
    pub(super) queues: usize,
    /// Rung when the cache was turned off.
    pub(super) settle: Doorbell,
    /// The bell wakes this handler, as it does one of a disk's.
    pub(super) hears_settle: bool,
}

/// One queue's handler.
pub(super) struct BlockHandler {
    queue: Queue,
    stream: Box<dyn Stream>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    /// The driver can flush: without it, writes must always be stable.
    can_flush: bool,
    clock: Arc<dyn Clock>,
    /// Rung when the cache was turned off.
    settle: Doorbell,
    /// The bell wakes this handler, as it does one of a disk's.
    hears_settle: bool,
    /// What time it is for the requests being started or answered: looked at once for a batch.
    now: u64,
    /// Dropped after the stream, which may still use the memory that their chains keep mapped.
    slots: Vec<Slot>,
    /// Slots without a request, the one used last at the end: its memory is warm.
    free: Vec<u16>,
    /// Segments of the request being started.
    segments: Vec<Segment>,
    load: Load,
    /// Requests taken from the queue and not put back.
    taken: u64,
    /// The next request waits for some that are in flight.
    full: bool,
    /// Nothing new is to be started.
    quiescing: bool,
    /// Requests wait for the rate limit until then.
    throttled: Option<u64>,
    armed: bool,
    /// Chains were pushed since the driver was last told.
    pushed: bool,
}

/// What became of an attempt to start a request.
enum Started {
    Yes,
    /// There is none.
    Nothing,
    /// Not before that time.
    Throttled(u64),
    /// Not before others are over.
    Full,
}

impl BlockHandler {
    pub(super) fn new(
        queue: Queue,
        stream: Box<dyn Stream>,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
        clock: Arc<dyn Clock>,
        terms: Terms,
    ) -> Self {
        let Terms { can_flush, queues, settle, hears_settle } = terms;
        let size = queue.size();
        Self {
            queue,
            stream,
            shared,
            counters,
            can_flush,
            clock,
            settle,
            hears_settle,
            now: 0,
            slots: std::iter::repeat_with(Slot::new).take(usize::from(size)).collect(),
            free: (0..size).rev().collect(),
            segments: Vec::new(),
            load: Load::new(queues),
            taken: 0,
            full: false,
            quiescing: false,
            throttled: None,
            armed: false,
            pushed: false,
        }
    }

    fn idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether another request would be started if there were one.
    fn takes_more(&self) -> bool {
        self.throttled.is_none() && !self.full
    }

    /// Takes the next chain and starts what it asks for.
    fn start_next(&mut self) -> Started {
        if self.load.is_alone() {
            return Started::Full;
        }
        // Settling the cache takes a slot too, so that the driver may have made one more available.
        let Some(tag) = self.free.last().copied() else { return Started::Full };
        let idle = self.idle();
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return Started::Nothing };
        // An error has been told to the driver; nothing comes from the queue until it is reset.
        if !matches!(self.queue.pop(&mut slot.chain), Ok(true)) {
            return Started::Nothing;
        }
        let Some(room) = request::status_offset(&slot.chain) else {
            self.counters.refused.add(1);
            self.queue.fail(QueueError::Request("has no place for its status"));
            return Started::Nothing;
        };
        let parsed = if slot.chain.is_oversized() {
            Err(Status::IoError)
        } else {
            request::parse(&slot.chain, self.shared.image.size(), self.shared.image.read_only())
        };
        let cost = match parsed {
            Ok(Parsed::Read { length, .. } | Parsed::Write { length, .. }) => Cost::Transfer(length),
            Ok(Parsed::WriteZeroes { length, .. }) => Cost::Zeroes(length),
            Ok(Parsed::Discard { .. }) => Cost::Discard,
            _ => Cost::Nothing,
        };
        if !self.load.admits(cost, idle) {
            self.queue.unpop(slot.chain.token());
            return Started::Full;
        }
        if let Err(until) = self.shared.limit(cost.limited()) {
            self.queue.unpop(slot.chain.token());
            self.counters.throttled.add(1);
            return Started::Throttled(until);
        }
        self.free.pop();
        slot.cost = cost;
        slot.order = self.taken.wrapping_add(1);
        self.taken = slot.order;
        self.load.take(cost);
        match parsed {
            Ok(parsed) => self.start(tag, parsed, room),
            Err(status) => {
                self.counters.refused.add(1);
                self.answer(tag, status, 0);
            }
        }
        Started::Yes
    }

    fn start(&mut self, tag: u16, parsed: Parsed, room: u64) {
        let stable = self.write_through();
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        slot.since = self.now;
        match parsed {
            Parsed::Read { offset, length } => {
                slot.doing = Doing::Read { offset, length, begun: 0 };
                self.next_piece(tag);
            }
            Parsed::Write { offset, length } => {
                slot.doing = Doing::Write { offset, length, begun: 0, stable };
                self.next_piece(tag);
            }
            Parsed::Flush => self.flush(tag, Doing::Flush),
            Parsed::GetId { .. } => {
                let id = &self.shared.id;
                let id = id.get(..id.len().min(usize::try_from(room).unwrap_or(usize::MAX))).unwrap_or(id);
                let written = slot.chain.write_at(0, id) as u64;
                self.counters.get_ids.add(1);
                self.answer(tag, Status::Ok, written);
            }
            Parsed::Discard { ranges } => {
                slot.doing = Doing::Ranges(Ranges::discard(ranges));
                self.next_range(tag);
            }
            Parsed::WriteZeroes { ranges, length } => {
                slot.doing = Doing::Ranges(Ranges::zero(ranges, length, stable));
                self.next_range(tag);
            }
        }
    }

    /// The image is done with a request, or with a part of it.
    fn completed(&mut self, Completed { tag, result }: Completed) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        let doing = slot.doing;
        if let Some(begun) = slot.flush.take()
            && result.is_ok()
        {
            self.shared.cache.flushed(begun);
        }
        let took = self.now.saturating_sub(slot.since);
        if doing == Doing::Settle {
            return self.settled(tag, result);
        }
        if let Err(error) = result {
            self.count_error(doing, &error);
            return self.answer(tag, Status::IoError, 0);
        }
        match doing {
            Doing::Read { length, begun, .. } | Doing::Write { length, begun, .. } if begun < length => {
                self.next_piece(tag);
            }
            Doing::Write { offset, length, begun, stable } if self.must_flush(stable) => {
                self.flush(tag, Doing::Write { offset, length, begun, stable: true });
            }
            Doing::Read { length, .. } => {
                self.counters.reads.add(1);
                self.counters.read_bytes.add(length);
                self.counters.read_latency.record(took);
                self.answer(tag, Status::Ok, length);
            }
            Doing::Write { length, .. } => {
                self.counters.writes.add(1);
                self.counters.write_bytes.add(length);
                self.counters.write_latency.record(took);
                self.answer(tag, Status::Ok, 0);
            }
            Doing::Flush => {
                self.counters.flushes.add(1);
                self.counters.flush_latency.record(took);
                self.answer(tag, Status::Ok, 0);
            }
            Doing::Ranges(_) => self.next_range(tag),
            Doing::Nothing | Doing::Settle => {}
        }
    }

    fn count_error(&self, doing: Doing, error: &io::Error) {
        if error.raw_os_error() == Some(libc::ENOSPC) {
            self.counters.no_space.add(1);
        }
        // At the 1st, 2nd, 4th, 8th...: a broken disk fails every request a guest can make.
        let errors = self.counters.io_errors.add(1);
        if errors.is_power_of_two() {
            tracing::warn!(
                errors,
                "{}: the host failed a disk request ({doing:?}): {error}",
                self.shared.name
            );
            if let Some(on_error) = &self.shared.on_error {
                let operation = match doing {
                    Doing::Read { .. } => "read",
                    Doing::Write { .. } => "write",
                    Doing::Flush | Doing::Settle => "flush",
                    Doing::Ranges(Ranges { zero: true, .. }) => "write zeroes",
                    Doing::Ranges(Ranges { zero: false, .. }) => "discard",
                    _ => "request",
                };
                on_error(&HostError { operation: operation.into(), reason: error.to_string(), errors });
            }
        }
    }

    /// Gives a request's chain back to the driver, `written` bytes of data before the status.
    fn answer(&mut self, tag: u16, status: Status, written: u64) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        // What was copied from guest memory may not be what the guest wrote.
        let status = if status == Status::Ok && memory::is_lost() { Status::IoError } else { status };
        let at = request::status_offset(&slot.chain).unwrap_or(0);
        let status = slot.chain.write_at(at, &[status as u8]) as u64;
        // All bytes up to the status are only said to be written if they were.
        let written = match written {
            _ if slot.chain.is_oversized() => 0,
            written if written == at => at.saturating_add(status),
            written => written,
        };
        self.queue.push(slot.chain.token(), u32::try_from(written).unwrap_or(u32::MAX));
        self.pushed = true;
        self.release(tag);
    }

    /// A slot's request is over or put back: there is room for another.
    fn release(&mut self, tag: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            slot.doing = Doing::Nothing;
            self.load.give_back(std::mem::take(&mut slot.cost));
        }
        self.full = false;
        self.free.push(tag);
    }

    /// Takes what the image has done by now.
    fn take_completed(&mut self) {
        let Some(first) = self.stream.complete() else { return };
        self.look_at_clock();
        self.completed(first);
        self.take_seen();
    }

    /// Takes what the image has done, as of the last look at the clock.
    fn take_seen(&mut self) {
        while let Some(completed) = self.stream.complete() {
            self.completed(completed);
        }
    }

    fn look_at_clock(&mut self) {
        if COUNTED {
            self.now = self.clock.interval_ns();
        }
    }

    fn tell_driver(&mut self) {
        if std::mem::take(&mut self.pushed) {
            self.queue.notify();
        }
    }

    fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.stream.disarm();
            self.queue.disable_notifications();
        }
    }
}

impl QueueHandler for BlockHandler {
    fn run(&mut self, now: u64) -> Progress {
        self.now = now;
        self.disarm();
        self.quiescing = false;
        self.load.begin_run();
        self.take_seen();
        self.settle();
        self.throttled = None;
        self.full = false;
        let mut progress = Progress::More;
        let mut batch = 0_u32;
        for _ in 0..BUDGET {
            match self.start_next() {
                Started::Yes => {
                    batch = batch.saturating_add(1);
                    if batch >= BATCH {
                        batch = 0;
                        self.stream.kick();
                        self.take_completed();
                        self.queue.flush();
                        self.look_at_clock();
                    }
                    if !self.load.ends_run() {
                        continue;
                    }
                }
                Started::Nothing => progress = Progress::Idle,
                Started::Throttled(until) => {
                    self.throttled = Some(until);
                    progress = Progress::Until(until);
                }
                Started::Full => {
                    self.full = true;
                    progress = Progress::Idle;
                }
            }
            break;
        }
        self.stream.kick();
        self.take_completed();
        // There may be a slot for it only now, and no event to come.
        self.settle();
        // What completions made necessary, such as the rest of a short transfer.
        self.stream.kick();
        self.tell_driver();
        progress
    }

    fn arm(&mut self) -> bool {
        self.armed = true;
        let stream = self.stream.arm();
        // Requests that must wait are no reason to wake up.
        let queue = self.takes_more() && self.queue.enable_notifications();
        stream || queue
    }

    fn has_work(&self) -> bool {
        (self.takes_more() && self.queue.has_available()) || self.stream.has_work()
    }

    fn event_sources(&self) -> Vec<RawFd> {
        let settle = self.hears_settle.then(|| self.settle.as_raw_fd());
        [self.stream.event()].into_iter().chain(settle).collect()
    }

    fn quiesce(&mut self) -> bool {
        self.disarm();
        self.quiescing = true;
        loop {
            self.stream.kick();
            self.take_completed();
            self.settle();
            if self.idle() {
                break;
            }
            // The rest ends later, and wakes the worker.
            self.armed = true;
            if !self.stream.arm() {
                break;
            }
            self.disarm();
        }
        self.tell_driver();
        self.idle()
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        let Self { queue, stream, .. } = *self;
        // Waits for what is in flight, which is nothing when quiescent.
        drop(stream);
        vec![queue]
    }
}

machine::inspect!(BlockHandler, this => {
    engine: this.stream.engine(),
    in_flight: this.slots.len().saturating_sub(this.free.len()),
    room_for_segments: this.slots.iter().map(|slot| slot.chain.room()).sum::<usize>(),
    throttled: this.throttled.is_some(),
    full,
    counters,
    queue,
});
