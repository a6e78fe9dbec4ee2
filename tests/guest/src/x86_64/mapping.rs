//! Page tables: all is mapped to itself, the first 4 GiB by `boot.s`, and what lies above when it is needed.

use crate::memory::permanent;

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// RAM up to here is mapped from the start.
pub const RAM_LIMIT: u64 = 4 * GIB;

unsafe extern "C" {
    safe static mut page_map_level_4: [u64; 512];
}

/// Makes sure that `size` bytes at `address` are mapped to themselves: whole GiB are added, as 512 pages of 2 MiB. Not as one
/// page: where this code runs natively, CPUID tells what the host's CPU has, which is not what the guest's may do.
pub fn map(address: u64, size: u64) {
    let mut gib = address / GIB;
    while gib * GIB < address.saturating_add(size) && gib < 1 << 17 {
        if gib >= 4 {
            map_gib(gib);
        }
        gib += 1;
    }
}

fn map_gib(gib: u64) {
    let top = &raw mut page_map_level_4 as *mut u64;
    // SAFETY: the tables are this program's, identity-mapped, and the indexes stay below 512.
    unsafe {
        let table_entry = top.add((gib >> 9) as usize);
        if table_entry.read_volatile() == 0 {
            table_entry.write_volatile(permanent(PAGE) | 7);
        }
        let pointers = (table_entry.read_volatile() & !(PAGE - 1)) as *mut u64;
        let entry = pointers.add((gib & 511) as usize);
        if entry.read_volatile() != 0 {
            return;
        }
        let directory = permanent(PAGE) as *mut u64;
        for index in 0..512 {
            directory.add(index).write_volatile((gib * GIB) | ((index as u64) << 21) | 0x87);
        }
        entry.write_volatile(directory as u64 | 7);
    }
}
