//! Queues against the driver's side as written from the specification, against another implementation, and against drivers
//! that misbehave.

mod hostile;
mod timing;

use super::*;
use crate::testing::{Buffer, DriverRing, Events, Used, memory};
use machine::memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestRam};
use proptest::prelude::*;
use std::collections::VecDeque;

const RING: u64 = 0x1000;
const TABLES: u64 = 0x20_0000;
const DATA: u64 = 0x30_0000;
const RAM: usize = 0x40_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn features(packed: bool, event_idx: bool) -> Features {
    let mut features = Features::VERSION_1 | Features::INDIRECT_DESC;
    features.set(Features::RING_PACKED, packed);
    features.set(Features::EVENT_IDX, event_idx);
    features
}

struct Pair {
    driver: DriverRing,
    device: Queue,
    events: Arc<Events>,
    memory: Memory,
    chain: Chain,
}

impl Pair {
    fn new(size: u16, features: Features) -> Self {
        let memory = memory(RAM);
        let driver = DriverRing::new(&memory, RING, size, features);
        let events = Arc::new(Events::default());
        let device =
            Queue::new(&driver.state(), features.bits(), memory.clone(), events.clone()).expect("valid");
        Self { driver, device, events, memory, chain: Chain::new() }
    }

    fn pop(&mut self) -> Result<bool, QueueError> {
        self.device.pop(&mut self.chain)
    }

    /// Serves a batch of requests of one buffer; returns how many interrupts came of it.
    fn serve(&mut self, count: u16) -> u64 {
        for _ in 0..count {
            self.driver.add(&[readable(DATA, 1)]).unwrap();
            assert!(self.pop().unwrap());
            self.device.push(self.chain.token(), 0);
        }
        let before = self.events.interrupts();
        self.device.notify();
        self.events.interrupts() - before
    }

    /// Adds a chain of raw descriptors and says how popping it fails.
    fn pop_raw(&mut self, descriptors: &[(u64, u32, u16)]) -> QueueError {
        self.driver.add_raw(descriptors).expect("room");
        let error = self.pop().expect_err("the chain is malformed");
        assert!(self.events.is_broken(), "the driver is told");
        assert_eq!(self.pop(), Err(QueueError::Broken));
        assert!(!self.device.has_available(), "nobody polls a broken queue");
        error
    }

    /// The chain popped last, as the buffers the driver named, neighbours joined.
    fn buffers(&self) -> Vec<Buffer> {
        let base = self.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let buffer = |segment: &crate::chain::Segment, writable| Buffer {
            address: segment.as_ptr() as u64 - base,
            len: segment.len() as u32,
            writable,
        };
        let readable = self.chain.readable().iter().map(|s| buffer(s, false));
        readable.chain(self.chain.writable().iter().map(|s| buffer(s, true))).collect()
    }
}

fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

fn layouts() -> [Features; 4] {
    [features(false, false), features(false, true), features(true, false), features(true, true)]
}

