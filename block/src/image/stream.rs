//! How requests for a raw image become operations on its file.
//!
//! A request is a short sequence of steps, one operation each: a transfer goes on where a short one ended, zeroing falls
//! back from what the file system can do at once to writing zeroes, and what must be stable ends with a sync
//! unless the write itself was.

use super::bounce::Bounce;
use super::page_cache::PageCache;
use super::{Completed, Request, Stream};
use crate::engine::{Completion, Engine, FileIndex, Operation, Segments};
use crate::host::DirectAlignment;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use virtio::chain::Segment;

/// How often an operation is tried again that the host puts off without having done anything.
const RETRIES: u8 = 16;

/// Zeroes to write from.
#[repr(align(4096))]
struct Zeroes([u8; 64 << 10]);
static ZEROES: Zeroes = Zeroes([0; 64 << 10]);
const ZEROES_SIZE: u64 = 64 << 10;
/// The most zeroes written by one operation.
const ZEROES_MAX: u64 = 1 << 20;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What the file behind an image wants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layout {
    /// Alignment that direct I/O requires; `None` for I/O through the page cache.
    pub(crate) alignment: Option<DirectAlignment>,
    /// It is a block device.
    pub(crate) device: bool,
    /// The disk's block size.
    pub(crate) logical_block: u32,
}

/// What a request is doing now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Idle,
    /// Transfers straight from or to the segments.
    Transfer,
    /// Waits for the bounce buffer.
    AwaitBounce,
    /// Transfers through the bounce buffer.
    Bounce,
    /// Deallocates, so that zeroes are read.
    Punch,
    /// Has the file system zero the range.
    ZeroRange,
    /// Writes zeroes.
    ZeroFill,
    /// Deallocates because the guest does not need it.
    Discard,
    /// Syncs.
    Sync,
}

#[derive(Default)]
struct Slot {
    step: Step,
    write: bool,
    stable: bool,
    retries: u8,
    /// What is transferred, without empty ones.
    segments: Vec<Segment>,
    /// How many at the front are done with.
    done: usize,
    offset: u64,
    left: u64,
}

/// One queue's way to a raw image.
pub struct RawStream {
    engine: Box<dyn Engine>,
    slots: Vec<Slot>,
    layout: Layout,
    page_cache: Option<Arc<PageCache>>,
    bounce: Option<Bounce>,
    /// The request that has the bounce buffer, and those that wait for it.
    bouncing: Option<u16>,
    awaiting: VecDeque<u16>,
    /// Requests that were over without an operation.
    ready: VecDeque<Completed>,
    no_punch: bool,
    no_zero_range: bool,
    no_discard: bool,
}

impl RawStream {
    pub(crate) fn new(
        engine: Box<dyn Engine>,
        depth: u16,
        layout: Layout,
        page_cache: Option<Arc<PageCache>>,
    ) -> Self {
        let depth = usize::from(depth);
        Self {
            engine,
            slots: std::iter::repeat_with(Slot::default).take(depth).collect(),
            layout,
            page_cache,
            bounce: None,
            bouncing: None,
            awaiting: VecDeque::new(),
            ready: VecDeque::with_capacity(depth),
            no_punch: false,
            no_zero_range: false,
            no_discard: false,
        }
    }

