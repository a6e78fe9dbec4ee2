//! Translation tables: all is mapped to itself. `boot.s` has the first 512 GiB, as RAM but for the first; where device registers
//! are above it, the GiB they are in is made one of devices.

use crate::memory::permanent;
use core::arch::asm;

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// RAM up to here is mapped from the start.
pub const RAM_LIMIT: u64 = 512 * GIB;
const TABLE: u64 = 3;
/// A block of device memory, not executable.
const DEVICE: u64 = 0x0060_0000_0000_0401;

unsafe extern "C" {
    safe static mut translation_table: [u64; 512];
}

/// Makes sure that `size` bytes of device registers at `address` are mapped to themselves.
pub fn map(address: u64, size: u64) {
    let mut gib = address / GIB;
    while gib * GIB < address.saturating_add(size) && gib < 1 << 18 {
        map_gib(gib);
        gib += 1;
    }
}

fn map_gib(gib: u64) {
    let top = &raw mut translation_table as *mut u64;
    // SAFETY: the tables are this program's, identity-mapped, and the indexes stay below 512. An entry is invalid before it
    // becomes another (Arm ARM, D8.16.1, break-before-make).
    unsafe {
        let table_entry = top.add((gib >> 9) as usize);
        if table_entry.read_volatile() == 0 {
            table_entry.write_volatile(permanent(PAGE) | TABLE);
        }
        let blocks = (table_entry.read_volatile() & 0xffff_ffff_f000) as *mut u64;
        let entry = blocks.add((gib & 511) as usize);
        let wanted = (gib * GIB) | DEVICE;
        if entry.read_volatile() != wanted {
            entry.write_volatile(0);
            asm!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb");
            entry.write_volatile(wanted);
            asm!("dsb ish", "isb");
        }
    }
}