#[derive(Clone, Debug)]
enum Step {
    Add {
        buffers: Vec<(u32, bool)>,
        indirect: bool,
    },
    Pop,
    Unpop,
    /// Gives back the chain at this place among those popped, with this length.
    Push(usize, u32),
    Notify,
    TakeUsed,
    Arm,
    Disarm,
    Interrupts(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let buffers = (prop::collection::vec((1..9_u32, any::<bool>()), 1..5), any::<bool>());
    prop_oneof![
        4 => buffers.prop_map(|(buffers, indirect)| Step::Add { buffers, indirect }),
        4 => Just(Step::Pop),
        1 => Just(Step::Unpop),
        4 => (any::<usize>(), any::<u32>()).prop_map(|(at, len)| Step::Push(at, len)),
        3 => Just(Step::Notify),
        4 => Just(Step::TakeUsed),
        1 => Just(Step::Arm),
        1 => Just(Step::Disarm),
        1 => any::<bool>().prop_map(Step::Interrupts),
    ]
}

/// What both sides should hold, in the plainest form.
#[derive(Default)]
struct Model {
    waiting: VecDeque<(u16, Vec<Buffer>)>,
    popped: Vec<(Token, u16, Vec<Buffer>)>,
    /// The last of `popped` is the last pop of all.
    newest_popped: bool,
    pushed: VecDeque<Used>,
    shown: VecDeque<Used>,
    /// The device asked for a doorbell and saw nothing waiting.
    armed: bool,
    /// The driver wants an interrupt and took all it was shown.
    expectant: bool,
    data: u64,
}

fn run_steps(size: u16, features: Features, steps: Vec<Step>) {
    let mut pair = Pair::new(size, features);
    let mut model = Model { data: DATA, expectant: true, ..Model::default() };
    let mut tables = TABLES;
    for step in steps {
        match step {
            Step::Add { mut buffers, indirect } => {
                buffers.sort_by_key(|&(_, writable)| writable);
                let buffers: Vec<Buffer> = buffers
                    .into_iter()
                    .map(|(len, writable)| {
                        model.data += 16;
                        Buffer { address: model.data, len, writable }
                    })
                    .collect();
                let added = if indirect {
                    let table = tables;
                    tables += 16 * buffers.len() as u64;
                    pair.driver.add_indirect(table, &buffers)
                } else {
                    pair.driver.add(&buffers)
                };
                if let Some(id) = added {
                    let rung = pair.driver.take_kick();
                    assert!(rung || !model.armed, "a device that waits is told");
                    model.armed = false;
                    model.waiting.push_back((id, buffers));
                }
            }
            Step::Pop => {
                let popped = pair.pop().expect("the driver behaves");
                assert_eq!(popped, !model.waiting.is_empty());
                if let Some((id, buffers)) = model.waiting.pop_front() {
                    assert_eq!(pair.chain.token().id(), id);
                    assert_eq!(pair.buffers(), buffers);
                    model.popped.push((pair.chain.token(), id, buffers));
                    model.newest_popped = true;
                }
            }
            Step::Unpop => {
                let next = pair.device.state().next_available;
                if model.newest_popped
                    && let Some((token, id, buffers)) = model.popped.pop()
                {
                    pair.device.unpop(token);
                    assert!(pair.pop().unwrap());
                    assert_eq!(pair.buffers(), buffers);
                    assert_eq!(pair.chain.token(), token);
                    assert_eq!(pair.device.state().next_available, next);
                    model.popped.push((token, id, buffers));
                }
            }
            Step::Push(at, len) => {
                if !model.popped.is_empty() {
                    let at = at % model.popped.len();
                    model.newest_popped &= at + 1 < model.popped.len();
                    let (token, id, _) = model.popped.remove(at);
                    pair.device.push(token, len);
                    model.pushed.push_back(Used { id, written: len });
                }
            }
            Step::Notify => {
                let before = pair.events.interrupts();
                pair.device.notify();
                let interrupted = pair.events.interrupts() > before;
                if !model.pushed.is_empty() {
                    assert!(interrupted || !model.expectant, "a driver that waits is told");
                    model.expectant = false;
                } else {
                    assert!(!interrupted, "nothing happened");
                }
                model.shown.append(&mut model.pushed);
            }
            Step::TakeUsed => {
                assert_eq!(pair.driver.take_used(), model.shown.pop_front());
            }
            Step::Arm => {
                assert_eq!(pair.device.enable_notifications(), !model.waiting.is_empty());
                model.armed = model.waiting.is_empty();
            }
            Step::Disarm => {
                pair.device.disable_notifications();
                model.armed = false;
            }
            Step::Interrupts(wanted) => {
                pair.driver.set_interrupts(wanted);
                model.expectant = wanted && model.shown.is_empty();
            }
        }
        assert_eq!(pair.device.has_available(), !model.waiting.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_split_queue_does_what_the_model_does(
        order in 0..5_u32, event_idx: bool, steps in prop::collection::vec(step(), 0..300)
    ) {
        run_steps(1 << order, features(false, event_idx), steps);
    }

    #[test]
    fn a_packed_queue_does_what_the_model_does(
        size in 1..17_u16, event_idx: bool, steps in prop::collection::vec(step(), 0..300)
    ) {
        run_steps(size, features(true, event_idx), steps);
    }

    /// `virtio-queue` reads the same ring: whatever chain this crate accepts has the descriptors that one finds.
    #[test]
    fn a_split_queue_reads_what_another_implementation_reads(
        table in prop::collection::vec(
            (0..0x2000_u64, 1..64_u32, prop_oneof![5 => 0..4_u16, 1 => Just(INDIRECT)], 0..10_u16), 8
        ),
        indirect in prop::collection::vec((0..0x2000_u64, 1..64_u32, 0..4_u16, 0..9_u16), 8),
        heads in prop::collection::vec(0..8_u16, 1..8),
    ) {
        use virtio_queue::{QueueT, desc::{RawDescriptor, split::Descriptor}};
        let features = Features::VERSION_1 | Features::INDIRECT_DESC;
        let mut pair = Pair::new(8, features);
        let memory = pair.memory.clone();
        let guest: &GuestRam = &memory;
        let state = pair.driver.state();
        for (i, &(address, len, flags, next)) in table.iter().enumerate() {
            let (address, len) = if flags & INDIRECT != 0 { (TABLES, 8 * 16) } else { (DATA + address, len) };
            let raw = RawDescriptor::from(Descriptor::new(address, len, flags, next));
            memory.write_obj(raw, GuestAddress(state.descriptor_area + i as u64 * 16)).unwrap();
        }
        for (i, &(address, len, flags, next)) in indirect.iter().enumerate() {
            let raw = RawDescriptor::from(Descriptor::new(DATA + address, len, flags, next));
            memory.write_obj(raw, GuestAddress(TABLES + i as u64 * 16)).unwrap();
        }
        for (i, &head) in heads.iter().enumerate() {
            memory.write_obj(head, GuestAddress(state.driver_area + 4 + i as u64 * 2)).unwrap();
        }
        memory.write_obj(heads.len() as u16, GuestAddress(state.driver_area + 2)).unwrap();
        let mut theirs = virtio_queue::Queue::new(8).unwrap();
        theirs.set_desc_table_address(Some(state.descriptor_area as u32), None);
        theirs.set_avail_ring_address(Some(state.driver_area as u32), None);
        theirs.set_used_ring_address(Some(state.device_area as u32), None);
        theirs.set_ready(true);
        let used = GuestAddress(state.device_area);
        for &head in &heads {
            let chain = theirs.pop_descriptor_chain(guest).unwrap();
            prop_assert_eq!(chain.head_index(), head);
            if pair.pop().is_err() {
                break;
            }
            let expected: Vec<Buffer> = chain
                .map(|d| Buffer { address: d.addr().0, len: d.len(), writable: d.is_write_only() })
                .collect();
            prop_assert_eq!(pair.buffers(), expected);
            pair.device.push(pair.chain.token(), 7);
            pair.device.notify();
            let mut ours = [0; 4 + 8 * 8];
            memory.read_slice(&mut ours, used).unwrap();
            theirs.add_used(guest, head, 7).unwrap();
            let mut other = [0; 4 + 8 * 8];
            memory.read_slice(&mut other, used).unwrap();
            prop_assert_eq!(ours, other, "both use it in the same way");
        }
    }
}

#[test]
fn all_counters_wrap() {
    for features in layouts() {
        let mut pair = Pair::new(8, features);
        // They have 16 bits.
        for i in 0..70_000_u32 {
            let id = pair.driver.add(&[readable(DATA, 1), writable(DATA + 8, 8)]).expect("room");
            assert!(!pair.device.is_broken());
            assert!(pair.pop().unwrap(), "request {i}");
            assert_eq!(pair.chain.token().id(), id);
            pair.device.push(pair.chain.token(), i);
            let before = pair.events.interrupts();
            pair.device.notify();
            assert_eq!(pair.events.interrupts(), before + 1, "request {i}");
            assert_eq!(pair.driver.take_used(), Some(Used { id, written: i }));
        }
    }
}

#[test]
fn a_polling_device_with_event_indices_is_not_kicked() {
    for features in [features(false, true), features(true, true)] {
        let mut pair = Pair::new(64, features);
        pair.device.disable_notifications();
        let (mut kicks, mut requests) = (0, 0);
        for i in 0..50_000 {
            for _ in 0..1 + i % 3 {
                requests += 1;
                pair.driver.add(&[readable(DATA, 1)]).unwrap();
                kicks += u32::from(pair.driver.take_kick());
            }
            while pair.pop().unwrap() {
                let token = pair.chain.token();
                pair.device.push(token, 0);
            }
            pair.device.notify();
            while pair.driver.take_used().is_some() {}
        }
        assert!(kicks <= requests / 65536, "{kicks} kicks for {requests} requests");
    }
}

#[test]
fn a_chain_copies_across_its_segments() {
    let mut pair = Pair::new(8, features(false, false));
    pair.memory.write_slice(b"abcdefghij", GuestAddress(DATA)).unwrap();
    let (a, b) = (readable(DATA, 3), readable(DATA + 5, 4));
    pair.driver.add(&[a, b, writable(DATA + 0x100, 2), writable(DATA + 0x200, 0), writable(DATA + 0x200, 3)]);
    assert!(pair.pop().unwrap());
    assert_eq!((pair.chain.readable_len(), pair.chain.writable_len()), (7, 5));
    let mut data = [0; 10];
    assert_eq!(pair.chain.read_at(1, &mut data), 6);
    assert_eq!(&data[..6], b"bcfghi");
    assert_eq!(pair.chain.read_at(7, &mut data), 0);
    assert_eq!(pair.chain.read_at(u64::MAX, &mut data), 0);
    assert_eq!(pair.chain.write_at(1, b"xyz!?"), 4);
    let mut written = [0; 3];
    pair.memory.read_slice(&mut written, GuestAddress(DATA + 0x200)).unwrap();
    assert_eq!(&written, b"yz!");
    let mut parts = Vec::new();
    pair.chain.append_readable(2, 3, &mut parts);
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_buffer_may_run_on_into_the_next_region() {
    let ranges = [(GuestAddress(0), RAM), (GuestAddress(RAM as u64), 0x1000)];
    let memory: Memory = Arc::new(GuestRam::from_ranges(&ranges).unwrap());
    let mut driver = DriverRing::new(&memory, RING, 8, features(false, false));
    let events = Arc::new(Events::default());
    let mut device = Queue::new(&driver.state(), 0, memory, events).unwrap();
    let mut chain = Chain::new();
    driver.add(&[readable(RAM as u64 - 8, 16)]);
    assert!(device.pop(&mut chain).unwrap());
    assert_eq!(chain.readable().iter().map(|s| s.len()).collect::<Vec<_>>(), [8, 8]);
    driver.add(&[readable(RAM as u64 + 0xff8, 16)]);
    assert!(matches!(device.pop(&mut chain), Err(QueueError::Buffer { .. })));
}

#[test]
fn neither_side_misses_the_other_across_threads() {
    for layout in layouts() {
        let Pair { mut driver, mut device, events, .. } = Pair::new(4, layout);
        let kick = machine::doorbell::Doorbell::new().unwrap();
        let blocking = {
            let event = kick.event().try_clone().unwrap();
            move || {
                let mut poll =
                    libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&event), events: 1, revents: 0 };
                // SAFETY: one valid descriptor.
                unsafe { libc::poll(&mut poll, 1, -1) };
                event.read().unwrap();
            }
        };
        const REQUESTS: u32 = 20_000;
        let worker = std::thread::spawn(move || {
            let mut chain = Chain::new();
            let mut done = 0;
            while done < REQUESTS {
                while device.pop(&mut chain).unwrap() {
                    device.push(chain.token(), done);
                    done += 1;
                }
                device.notify();
                if done < REQUESTS && !device.enable_notifications() {
                    blocking();
                }
            }
            device
        });
        let (mut sent, mut received, mut seen) = (0, 0, 0);
        while received < REQUESTS {
            while sent < REQUESTS && driver.add(&[readable(DATA, 4)]).is_some() {
                sent += 1;
                if driver.take_kick() {
                    kick.ring();
                }
            }
            while let Some(used) = driver.take_used() {
                assert_eq!(used.written, received);
                received += 1;
            }
            // What was used before the wish to be interrupted was written is seen by looking once more.
            driver.set_interrupts(true);
            if received < sent
                && let Some(used) = driver.take_used()
            {
                assert_eq!(used.written, received);
                received += 1;
                continue;
            }
            if received < sent {
                while events.interrupts() == seen {
                    std::thread::yield_now();
                }
            }
            seen = events.interrupts();
        }
        let device = worker.join().unwrap();
        assert_eq!(device.in_flight(), 0);
    }
}

#[test]
fn an_interrupt_comes_for_the_entry_that_was_asked_for_and_no_other() {
    const SIZE: u16 = 8;
    for packed in [false, true] {
        // Entries are counted from the beginning; batches of all lengths begin at each place of several turns.
        for wanted in 0..3 * SIZE {
            for first in 0..2 * SIZE {
                for count in 1..=SIZE {
                    let mut pair = Pair::new(SIZE, features(packed, true));
                    for _ in 0..first {
                        pair.serve(1);
                        pair.driver.take_used().unwrap();
                    }
                    let area = GuestAddress(pair.driver.state().driver_area);
                    if packed {
                        let wrap = u32::from((wanted / SIZE).is_multiple_of(2)) << 15;
                        let event = 2 << 16 | wrap | u32::from(wanted % SIZE);
                        pair.memory.write_obj(event, area).unwrap();
                    } else {
                        let at = area.0 + 4 + u64::from(SIZE) * 2;
                        pair.memory.write_obj(wanted, GuestAddress(at)).unwrap();
                    }
                    // A packed ring's event is a place in this turn or the next.
                    let (wanted, turns) =
                        if packed { (wanted % (2 * SIZE), 2 * SIZE) } else { (wanted, u16::MAX) };
                    let expected = (first..first + count).any(|entry| entry % turns == wanted % turns);
                    assert_eq!(
                        pair.serve(count) == 1,
                        expected,
                        "packed {packed}: {wanted} in {first}+{count}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_packed_ring_is_marked_as_the_specification_says() {
    let mut pair = Pair::new(2, features(true, false));
    let flags_of = |pair: &Pair, slot: u64| -> u16 {
        pair.memory.read_obj(GuestAddress(pair.driver.state().descriptor_area + slot * 16 + 14)).unwrap()
    };
    // Used: both bits as the wrap counter, and whether bytes were written.
    for (request, (written, expected)) in
        [(1, 0x8082), (0, 0x8080), (0, 0), (9, WRITE)].into_iter().enumerate()
    {
        pair.driver.add(&[writable(DATA, 16)]).unwrap();
        assert!(pair.pop().unwrap());
        pair.device.push(pair.chain.token(), written);
        pair.device.notify();
        assert_eq!(flags_of(&pair, request as u64 % 2), expected);
        pair.driver.take_used().unwrap();
    }
    // What is marked as used is not available, even if the driver did not make it so.
    let at = GuestAddress(pair.driver.state().descriptor_area + 14);
    for (flags, available) in [(0_u16, false), (0x8000, false), (0x8080, false), (0x80, true)] {
        pair.memory.write_obj(flags, at).unwrap();
        assert_eq!(pair.device.has_available(), available, "{flags:#x}");
    }
}