    fn end(&mut self, tag: u16, result: io::Result<()>) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            slot.step = Step::Idle;
            slot.segments.clear();
        }
        if self.bouncing == Some(tag) {
            self.bouncing = self.awaiting.pop_front();
            if let Some(next) = self.bouncing {
                self.begin(next, Step::Bounce);
            }
        }
        self.ready.push_back(Completed { tag, result });
    }

    /// Puts a transfer on its way: straight if its segments are aligned as the file wants.
    fn transfer(&mut self, tag: u16) {
        let Some(slot) = self.slots.get(usize::from(tag)) else { return };
        if slot.left == 0 {
            return self.end(tag, Ok(()));
        }
        let Some(alignment) = self.layout.alignment else { return self.begin(tag, Step::Transfer) };
        let within = |number: u64, unit: u32| number & u64::from(unit).wrapping_sub(1) == 0;
        if !within(slot.offset | slot.left, alignment.offset) {
            // The guest was told the block size and does not respect it.
            return self.end(tag, Err(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        let aligned = |segment: &Segment| {
            within(segment.as_ptr().addr() as u64, alignment.memory)
                && within(segment.len() as u64, alignment.offset)
        };
        if slot.segments.iter().all(aligned) {
            self.begin(tag, Step::Transfer);
        } else if self.bouncing.is_none() {
            self.bouncing = Some(tag);
            self.begin(tag, Step::Bounce);
        } else {
            self.awaiting.push_back(tag);
            if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
                slot.step = Step::AwaitBounce;
            }
        }
    }

    fn begin(&mut self, tag: u16, step: Step) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            slot.step = step;
            slot.retries = 0;
        }
        self.issue(tag);
    }

    /// Submits the operation that a request's step is made of, from where it got to.
    fn issue(&mut self, tag: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        let (offset, length, patient) = (slot.offset, slot.left, slot.retries > 0);
        let mut first = slot.done;
        match slot.step {
            Step::Bounce => {
                let bounce = self.bounce.get_or_insert_with(Bounce::new);
                if slot.write {
                    let from = slot.segments.get(first..).unwrap_or_default();
                    // SAFETY: who submitted the request keeps its memory mapped, and the buffer is this request's.
                    unsafe { bounce.fill(from, length) };
                }
                // Behind the request's own segments until the operation is over.
                first = slot.segments.len();
                slot.segments.push(bounce.segment(length));
            }
            Step::ZeroFill => {
                first = 0;
                slot.segments.clear();
                let mut room = length.min(ZEROES_MAX);
                while room > 0 {
                    let part = room.min(ZEROES_SIZE);
                    slot.segments.push(Segment::new(ZEROES.0.as_ptr().cast_mut(), part as usize));
                    room = room.saturating_sub(part);
                }
            }
            _ => {}
        }
        let segments = Segments::of(slot.segments.get(first..).unwrap_or_default());
        let operation = match slot.step {
            Step::Transfer | Step::Bounce if !slot.write => {
                Operation::Read { offset, into: segments, patient }
            }
            Step::Transfer | Step::Bounce | Step::ZeroFill => {
                Operation::Write { offset, from: segments, stable: slot.stable, patient }
            }
            Step::Punch => Operation::Allocate { mode: PUNCH, offset, length },
            Step::ZeroRange => Operation::Allocate { mode: ZERO, offset, length },
            Step::Discard if self.layout.device => Operation::DiscardDevice { offset, length },
            Step::Discard => Operation::Allocate { mode: PUNCH, offset, length },
            Step::Sync => Operation::Sync,
            Step::Idle | Step::AwaitBounce => return,
        };
        // SAFETY: the array of segments is the slot's, which is left alone until the operation is over; the memory
        // behind is the requester's promise, the bounce buffer or static.
        unsafe { self.engine.submit(u32::from(tag), FileIndex(0), operation) };
    }

    /// An operation is over: goes on with its request.
    fn advance(&mut self, completion: Completion) {
        let Ok(tag) = u16::try_from(completion.tag) else { return };
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        if slot.step == Step::Bounce {
            slot.segments.pop();
        }
        let count = match completion.result {
            Ok(count) => u64::from(count),
            Err(error) => return self.failed(tag, error),
        };
        slot.retries = 0;
        match slot.step {
            Step::Transfer | Step::Bounce | Step::ZeroFill => {
                if count == 0 || count > slot.left {
                    // The file ends before the disk does: somebody cut it.
                    return self.end(tag, Err(io::ErrorKind::UnexpectedEof.into()));
                }
                if slot.step == Step::Bounce
                    && !slot.write
                    && let Some(bounce) = &self.bounce
                {
                    // SAFETY: who submitted the request keeps its memory mapped, and the operation is over.
                    unsafe { bounce.empty(slot.segments.get(slot.done..).unwrap_or_default(), count) };
                }
                if slot.step != Step::ZeroFill {
                    slot.consume(count);
                }
                slot.offset = slot.offset.saturating_add(count);
                slot.left = slot.left.saturating_sub(count);
                if slot.left == 0 { self.end(tag, Ok(())) } else { self.issue(tag) }
            }
            Step::Punch | Step::ZeroRange if slot.stable => self.begin(tag, Step::Sync),
            Step::Sync => self.synced(tag, Ok(())),
            Step::Punch | Step::ZeroRange | Step::Discard => self.end(tag, Ok(())),
            Step::Idle | Step::AwaitBounce => {}
        }
    }

    /// A sync is over, or a write that includes one failed in a way that may come from it.
    fn synced(&mut self, tag: u16, result: io::Result<()>) {
        let result = match &self.page_cache {
            Some(cache) => cache.synced(result),
            None => result,
        };
        self.end(tag, result);
    }

    fn failed(&mut self, tag: u16, error: io::Error) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        if matches!(errno, libc::EAGAIN | libc::EINTR) && slot.retries < RETRIES {
            slot.retries = slot.retries.saturating_add(1);
            return self.issue(tag);
        }
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY);
        // A device refuses ranges that are not whole blocks of its own.
        let next = match slot.step {
            Step::Sync => return self.synced(tag, Err(error)),
            Step::Transfer | Step::ZeroFill if slot.stable && errno == libc::EIO => {
                return self.synced(tag, Err(error));
            }
            _ if !unsupported && errno != libc::EINVAL => None,
            Step::Punch => {
                self.no_punch |= unsupported;
                Some(if self.no_zero_range { Step::ZeroFill } else { Step::ZeroRange })
            }
            Step::ZeroRange => {
                self.no_zero_range |= unsupported;
                Some(Step::ZeroFill)
            }
            Step::Discard => {
                // The guest only hinted that it does not need the range.
                self.no_discard |= unsupported;
                return self.end(tag, Ok(()));
            }
            _ => None,
        };
        match next {
            Some(next) => self.begin(tag, next),
            None => self.end(tag, Err(error)),
        }
    }
}

