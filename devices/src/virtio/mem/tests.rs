use super::*;
use crate::virtio::testing::RecordedPages;
use proptest::prelude::*;
use request::Answer;
use std::collections::BTreeSet;
use virtio::testing::{Driver, Layout};

const BLOCK: u64 = 2 << 20;
const START: u64 = 4 << 30;
const COUNT: u64 = 300;

fn options() -> MemOptions {
    MemOptions {
        region: Range { start: START, size: COUNT * BLOCK },
        block_size: BLOCK,
        requested: 0,
        node: 1,
        populate: false,
    }
}

fn mem() -> Box<dyn VirtioDevice> {
    Box::new(Mem::new(options(), Arc::new(RecordedPages::new(u64::MAX))).unwrap())
}

virtio::conformance!(conformance, mem);

fn rig(options: MemOptions, layout: Layout) -> (Driver, MemControl, Arc<RecordedPages>) {
    let pages = Arc::new(RecordedPages::new(u64::MAX));
    let mem = Mem::new(options, pages.clone()).unwrap();
    let control = mem.control();
    (Driver::new(Box::new(mem), layout), control, pages)
}

fn request(kind: u16, block: u64, count: u16) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&(START + block * BLOCK).to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}

fn call(driver: &mut Driver, bytes: &[u8]) -> Vec<u8> {
    let answer = driver.call(0, &[bytes], &[10]);
    assert_eq!(answer.written, 10);
    answer.data
}

fn plug(driver: &mut Driver, block: u64, count: u16) -> Vec<u8> {
    call(driver, &request(0, block, count))
}

fn unplug(driver: &mut Driver, block: u64, count: u16) -> Vec<u8> {
    call(driver, &request(1, block, count))
}

fn state(driver: &mut Driver, block: u64, count: u16) -> Vec<u8> {
    call(driver, &request(3, block, count))
}

fn config(driver: &mut Driver) -> [u64; 7] {
    let mut bytes = [0; 56];
    driver.read_config(0, &mut bytes);
    std::array::from_fn(|n| u64::from_le_bytes(bytes[8 * n..8 * n + 8].try_into().unwrap()))
}

#[test]
fn a_driver_plugs_what_is_requested_and_no_more() {
    for layout in Layout::all() {
        let (mut driver, control, pages) = rig(options(), layout);
        let size = COUNT * BLOCK;
        assert_eq!(config(&mut driver), [BLOCK, 1, START, size, size, 0, 0]);
        assert_eq!(plug(&mut driver, 0, 1), Answer::Nack.bytes(), "nothing is requested");
        let before = driver.config_interrupts();
        control.resize(64 * BLOCK).unwrap();
        assert_eq!(driver.config_interrupts(), before + 1);
        assert_eq!(config(&mut driver)[6], 64 * BLOCK);
        assert_eq!(plug(&mut driver, 10, 60), Answer::Ack.bytes());
        assert_eq!(plug(&mut driver, 100, 5), Answer::Nack.bytes());
        assert_eq!(plug(&mut driver, 100, 4), Answer::Ack.bytes());
        assert_eq!((config(&mut driver)[5], control.plugged()), (64 * BLOCK, 64 * BLOCK));
        assert_eq!(state(&mut driver, 10, 60), Answer::State(0).bytes());
        assert_eq!(state(&mut driver, 9, 2), Answer::State(2).bytes());
        assert_eq!(state(&mut driver, 104, 100), Answer::State(1).bytes());
        assert!(pages.take().is_empty());

        control.resize(10 * BLOCK).unwrap();
        assert_eq!(unplug(&mut driver, 16, 54), Answer::Ack.bytes());
        assert_eq!(pages.take(), [Range { start: START + 16 * BLOCK, size: 54 * BLOCK }]);
        assert_eq!(control.plugged(), 10 * BLOCK);
        assert_eq!(call(&mut driver, &request(2, 0, 0)), Answer::Ack.bytes());
        assert_eq!(pages.take(), [Range { start: START, size }]);
        assert_eq!(control.plugged(), 0);
    }
}

