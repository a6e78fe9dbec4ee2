//! A disk with its handlers and a driver, all in one thread.

use crate::image::Image;
use crate::virtio_blk::config::FLUSH;
use crate::virtio_blk::{Block, BlockOptions};
use machine::clock::{Clock, SystemClock};
use machine::inspect::Inspect;
use machine::memory::{Bytes, GuestAddress, Memory};
use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use virtio::device::{
    ActivateError, Activation, ConfigChange, Progress, QueueHandler, QueueTask, VirtioDevice,
};
use virtio::features::Features;
use virtio::queue::Queue;
use virtio::testing::{self, Buffer, DriverRing, Events};

const MEMORY: usize = 16 << 20;
const RINGS: u64 = 0x1000;
/// Where requests are laid out, each in a place of its own.
const REQUESTS: u64 = 0x10_0000;
const REQUEST_SPACE: u64 = 0xa_0000;
const PLACES: u64 = 16;
/// Of which the first part is for the descriptors.
const TABLE_SPACE: u64 = 0x8000;

/// Where long requests have their data, over and over.
const LONG: u64 = 0xb0_0000;

/// A request to be made.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    readable: Vec<u8>,
    room: u32,
    status: bool,
    readable_cuts: Vec<u32>,
    writable_cuts: Vec<u32>,
    indirect: bool,
}

impl Wanted {
    pub(super) fn new(kind: u32, sector: u64) -> Self {
        let header =
            [&kind.to_le_bytes()[..], &0xdead_beef_u32.to_le_bytes(), &sector.to_le_bytes()].concat();
        Self::raw(&header)
    }

    /// With these readable bytes.
    pub(super) fn raw(readable: &[u8]) -> Self {
        Self {
            readable: readable.into(),
            room: 0,
            status: true,
            readable_cuts: vec![16],
            writable_cuts: vec![],
            indirect: false,
        }
    }

    /// Adds data for the device to read.
    pub(super) fn data(mut self, data: &[u8]) -> Self {
        self.readable.extend(data);
        self
    }

    /// Adds room for the device to write to, before the status.
    pub(super) fn room(mut self, room: u32) -> Self {
        self.writable_cuts = vec![room];
        self.room = room;
        self
    }

    pub(super) fn room_len(&self) -> usize {
        self.room as usize
    }

    pub(super) fn without_status(mut self) -> Self {
        self.status = false;
        self
    }

    /// Puts the readable and the writable bytes into descriptors of these lengths, the rest into one each.
    pub(super) fn cut(mut self, readable: Vec<u32>, writable: Vec<u32>) -> Self {
        self.readable_cuts = readable;
        self.writable_cuts = writable;
        self
    }

    pub(super) fn indirect(mut self) -> Self {
        self.indirect = true;
        self
    }
}

/// How a request ended.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u8,
    /// What is in the room before the status: 0xaa where nothing was written.
    pub(super) data: Vec<u8>,
    pub(super) written: u32,
}

struct Pending {
    order: u64,
    place: u64,
    writable: u64,
    room: u32,
}

pub(super) struct Rig {
    block: Block,
    memory: Memory,
    features: u64,
    layout: Features,
    ring: DriverRing,
    events: Arc<Events>,
    clock: Arc<SystemClock>,
    config_changes: Arc<AtomicU64>,
    tasks: Vec<QueueTask>,
    pending: BTreeMap<u16, Pending>,
    free: Vec<u64>,
    submitted: u64,
}

impl Rig {
    /// With all features that one queue can have.
    pub(super) fn new(image: Arc<dyn Image>, options: BlockOptions, layout: Features) -> Self {
        Self::accepting(image, options, layout, !0)
    }

    /// With those of the device's features.
    pub(super) fn accepting(
        image: Arc<dyn Image>,
        options: BlockOptions,
        layout: Features,
        accepted: u64,
    ) -> Self {
        let block = Block::new(image, options).unwrap();
        let accepted = accepted & block.features();
        assert_eq!(block.features() & FLUSH, FLUSH);
        Self::of(block, layout, accepted, 1)
    }

