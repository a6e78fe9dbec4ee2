use super::*;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

const BLOCKS: u64 = 3;
const SIZE: u64 = BLOCKS * BLOCK_SIZE;

fn memory() -> Arc<MappedRegion> {
    let memory = MappedRegion::new(SIZE as usize).unwrap();
    memory.get_slice(0, SIZE as usize).unwrap().copy_from(&vec![0xff_u8; SIZE as usize]);
    Arc::new(memory)
}

fn bank(read_only: bool) -> Pflash {
    Pflash::new(Parts { number: 7, memory: memory(), read_only, changed: None })
}

thread_local! {
    /// The content is no part of a bank's state, so banks that are to be alike share one.
    static SHARED: Arc<MappedRegion> = memory();
}

crate::conformance!(
    conformance,
    SIZE,
    Pflash::new(Parts { number: 0, memory: SHARED.with(Arc::clone), read_only: false, changed: None })
);

/// Does with a bank what a driver for two chips beside each other does.
struct Driver {
    bank: Pflash,
    /// Whether the guest has the memory itself, as the effects say.
    direct: Rc<Cell<bool>>,
}

impl Driver {
    fn new(bank: Pflash) -> Self {
        Self { bank, direct: Rc::new(Cell::new(true)) }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let effect = self.bank.write(offset, &value.to_le_bytes());
        let before = self.direct.replace(self.bank.reads_array());
        assert_eq!(
            effect,
            (before != self.direct.get()).then_some(Effect::DirectMemory(self.bank.parts.number))
        );
    }

