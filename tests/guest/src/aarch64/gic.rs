//! The interrupt controller (Arm IHI 0069, GICv3) and its service for message-signalled interrupts (ITS).

use super::cpu::{read32, read64, write8, write32, write64};
use crate::clock::Deadline;
use crate::memory::permanent;
use crate::write_register;
use core::sync::atomic::{AtomicU64, Ordering};

// Where the monitor has its parts.
const DISTRIBUTOR: u64 = 0x800_0000;
const REDISTRIBUTOR: u64 = 0xa00_0000;
const ITS: u64 = 0x808_0000;

const LPI_FIRST: u64 = 8192;
const BLOCK: u64 = 0x1_0000;
/// The virtual timer's interrupt.
const TIMER: u32 = 27;
const PRIORITY: u8 = 0xa0;
/// Write-back and inner shareable, of tables in memory: where in a register, the field differs.
const SHAREABLE: u64 = 1 << 10;
const WRITE_BACK_REDISTRIBUTOR: u64 = 7 << 7;
const WRITE_BACK_ITS: u64 = 7 << 59;
const VALID: u64 = 1 << 63;

// Commands of the ITS (5.3).
const SYNC: u64 = 0x05;
const MAPD: u64 = 0x08;
const MAPC: u64 = 0x09;
const MAPTI: u64 = 0x0a;

/// The queue of commands, and where the next one goes.
static COMMANDS: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(0);
const COMMANDS_SIZE: u64 = 4096;

/// Memory for a table, aligned to 64 KiB.
fn table() -> u64 {
    permanent(2 * BLOCK).next_multiple_of(BLOCK)
}

/// Turns on the distributor, the first processor's redistributor and interface, and the ITS.
pub fn start() {
    write32(DISTRIBUTOR, 1 << 4 | 1 << 1);
    let waker = REDISTRIBUTOR + 0x14;
    write32(waker, read32(waker) & !2);
    Deadline::after(1000).wait(|| read32(waker) & 4 == 0);
    let private = REDISTRIBUTOR + BLOCK;
    write32(private + 0x80, u32::MAX);
    (0..32).for_each(|number| write8(private + 0x400 + number, PRIORITY));
    write32(private + 0x100, 0xffff | 1 << TIMER);
    start_messages();
    write_register!("s3_0_c12_c12_5", 7);
    write_register!("s3_0_c4_c6_0", 0xff);
    write_register!("s3_0_c12_c12_7", 1);
}

fn start_messages() {
    let (properties, pending) = (table(), table());
    (0..256).for_each(|vector| write8(properties + vector, PRIORITY | 1));
    // 14 bits of interrupt numbers.
    write64(REDISTRIBUTOR + 0x70, properties | SHAREABLE | WRITE_BACK_REDISTRIBUTOR | 13);
    write64(REDISTRIBUTOR + 0x78, pending | SHAREABLE | WRITE_BACK_REDISTRIBUTOR | 1 << 62);
    write32(REDISTRIBUTOR, 1);
    for index in 0..8 {
        let register = ITS + 0x100 + 8 * index;
        let kind = read64(register) >> 56 & 7;
        if kind == 1 || kind == 4 {
            // One page of 64 KiB.
            write64(register, VALID | WRITE_BACK_ITS | SHAREABLE | table() | 2 << 8);
        }
    }
    COMMANDS.store(table(), Ordering::Relaxed);
    NEXT.store(0, Ordering::Relaxed);
    write64(ITS + 0x80, VALID | WRITE_BACK_ITS | SHAREABLE | COMMANDS.load(Ordering::Relaxed));
    write32(ITS, 1);
    command([MAPC, 0, VALID, 0]);
    command([SYNC, 0, 0, 0]);
}

/// Has the ITS turn the device's event `vector` into the interrupt behind that number of [`LPI_FIRST`]; returns the address and
/// the data of its message.
pub fn map_message(device: u16, vector: u8) -> (u64, u32) {
    let device = u64::from(device) << 32;
    // 8 bits of events.
    command([MAPD | device, 7, VALID | table(), 0]);
    command([MAPTI | device, u64::from(vector) | (LPI_FIRST + u64::from(vector)) << 32, 0, 0]);
    command([SYNC, 0, 0, 0]);
    (ITS + BLOCK + 0x40, u32::from(vector))
}

fn command(words: [u64; 4]) {
    let at = NEXT.load(Ordering::Relaxed);
    for (index, word) in (0..).zip(words) {
        write64(COMMANDS.load(Ordering::Relaxed) + at + 8 * index, word);
    }
    let next = (at + 32) % COMMANDS_SIZE;
    NEXT.store(next, Ordering::Relaxed);
    write64(ITS + 0x88, next);
    Deadline::after(1000).wait(|| read64(ITS + 0x90) == next);
}