    pub(super) fn of(block: Block, layout: Features, accepted: u64, queues: u16) -> Self {
        let memory = testing::memory(MEMORY);
        let ring = DriverRing::new(&memory, RINGS, 16, layout);
        let mut rig = Self {
            block,
            features: layout.bits() | accepted,
            layout,
            ring,
            memory,
            events: Arc::default(),
            config_changes: Arc::default(),
            clock: Arc::new(SystemClock::new()),
            tasks: vec![],
            pending: BTreeMap::new(),
            free: (0..PLACES).collect(),
            submitted: 0,
        };
        let indices: Vec<u16> = (0..queues).collect();
        rig.tasks = rig.try_activate(rig.features, &indices).unwrap();
        rig
    }

    /// Activates the device with these queues, of which only the first is used by the driver.
    pub(super) fn try_activate(
        &mut self,
        features: u64,
        queues: &[u16],
    ) -> Result<Vec<QueueTask>, ActivateError> {
        let queue = |index: &u16| {
            let base = RINGS + u64::from(*index) * DriverRing::footprint(16);
            let ring = DriverRing::new(&self.memory, base, 16, self.layout);
            let events = self.events.clone();
            (*index, Queue::new(&ring.state(), features, self.memory.clone(), events).unwrap())
        };
        let queues = queues.iter().map(queue).collect();
        let changes = Arc::clone(&self.config_changes);
        self.block.activate(Activation {
            features,
            memory: self.memory.clone(),
            queues,
            config_changed: ConfigChange::new(move || {
                changes.fetch_add(1, Ordering::SeqCst);
            }),
            clock: self.clock.clone(),
        })
    }

    /// As a driver that starts over.
    pub(super) fn reset(&mut self) {
        assert!(self.quiesce());
        self.tasks.clear();
        self.block.reset();
        self.events = Arc::default();
        self.pending.clear();
        self.free = (0..PLACES).collect();
        self.ring = DriverRing::new(&self.memory, RINGS, 16, self.layout);
        self.tasks = self.try_activate(self.features, &[0]).unwrap();
    }

    pub(super) fn device(&mut self) -> &mut Block {
        &mut self.block
    }

    fn handler(&mut self) -> &mut dyn QueueHandler {
        self.tasks[0].handler.as_mut()
    }

    /// What each handler waits for.
    pub(super) fn event_sources(&self) -> Vec<Vec<RawFd>> {
        self.tasks.iter().map(|task| task.handler.event_sources()).collect()
    }