#[test]
fn nonsense_is_answered_with_an_error() {
    let (mut driver, control, pages) = rig(options(), Layout::SPLIT);
    control.resize(COUNT * BLOCK).unwrap();
    assert_eq!(plug(&mut driver, 0, 10), Answer::Ack.bytes());
    let unaligned = {
        let mut bytes = request(0, 20, 1);
        bytes[8] = 1;
        bytes
    };
    let below = {
        let mut bytes = request(0, 0, 1);
        bytes[8..16].copy_from_slice(&(START - BLOCK).to_le_bytes());
        bytes
    };
    let wrapping = {
        let mut bytes = request(0, 0, u16::MAX);
        bytes[8..16].copy_from_slice(&(u64::MAX - BLOCK + 1).to_le_bytes());
        bytes
    };
    for bytes in [
        request(0, 9, 2),
        request(0, 20, 0),
        request(0, COUNT, 1),
        request(0, COUNT - 1, 2),
        unaligned,
        below,
        wrapping,
        request(1, 9, 2),
        request(1, 20, 1),
        request(3, 0, 0),
        request(4, 0, 1),
        request(u16::MAX, 0, 1),
    ] {
        assert_eq!(call(&mut driver, &bytes), Answer::Error.bytes(), "{bytes:?}");
    }
    assert_eq!(call(&mut driver, &[0; 3]), Answer::Error.bytes(), "a short request");
    assert_eq!(control.plugged(), 10 * BLOCK);
    assert!(pages.take().is_empty());
    driver.request(0, &[&request(3, 0, 1)], &[9]).unwrap();
    driver.run();
    assert!(!driver.function.is_live(), "without room for an answer the queue breaks");
}

#[test]
fn a_reset_of_the_device_leaves_memory_plugged_and_one_of_the_machine_does_not() {
    let (mut driver, control, pages) = rig(options(), Layout::SPLIT);
    control.resize(BLOCK).unwrap();
    plug(&mut driver, 7, 1);
    driver.reset();
    assert_eq!(control.plugged(), BLOCK);
    control.unplug_all();
    assert_eq!((control.plugged(), control.requested()), (0, BLOCK));
    assert_eq!(pages.released(), COUNT * BLOCK);
}

#[test]
fn memory_that_the_host_does_not_have_is_not_plugged() {
    let (mut driver, control, pages) = rig(MemOptions { populate: true, ..options() }, Layout::SPLIT);
    control.resize(8 * BLOCK).unwrap();
    assert_eq!(plug(&mut driver, 0, 4), Answer::Ack.bytes());
    assert_eq!(pages.populated(), [Range { start: START, size: 4 * BLOCK }]);
    pages.exhaust(true);
    assert_eq!(plug(&mut driver, 4, 4), Answer::Busy.bytes());
    assert_eq!(control.plugged(), 4 * BLOCK);
    pages.exhaust(false);
    assert_eq!(plug(&mut driver, 4, 4), Answer::Ack.bytes());
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let pages: Arc<dyn HostPages> = Arc::new(RecordedPages::new(u64::MAX));
    let make = |options| Mem::new(options, Arc::clone(&pages)).err();
    assert_eq!(make(MemOptions { block_size: 4096, ..options() }), Some(MemError::BlockSize(4096)));
    let region = Range { start: START + 4096, size: BLOCK };
    assert!(matches!(make(MemOptions { region, ..options() }), Some(MemError::Region { .. })));
    assert!(matches!(make(MemOptions { requested: BLOCK / 2, ..options() }), Some(MemError::Requested(_))));
    let control = Mem::new(options(), pages).unwrap().control();
    assert_eq!(
        control.resize(COUNT * BLOCK + BLOCK),
        Err(ResizeError::TooLarge { requested: (COUNT + 1) * BLOCK, most: COUNT * BLOCK })
    );
}