impl Slot {
    /// Takes `count` bytes from the front of the segments.
    fn consume(&mut self, count: u64) {
        let mut count = count;
        while count > 0
            && let Some(segment) = self.segments.get_mut(self.done)
        {
            let length = segment.len() as u64;
            if count < length {
                *segment = segment.part(count as usize, usize::MAX);
                return;
            }
            count = count.saturating_sub(length);
            self.done = self.done.saturating_add(1);
        }
    }
}

impl Stream for RawStream {
    fn engine(&self) -> &'static str {
        self.engine.name()
    }

    unsafe fn submit(&mut self, tag: u16, request: Request<'_>) {
        let (no_punch, no_zero_range, no_discard) = (self.no_punch, self.no_zero_range, self.no_discard);
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        slot.segments.clear();
        slot.done = 0;
        slot.retries = 0;
        slot.write = !matches!(request, Request::Read { .. });
        slot.stable = false;
        match request {
            Request::Read { offset, into: segments } | Request::Write { offset, from: segments, .. } => {
                if let Request::Write { stable, .. } = request {
                    slot.stable = stable;
                }
                slot.segments.extend(segments.iter().filter(|segment| !segment.is_empty()));
                slot.offset = offset;
                let length = |sum: u64, segment: &Segment| sum.saturating_add(segment.len() as u64);
                slot.left = slot.segments.iter().fold(0, length);
                self.transfer(tag);
            }
            Request::Flush => self.begin(tag, Step::Sync),
            Request::Discard { offset, length } => {
                // What does not fill a block is kept.
                let block = u64::from(self.layout.logical_block.max(1));
                let start = offset.div_ceil(block).saturating_mul(block);
                let end = offset.saturating_add(length);
                let end = end.saturating_sub(end.checked_rem(block).unwrap_or(0));
                slot.offset = start;
                slot.left = end.saturating_sub(start);
                if no_discard || slot.left == 0 {
                    self.end(tag, Ok(()));
                } else {
                    self.begin(tag, Step::Discard);
                }
            }
            Request::WriteZeroes { offset, length, unmap, stable } => {
                slot.stable = stable;
                slot.offset = offset;
                slot.left = length;
                if length == 0 {
                    self.end(tag, Ok(()));
                } else if unmap && !no_punch {
                    self.begin(tag, Step::Punch);
                } else if !no_zero_range {
                    self.begin(tag, Step::ZeroRange);
                } else {
                    self.begin(tag, Step::ZeroFill);
                }
            }
        }
    }

    fn kick(&mut self) {
        self.engine.kick();
    }

    fn complete(&mut self) -> Option<Completed> {
        loop {
            if let Some(completed) = self.ready.pop_front() {
                return Some(completed);
            }
            let completion = self.engine.complete()?;
            self.advance(completion);
        }
    }

    fn has_work(&self) -> bool {
        !self.ready.is_empty() || self.engine.has_work()
    }

    fn arm(&mut self) -> bool {
        self.engine.kick();
        // Not just one of the two: the engine must be armed in any case.
        let engine = self.engine.arm();
        engine || !self.ready.is_empty()
    }

    fn disarm(&mut self) {
        self.engine.disarm();
    }

    fn event(&self) -> RawFd {
        self.engine.event()
    }
}
