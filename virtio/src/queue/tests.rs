//! Queues against the driver's side as written from the specification, against another implementation, and against drivers
//! that misbehave.

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

    #[test]
    fn no_ring_contents_upset_a_queue(
        bytes in prop::collection::vec(any::<u8>(), 0x400), packed: bool, event_idx: bool, available: u16
    ) {
        let mut pair = Pair::new(8, features(packed, event_idx));
        pair.memory.write_slice(&bytes, GuestAddress(RING)).unwrap();
        if !packed {
            let index = GuestAddress(pair.driver.state().driver_area + 2);
            pair.memory.write_obj(available % 12, index).unwrap();
        }
        let mut popped = 0;
        while let Ok(true) = pair.pop() {
            popped += 1;
            prop_assert!(pair.chain.readable_len() + pair.chain.writable_len() <= 1 << 32);
            if popped % 2 == 0 {
                pair.device.push(pair.chain.token(), 1);
                pair.device.notify();
            }
            prop_assert!(pair.device.in_flight() <= 8);
            if popped > 100 {
                break;
            }
        }
    }
}

#[test]
fn all_counters_wrap() {
    for features in layouts() {
        let mut pair = Pair::new(8, features);
        for i in 0..200_000_u32 {
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

/// A name, the descriptors, and whether an error is the one they cause.
type Case = (&'static str, &'static [(u64, u32, u16)], fn(QueueError) -> bool);

#[test]
fn malformed_chains_break_the_queue() {
    for layout in layouts() {
        let cases: &[Case] = &[
            ("past RAM", &[(RAM as u64, 1, 0)], |e| matches!(e, QueueError::Buffer { .. })),
            ("end past RAM", &[(RAM as u64 - 1, 2, WRITE)], |e| matches!(e, QueueError::Buffer { .. })),
            ("wrapping", &[(u64::MAX - 1, 16, 0)], |e| matches!(e, QueueError::Buffer { .. })),
            ("huge", &[(DATA, u32::MAX, WRITE)], |e| matches!(e, QueueError::Buffer { .. })),
            ("readable last", &[(DATA, 1, WRITE), (DATA, 1, 0)], |e| e == QueueError::ReadableAfterWritable),
            ("empty table", &[(TABLES, 0, INDIRECT)], |e| matches!(e, QueueError::IndirectTable { .. })),
            ("odd table", &[(TABLES, 24, INDIRECT)], |e| matches!(e, QueueError::IndirectTable { .. })),
            ("table past RAM", &[(RAM as u64, 16, INDIRECT)], |e| {
                matches!(e, QueueError::IndirectTable { .. })
            }),
            ("table not last", &[(TABLES, 16, INDIRECT), (DATA, 1, 0)], |e| e == QueueError::Indirect),
        ];
        for (name, descriptors, expected) in cases {
            let error = Pair::new(8, layout).pop_raw(descriptors);
            assert!(expected(error), "{name}: {error}");
        }
        // A table in a table.
        let mut pair = Pair::new(8, layout);
        let table: [u64; 2] =
            [TABLES, if layout.contains(Features::RING_PACKED) { 4 << 48 } else { 4 << 32 } | 16];
        pair.memory.write_obj(table, GuestAddress(TABLES)).unwrap();
        assert_eq!(pair.pop_raw(&[(TABLES, 16, INDIRECT)]), QueueError::Indirect);
        // A table without the feature.
        let mut pair = Pair::new(8, layout - Features::INDIRECT_DESC);
        assert_eq!(pair.pop_raw(&[(TABLES, 16, INDIRECT)]), QueueError::Indirect);
    }
}

#[test]
fn a_chain_of_more_than_4_gib_breaks_the_queue() {
    // One region of address space, of which nothing is touched.
    let size = 3 << 30;
    for layout in layouts() {
        let memory = memory(size);
        let mut driver = DriverRing::new(&memory, RING, 8, layout);
        let events = Arc::new(Events::default());
        let mut device = Queue::new(&driver.state(), layout.bits(), memory, events).unwrap();
        let mut chain = Chain::new();
        let half = writable(0x1000_0000, 1 << 31);
        driver.add(&[half, half]).unwrap();
        assert!(device.pop(&mut chain).unwrap());
        assert_eq!(chain.writable_len(), 1 << 32);
        driver.add(&[half, half, writable(0, 1)]).unwrap();
        assert_eq!(device.pop(&mut chain), Err(QueueError::ChainTooLarge));
    }
}

#[test]
fn a_split_chain_cannot_loop_or_leave_its_table() {
    let write = |pair: &Pair, base: u64, index: u64, flags: u64, next: u64| {
        let raw = [DATA, 1 | flags << 32 | next << 48];
        pair.memory.write_obj(raw, GuestAddress(base + index * 16)).unwrap();
    };
    let layout = features(false, true);
    // The descriptors of a new ring are handed out from 0.
    let mut pair = Pair::new(8, layout);
    pair.driver.add(&[readable(DATA, 1), readable(DATA, 1)]).unwrap();
    let base = pair.driver.state().descriptor_area;
    for index in 0..8 {
        write(&pair, base, index, NEXT.into(), (index + 1) % 8);
    }
    assert_eq!(pair.pop(), Err(QueueError::ChainTooLong));

    let mut pair = Pair::new(8, layout);
    pair.driver.add(&[readable(DATA, 1)]).unwrap();
    for index in 0..8 {
        write(&pair, base, index, NEXT.into(), 8);
    }
    assert_eq!(pair.pop(), Err(QueueError::DescriptorIndex { index: 8, len: 8 }));

    let mut pair = Pair::new(8, layout);
    write(&pair, TABLES, 0, NEXT.into(), 1);
    write(&pair, TABLES, 1, NEXT.into(), 0);
    assert_eq!(pair.pop_raw(&[(TABLES, 32, INDIRECT)]), QueueError::ChainTooLong);

    let mut pair = Pair::new(8, layout);
    write(&pair, TABLES, 0, NEXT.into(), 2);
    assert_eq!(pair.pop_raw(&[(TABLES, 32, INDIRECT)]), QueueError::DescriptorIndex { index: 2, len: 2 });

    let mut pair = Pair::new(8, layout);
    pair.driver.add(&[readable(DATA, 1)]).unwrap();
    pair.memory.write_obj(8_u16, GuestAddress(pair.driver.state().driver_area + 4)).unwrap();
    assert_eq!(pair.pop(), Err(QueueError::DescriptorIndex { index: 8, len: 8 }));
}

#[test]
fn a_split_available_index_cannot_jump() {
    for (to, ok) in [(8, true), (9, false), (0xffff, false)] {
        let mut pair = Pair::new(8, features(false, false));
        pair.memory.write_obj(to, GuestAddress(pair.driver.state().driver_area + 2)).unwrap();
        let expected = if ok { Ok(true) } else { Err(QueueError::AvailableIndex { from: 0, to, size: 8 }) };
        assert_eq!(pair.pop(), expected);
    }
}

#[test]
fn a_driver_cannot_have_more_in_flight_than_fits() {
    // It names the same descriptor again and again.
    let mut pair = Pair::new(4, features(false, false));
    let index = GuestAddress(pair.driver.state().driver_area + 2);
    for i in 1..=4_u16 {
        pair.memory.write_obj(i, index).unwrap();
        assert!(pair.pop().unwrap());
    }
    pair.memory.write_obj(5_u16, index).unwrap();
    assert_eq!(pair.pop(), Err(QueueError::InFlight));

    // It makes slots available again before they were used.
    let mut pair = Pair::new(4, features(true, false));
    for turn in [1_u16 << 7, 1 << 15] {
        for slot in 0..4 {
            let at = GuestAddress(pair.driver.state().descriptor_area + slot * 16 + 14);
            pair.memory.write_obj(turn, at).unwrap();
            let expected = if turn == 1 << 7 { Ok(true) } else { Err(QueueError::InFlight) };
            assert_eq!(pair.pop(), expected);
            if expected.is_err() {
                return;
            }
        }
    }
}

#[test]
fn a_packed_chain_cannot_be_longer_than_its_ring() {
    let mut pair = Pair::new(4, features(true, false));
    for slot in 0..4 {
        let at = GuestAddress(pair.driver.state().descriptor_area + slot * 16 + 14);
        pair.memory.write_obj(NEXT | 1 << 7, at).unwrap();
    }
    assert_eq!(pair.pop(), Err(QueueError::ChainTooLong));
    let mut pair = Pair::new(4, features(true, false));
    pair.driver.add_raw(&[(TABLES, 16 * 1025, INDIRECT)]);
    assert_eq!(pair.pop(), Err(QueueError::ChainTooLong));
}

#[test]
fn rings_must_lie_aligned_in_ram() {
    let memory = memory(RAM);
    let queue = |state: QueueState, packed| {
        let bits = features(packed, true).bits();
        Queue::new(&state, bits, memory.clone(), Arc::new(Events::default())).err()
    };
    for packed in [false, true] {
        let good = QueueState::new(8, 0x1000, 0x2000, 0x3000, packed);
        assert_eq!(queue(good, packed), None);
        assert_eq!(queue(QueueState { size: 0, ..good }, packed), Some(QueueError::Size(0)));
        assert_eq!(queue(QueueState { size: 0x8001, ..good }, packed), Some(QueueError::Size(0x8001)));
        assert_eq!(queue(QueueState { size: 6, ..good }, packed).is_some(), !packed);
        let end = RAM as u64;
        for bad in [
            QueueState { descriptor_area: 0x1008, ..good },
            QueueState { descriptor_area: end - 0x70, ..good },
            QueueState { descriptor_area: u64::MAX - 15, ..good },
            QueueState { driver_area: 0x2001, ..good },
            QueueState { driver_area: end - 2, ..good },
            QueueState { device_area: 0x3002, ..good },
            QueueState { device_area: end, ..good },
        ] {
            assert!(matches!(queue(bad, packed), Some(QueueError::Ring { .. })), "{bad:x?}");
        }
    }
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