    fn command(&mut self, offset: u64, command: u32) {
        self.write(offset, command << 16 | command);
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.bank.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The status, which is that of both chips.
    fn status(&mut self, offset: u64) -> u8 {
        self.command(offset, 0x70);
        let status = self.read(offset);
        assert_eq!(status >> 16, status & 0xffff);
        status as u8
    }

    /// Ends an operation, and says what errors it had.
    fn finish(&mut self, offset: u64) -> u8 {
        let status = self.status(offset);
        assert_ne!(status & READY, 0);
        self.command(0, 0x50);
        self.command(0, 0xff);
        status & !READY
    }

    fn is_locked(&mut self, block: u64) -> bool {
        self.command(block * BLOCK_SIZE + 8, 0x90);
        self.read(block * BLOCK_SIZE + 8) & 1 != 0
    }

    fn set_lock(&mut self, block: u64, action: u32) -> u8 {
        self.command(block * BLOCK_SIZE, 0x60);
        self.command(block * BLOCK_SIZE, action);
        self.finish(block * BLOCK_SIZE)
    }

    fn erase(&mut self, block: u64) -> u8 {
        self.command(block * BLOCK_SIZE, 0x20);
        self.command(block * BLOCK_SIZE, 0xd0);
        self.finish(block * BLOCK_SIZE)
    }

    fn program(&mut self, offset: u64, word: u32) -> u8 {
        self.command(offset, 0x40);
        self.write(offset, word);
        self.finish(offset)
    }

    fn program_buffer(&mut self, offset: u64, words: &[u32]) -> u8 {
        self.command(offset, 0xe8);
        assert_ne!(self.read(offset) & 0x80_0080, 0, "the buffer is free");
        self.command(offset, words.len() as u32 - 1);
        for (at, word) in (offset..).step_by(4).zip(words) {
            self.write(at, *word);
        }
        self.command(0, 0xd0);
        self.finish(offset)
    }
}

#[test]
fn a_driver_finds_out_what_it_is() {
    let mut driver = Driver::new(bank(false));
    driver.command(0x55 * 4, 0x98);
    let query: Vec<u32> = (0x10..0x15).map(|word| driver.read(word * 4)).collect();
    assert_eq!(query, [0x51_0051, 0x52_0052, 0x59_0059, 0x1_0001, 0]);
    driver.command(BLOCK_SIZE, 0x90);
    assert_eq!((driver.read(0), driver.read(4)), (0x89_0089, 0x18_0018));
    assert_eq!(driver.read(BLOCK_SIZE), 0x89_0089, "each block tells it");
    let mut byte = [0; 3];
    driver.bank.read(5, &mut byte);
    assert_eq!(byte, [0, 0x18, 0]);
    driver.command(0, 0xff);
    assert!(driver.direct.get());
}

#[test]
fn programming_clears_bits_and_erasing_sets_those_of_a_block() {
    let mut driver = Driver::new(bank(false));
    assert_eq!(driver.program(BLOCK_SIZE, 0xf0f0_1234), 0);
    assert_eq!(driver.program(BLOCK_SIZE, 0xff00_ffff), 0);
    assert_eq!(driver.read(BLOCK_SIZE), 0xf000_1234);
    let words: Vec<u32> = (0..32).map(|n| 0x0101_0101 * n).collect();
    assert_eq!(driver.program_buffer(2 * BLOCK_SIZE - 128, &words), 0);
    assert_eq!(driver.program_buffer(2 * BLOCK_SIZE, &words[1..3]), 0);
    assert_eq!(driver.read(2 * BLOCK_SIZE - 4), 0x1f1f_1f1f);
    let after: Vec<u32> = (0..3).map(|word| driver.read(2 * BLOCK_SIZE + word * 4)).collect();
    assert_eq!(after, [0x0101_0101, 0x0202_0202, 0xffff_ffff]);
    assert_eq!(driver.erase(1), 0);
    let ends = [BLOCK_SIZE, 2 * BLOCK_SIZE - 4, 2 * BLOCK_SIZE].map(|offset| driver.read(offset));
    assert_eq!(ends, [0xffff_ffff, 0xffff_ffff, 0x0101_0101]);
    let counted = driver.bank.inspect();
    assert_eq!(
        (&counted["programs"], &counted["erases"], &counted["refused"]),
        (&json!(4), &json!(1), &json!(0))
    );
}

#[test]
fn a_locked_block_keeps_its_content() {
    let mut driver = Driver::new(bank(false));
    assert!(!driver.is_locked(1));
    assert_eq!(driver.set_lock(1, 0x01), 0);
    assert_eq!([0, 1, 2].map(|block| driver.is_locked(block)), [false, true, false]);
    driver.command(0, 0xff);
    assert_eq!(driver.program(BLOCK_SIZE, 0), PROGRAM_FAILED | BLOCK_LOCKED);
    assert_eq!(driver.program_buffer(BLOCK_SIZE, &[0; 2]), PROGRAM_FAILED | BLOCK_LOCKED);
    assert_eq!(driver.erase(1), ERASE_FAILED | BLOCK_LOCKED);
    driver.command(0, 0x40);
    driver.bank.write(BLOCK_SIZE - 2, &[0; 4]);
    assert_eq!(driver.finish(0), PROGRAM_FAILED | BLOCK_LOCKED, "part of it is in the block");
    assert_eq!(driver.read(BLOCK_SIZE), u32::MAX);
    assert_eq!(driver.set_lock(1, 0xd0), 0);
    assert_eq!(driver.program(BLOCK_SIZE, 0), 0);
    assert_eq!(driver.read(BLOCK_SIZE), 0);
}

#[test]
fn nothing_changes_a_bank_that_is_only_read() {
    let mut driver = Driver::new(bank(true));
    for block in 0..BLOCKS {
        driver.set_lock(block, 0xd0);
        assert!(driver.is_locked(block));
        driver.command(0, 0xff);
        assert_ne!(driver.program(block * BLOCK_SIZE, 0), 0);
        assert_ne!(driver.program_buffer(block * BLOCK_SIZE, &[0]), 0);
        assert_ne!(driver.erase(block), 0);
        assert_eq!(driver.read(block * BLOCK_SIZE), u32::MAX);
    }
}

#[test]
fn what_is_not_completed_as_it_should_be_is_an_error_and_does_nothing() {
    // What is written one after the other: where, and what.
    let cases: [&[(u64, u32)]; 8] = [
        &[(0, 0x20), (0, 0xff)],
        &[(0, 0x20), (BLOCK_SIZE, 0xd0)],
        &[(0, 0x60), (0, 0x2f)],
        &[(0, 0x60), (BLOCK_SIZE, 0x01)],
        // More than the buffer has.
        &[(0, 0xe8), (0, 32)],
        &[(0, 0xe8), (0, 0xffff)],
        // No confirmation; two ranges.
        &[(0, 0xe8), (0, 0), (0, 0), (0, 0x70)],
        &[(0, 0xe8), (0, 1), (0, 0), (128, 0)],
    ];
    for case in cases {
        let mut driver = Driver::new(bank(false));
        for (offset, command) in case {
            driver.command(*offset, *command);
        }
        assert_eq!(driver.finish(0), SEQUENCE_ERROR, "{case:x?}");
        assert_eq!((driver.read(0), driver.read(128)), (u32::MAX, u32::MAX), "{case:x?}");
        assert!(!driver.is_locked(1));
        driver.command(0, 0xff);
        assert_eq!(driver.program(0, 1), 0, "{case:x?}: and commands are understood again");
    }
}

#[test]
fn writes_of_other_widths_do_what_their_bytes_say() {
    let mut driver = Driver::new(bank(false));
    driver.bank.write(0, &[0x40]);
    driver.bank.write(5, &[0x12]);
    driver.bank.write(0, &[0xff]);
    let mut data = [0; 8];
    driver.bank.read(0, &mut data);
    assert_eq!(data, [0xff, 0xff, 0xff, 0xff, 0xff, 0x12, 0xff, 0xff]);
    // The two halves are two writes on the bus: a command, and what it programs.
    driver.bank.write(8, &[0x40, 0, 0, 0, 1, 2, 3, 4]);
    driver.bank.write(0, &[0xff, 0]);
    driver.bank.read(8, &mut data);
    assert_eq!(data, [0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4]);
    // At the end of the bank nothing goes beyond it.
    driver.bank.write(SIZE - 1, &[0xe8]);
    driver.bank.write(SIZE - 1, &[0]);
    driver.bank.write(SIZE - 1, &[0x21]);
    driver.bank.write(0, &[0xd0]);
    driver.bank.write(0, &[0xff]);
    driver.bank.read(SIZE - 8, &mut data);
    assert_eq!(data, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x21]);
}