#[test]
fn plugged_memory_survives_saving_but_no_other_region_takes_it() {
    let (mut driver, control, _) = rig(options(), Layout::SPLIT);
    control.resize(64 * BLOCK).unwrap();
    plug(&mut driver, 3, 30);
    driver.stop();
    let state = driver.function.device().save().unwrap();
    let mut other = Mem::new(options(), Arc::new(RecordedPages::new(u64::MAX))).unwrap();
    other.restore(&state).unwrap();
    assert_eq!(other.control().plugged(), 30 * BLOCK);
    let elsewhere = MemOptions { region: Range { start: 2 * START, size: COUNT * BLOCK }, ..options() };
    let mut other = Mem::new(elsewhere, Arc::new(RecordedPages::new(u64::MAX))).unwrap();
    assert!(other.restore(&state).is_err());
}

proptest! {
    /// Any sequence of requests leaves the device with what a set of block numbers has, and releases each block that is
    /// unplugged.
    #[test]
    fn requests_do_what_they_do_to_a_set(
        steps in prop::collection::vec((0_u16..5, 0_u64..COUNT + 4, 0_u16..40, 0_u64..COUNT), 1..60)
    ) {
        let (mut driver, control, pages) = rig(options(), Layout::SPLIT);
        let mut model = BTreeSet::new();
        let mut requested = 0;
        for (kind, block, count, size) in steps {
            if kind == 4 {
                requested = size;
                control.resize(requested * BLOCK).unwrap();
                continue;
            }
            let range = block..block + u64::from(count);
            let valid = count > 0 && range.end <= COUNT;
            let plugged = range.clone().filter(|block| model.contains(block)).count() as u64;
            let expected = match kind {
                2 => Answer::Ack,
                _ if !valid => Answer::Error,
                0 if plugged > 0 => Answer::Error,
                0 if model.len() as u64 + u64::from(count) > requested => Answer::Nack,
                0 => Answer::Ack,
                1 if plugged < u64::from(count) => Answer::Error,
                1 => Answer::Ack,
                _ if plugged == u64::from(count) => Answer::State(0),
                _ if plugged == 0 => Answer::State(1),
                _ => Answer::State(2),
            };
            prop_assert_eq!(call(&mut driver, &request(kind, block, count)), expected.bytes());
            let address = Range { start: START + block * BLOCK, size: u64::from(count) * BLOCK };
            let released = match (kind, expected) {
                (0, Answer::Ack) => { model.extend(range); vec![] }
                (1, Answer::Ack) => { range.for_each(|block| { model.remove(&block); }); vec![address] }
                (2, _) => { model.clear(); vec![options().region] }
                _ => vec![],
            };
            prop_assert_eq!(pages.take(), released);
            prop_assert_eq!(control.plugged(), model.len() as u64 * BLOCK);
        }
        driver.stop();
        let mut other = Mem::new(options(), Arc::new(RecordedPages::new(u64::MAX))).unwrap();
        other.restore(&driver.function.device().save().unwrap()).unwrap();
        prop_assert_eq!(other.control().plugged(), model.len() as u64 * BLOCK);
    }
}

/// Pages during whose taking the host has its memory asked back.
struct Slow(Arc<std::sync::OnceLock<MemControl>>, RecordedPages);

impl HostPages for Slow {
    fn release(&self, range: Range) -> std::io::Result<u64> {
        self.1.release(range)
    }

    fn populate(&self, range: Range) -> std::io::Result<()> {
        let control = self.0.get().unwrap();
        control.resize(0).unwrap();
        assert_eq!(control.in_use(), 0);
        self.1.populate(range)
    }
}

#[test]
fn nothing_is_plugged_any_more_once_nothing_is_in_use() {
    let own = Arc::default();
    let pages = Arc::new(Slow(Arc::clone(&own), RecordedPages::new(u64::MAX)));
    let mem = Mem::new(MemOptions { populate: true, ..options() }, pages.clone()).unwrap();
    let control = mem.control();
    own.set(control.clone()).ok().unwrap();
    let mut driver = Driver::new(Box::new(mem), Layout::SPLIT);
    control.resize(8 * BLOCK).unwrap();
    assert_eq!(control.in_use(), 8 * BLOCK);
    assert_eq!(plug(&mut driver, 4, 2), Answer::Nack.bytes());
    assert_eq!((control.in_use(), control.plugged()), (0, 0));
    assert_eq!(pages.1.take(), [Range { start: START + 4 * BLOCK, size: 2 * BLOCK }], "the host has it back");
}