    pub(super) fn handlers(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn interrupts(&self) -> u64 {
        self.events.interrupts()
    }

    pub(super) fn is_broken(&self) -> bool {
        self.events.is_broken()
    }

    pub(super) fn config_changes(&self) -> u64 {
        self.config_changes.load(Ordering::SeqCst)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.ring.in_flight()
    }

    /// One of the first queue's counters.
    pub(super) fn counter(&mut self, name: &str) -> u64 {
        let counter = self.block.inspect()["queues"][0][name].as_u64().unwrap();
        assert_eq!(self.handler().inspect()["counters"][name].as_u64(), Some(counter));
        counter
    }

    /// What the handler shows of itself.
    pub(super) fn inspect(&mut self) -> machine::inspect::Value {
        self.handler().inspect()
    }

    pub(super) fn has_work(&mut self) -> bool {
        self.handler().has_work()
    }

    pub(super) fn arm(&mut self) -> bool {
        self.handler().arm()
    }

    pub(super) fn quiesce(&mut self) -> bool {
        self.handler().quiesce()
    }

    pub(super) fn run_once(&mut self) -> Progress {
        let now = self.clock.interval_ns();
        self.handler().run(now)
    }

    /// Lays a request out in guest memory and makes it available.
    pub(super) fn submit(&mut self, wanted: &Wanted) {
        let place = self.free.pop().expect("not more requests at once than places");
        let base = REQUESTS + place * REQUEST_SPACE;
        let table = base;
        let readable = base + TABLE_SPACE;
        let writable = (readable + wanted.readable.len() as u64).next_multiple_of(512);
        let writable_len = wanted.room + u32::from(wanted.status);
        assert!(writable + u64::from(writable_len) <= base + REQUEST_SPACE);
        self.memory.write_slice(&wanted.readable, GuestAddress(readable)).unwrap();
        self.memory.write_slice(&vec![0xaa; writable_len as usize], GuestAddress(writable)).unwrap();
        let mut buffers = vec![];
        cut(&mut buffers, readable, wanted.readable.len() as u32, &wanted.readable_cuts, false);
        cut(&mut buffers, writable, writable_len, &wanted.writable_cuts, true);
        let indirect = wanted.indirect || buffers.len() > usize::from(self.ring.room());
        let id = if indirect { self.ring.add_indirect(table, &buffers) } else { self.ring.add(&buffers) };
        let room = wanted.room;
        self.submitted += 1;
        let pending = Pending { order: self.submitted, place, writable, room };
        assert!(self.pending.insert(id.expect("the ring has room"), pending).is_none());
    }

    /// Makes a request of `count` times the same `length` bytes of guest memory available.
    pub(super) fn submit_long(&mut self, kind: u32, sector: u64, length: u32, count: usize) {
        let place = self.free.pop().expect("not more requests at once than places");
        let table = REQUESTS + place * REQUEST_SPACE;
        let (header, status) = (table + TABLE_SPACE, table + TABLE_SPACE + 16);
        let bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.write_slice(&bytes, GuestAddress(header)).unwrap();
        let writable = kind == 0;
        let mut buffers = vec![Buffer { address: header, len: 16, writable: false }];
        buffers.resize(1 + count, Buffer { address: LONG, len: length, writable });
        buffers.push(Buffer { address: status, len: 1, writable: true });
        let id = self.ring.add_indirect(table, &buffers).expect("the ring has room");
        self.submitted += 1;
        let pending = Pending { order: self.submitted, place, writable: status, room: 0 };
        assert!(self.pending.insert(id, pending).is_none());
    }

    /// Changes the ranges of the request in place `place`, counted from the first one that was made.
    pub(super) fn overwrite_ranges(&mut self, place: u64, ranges: &[u8]) {
        let header = REQUESTS + (PLACES - 1 - place) * REQUEST_SPACE + TABLE_SPACE;
        self.memory.write_slice(ranges, GuestAddress(header + 16)).unwrap();
    }

    /// Takes what the device answered, in the order of submission.
    pub(super) fn answers(&mut self) -> Vec<Answer> {
        let mut answers = BTreeMap::new();
        while let Some(used) = self.ring.take_used() {
            let pending = self.pending.remove(&used.id).unwrap();
            self.free.push(pending.place);
            let mut data = vec![0; pending.room as usize + 1];
            self.memory.read_slice(&mut data, GuestAddress(pending.writable)).unwrap();
            let status = data.pop().unwrap();
            answers.insert(pending.order, Answer { status, data, written: used.written });
        }
        answers.into_values().collect()
    }

    /// Runs the handler as a worker does, until it has nothing to do or waits for the clock.
    pub(super) fn finish(&mut self) -> Progress {
        loop {
            let progress = self.run_once();
            if progress == Progress::More || self.handler().has_work() || self.handler().arm() {
                continue;
            }
            if self.handler().inspect()["in_flight"] == 0 {
                return progress;
            }
            let event = self.handler().event_sources()[0];
            let mut ready = libc::pollfd { fd: event, events: libc::POLLIN, revents: 0 };
            // SAFETY: one `pollfd` is passed.
            assert_eq!(unsafe { libc::poll(&raw mut ready, 1, 10_000) }, 1, "requests in flight end");
        }
    }

    /// Makes requests, all at once, and returns the answers in their order.
    pub(super) fn requests(&mut self, wanted: Vec<Wanted>) -> Vec<Answer> {
        let count = wanted.len();
        for wanted in wanted {
            self.submit(&wanted);
        }
        assert_eq!(self.finish(), Progress::Idle);
        let answers = self.answers();
        assert_eq!(answers.len(), count);
        answers
    }

    pub(super) fn request(&mut self, wanted: Wanted) -> Answer {
        self.requests(vec![wanted]).remove(0)
    }
}

/// Cuts bytes of guest memory into buffers.
fn cut(buffers: &mut Vec<Buffer>, address: u64, len: u32, cuts: &[u32], writable: bool) {
    let (mut address, mut left) = (address, len);
    for len in cuts.iter().copied().chain([u32::MAX]) {
        let len = len.min(left);
        if len > 0 {
            buffers.push(Buffer { address, len, writable });
        }
        address += u64::from(len);
        left -= len;
    }
}