#[test]
fn each_change_is_told_and_a_refused_one_is_not() {
    let changes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&changes);
    let changed = Box::new(move || _ = counted.fetch_add(1, Ordering::Relaxed));
    let parts = Parts { number: 0, memory: memory(), read_only: false, changed: Some(changed) };
    let mut driver = Driver::new(Pflash::new(parts));
    driver.program(0, 1);
    driver.program_buffer(128, &[1, 2]);
    driver.erase(0);
    assert_eq!(changes.load(Ordering::Relaxed), 3);
    driver.set_lock(0, 0x01);
    driver.erase(0);
    assert_eq!(changes.load(Ordering::Relaxed), 3);
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let mut bank = bank(false);
    let state = |fields: Value| SavedState { kind: Registers::KIND.into(), version: 1, fields };
    for bad in [
        json!({"mode": "Status", "next": {"EraseConfirmation": BLOCKS}}),
        json!({"mode": "Status", "next": {"Buffer": {"left": 33, "start": null, "bytes": vec![0; 128]}}}),
        json!({"mode": "Status", "next": {"Buffer": {"left": 1, "start": SIZE, "bytes": vec![0; 128]}}}),
        json!({"mode": "Status", "next": {"Buffer": {"left": 1, "start": 4, "bytes": vec![0; 128]}}}),
        json!({"mode": "Status", "next": {"Buffer": {"left": 0, "start": null, "bytes": vec![0; 128]}}}),
        json!({"mode": "Status", "next": {"Buffer": {"left": 1, "start": null, "bytes": vec![0; 127]}}}),
        json!({"next": "Word"}),
        json!({"errors": 0x80}),
        json!({"locked": [BLOCKS]}),
        json!({"mode": "Fast"}),
    ] {
        assert!(bank.restore(&state(bad.clone())).is_err(), "{bad}");
        assert!(bank.reads_array());
    }
    bank.restore(&state(json!({"mode": "Status", "locked": [2], "errors": 0x30}))).unwrap();
    assert!(!bank.reads_array());
}
