//! `pflash`: a bank of flash, whatever its driver writes, against a model of its content.
//!
//! The model is what flash can do at once: clear bits in a range as large as the buffer, or set all bits of one block. Nothing else may
//! become of the content, nothing at all of that of a bank that is only read, and each change is told.

use crate::device::{reset_or_look, restore_own_state};
use crate::input::Input;
use devices::pflash::{BLOCK_SIZE, BUFFER_SIZE, Parts, Pflash};
use devices::platform::PlatformDevice;
use machine::bus::BusDevice;
use machine::effect::Effect;
use machine::memory::{MappedRegion, VolatileMemory};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const BLOCKS: u64 = 2;
const SIZE: u64 = BLOCKS * BLOCK_SIZE;
const STEPS: usize = 200;
const NUMBER: u32 = 3;

const COMMANDS: [u8; 16] =
    [0xff, 0x70, 0x90, 0x98, 0x50, 0x40, 0x10, 0xe8, 0x20, 0xd0, 0x60, 0x01, 0x2f, 0xb0, 0x00, 0x1f];

struct Bench {
    bank: Pflash,
    memory: Arc<MappedRegion>,
    changes: Arc<AtomicU64>,
    /// Whether the guest has the memory itself, as the effects say.
    direct: bool,
}

impl Bench {
    fn new(read_only: bool) -> Self {
        let memory = Arc::new(MappedRegion::new(SIZE as usize).expect("the host has memory"));
        let changes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&changes);
        let changed: Box<dyn Fn() + Send> = Box::new(move || _ = counted.fetch_add(1, Ordering::Relaxed));
        let parts = Parts { number: NUMBER, memory: Arc::clone(&memory), read_only, changed: Some(changed) };
        let bench = Self { bank: Pflash::new(parts), memory, changes, direct: true };
        for block in 0..BLOCKS {
            let ones = vec![0xff; BLOCK_SIZE as usize];
            bench
                .memory
                .get_slice((block * BLOCK_SIZE) as usize, ones.len())
                .expect("it is there")
                .copy_from(&ones);
        }
        bench
    }

    fn content(&self) -> Vec<u8> {
        let mut content = vec![0; SIZE as usize];
        self.memory.get_slice(0, content.len()).expect("it is there").copy_to(&mut content);
        content
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let effect = self.bank.write(offset, data);
        let direct = self.bank.reads_array();
        assert_eq!(effect, (direct != self.direct).then_some(Effect::DirectMemory(NUMBER)));
        self.direct = direct;
    }

    fn command(&mut self, offset: u64, command: u8) {
        self.write(offset, &[command, 0, command, 0]);
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.bank.read(offset, &mut data);
        u32::from_le_bytes(data)
    }
}

/// What one write did to the content: nothing, bits cleared in few bytes around it, or a block erased.
fn check_change(before: &[u8], after: &[u8], read_only: bool) {
    let Some((first, last)) = differing(before, after) else { return };
    assert!(!read_only, "byte {first:#x} of a bank that is only read changed");
    let block = BLOCK_SIZE as usize;
    if after[first] & !before[first] == 0 {
        assert!(last - first < BUFFER_SIZE, "{first:#x} to {last:#x} were programmed");
        let pairs = before[first..=last].iter().zip(&after[first..=last]);
        assert!(pairs.into_iter().all(|(before, after)| after & !before == 0), "only bits are cleared");
    } else {
        assert_eq!(first / block, last / block, "one block is erased");
        let start = first / block * block;
        assert!(after[start..start + block] == vec![0xff; block], "and all of it");
    }
}

/// The first and the last byte that differ. Most of the content is compared at once.
fn differing(before: &[u8], after: &[u8]) -> Option<(usize, usize)> {
    const PIECE: usize = 4096;
    let pieces = || before.chunks(PIECE).zip(after.chunks(PIECE)).enumerate().filter(|(_, (a, b))| a != b);
    let differ = |((a, b), at): ((&u8, &u8), usize)| (a != b).then_some(at);
    let (piece, (a, b)) = pieces().next()?;
    let first = piece * PIECE + a.iter().zip(b).zip(0..).find_map(differ)?;
    let (piece, (a, b)) = pieces().next_back()?;
    let last = piece * PIECE + a.iter().zip(b).zip(0..).filter_map(differ).last()?;
    Some((first, last))
}

/// Whatever was written before, the content changes only as flash does, and a driver that starts anew erases, programs and reads.
pub fn pflash(data: &[u8]) {
    let input = &mut Input::new(data);
    let read_only = input.below(8) == 7;
    let mut bench = Bench::new(read_only);
    let mut content = bench.content();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let choice = input.u8();
        // Near the beginnings of blocks most of the time, so that accesses meet.
        let offset = match choice >> 6 {
            0 => u64::from(input.u8()),
            1 => BLOCK_SIZE - 16 + u64::from(input.below(32)),
            2 => SIZE - 1 - u64::from(input.below(16)),
            _ => u64::from(input.u32()) % SIZE,
        };
        let size = (1_u64 << input.below(4)).min(SIZE - offset) as usize;
        let changes = bench.changes.load(Ordering::Relaxed);
        match choice & 7 {
            0 => bench.bank.read(offset, &mut [0; 8][..size]),
            1..=3 => bench.command(offset & !3, input.choose(&COMMANDS)),
            4 | 5 => bench.write(offset, &input.u64().to_le_bytes()[..size]),
            6 => {
                reset_or_look(&mut bench.bank, input.below(8) == 0);
                // Whoever resets a machine asks.
                bench.direct = bench.bank.reads_array();
            }
            _ => restore_own_state(&mut bench.bank),
        }
        if bench.changes.load(Ordering::Relaxed) == changes {
            continue;
        }
        // One access of 8 bytes is two writes on the bus, and may do two things.
        let now = bench.content();
        if size <= 4 {
            check_change(&content, &now, read_only);
        }
        content = now;
    }
    assert_eq!(bench.content(), content, "what changed was told");
    bench.bank.reset();
    bench.direct = true;
    if read_only {
        return;
    }
    bench.command(0, 0x20);
    bench.command(0, 0xd0);
    bench.command(0, 0x70);
    assert_eq!(bench.read(0), 0x80_0080, "it is erased");
    bench.command(128, 0xe8);
    bench.command(128, 1);
    bench.write(128, &0x0123_4567_u32.to_le_bytes());
    bench.write(132, &0x89ab_cdef_u32.to_le_bytes());
    bench.command(0, 0xd0);
    bench.command(0, 0xff);
    assert_eq!((bench.read(128), bench.read(132), bench.read(136)), (0x0123_4567, 0x89ab_cdef, u32::MAX));
}
