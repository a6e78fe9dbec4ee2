//! Page tables: all is mapped to itself, the first 4 GiB by `boot.s`, and what lies above when it is needed.

use crate::cpu;
use crate::memory::permanent;

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// RAM up to here is mapped from the start.
pub const RAM_LIMIT: u64 = 4 * GIB;

unsafe extern "C" {
    safe static mut page_map_level_4: [u64; 512];
}

/// Makes sure that `size` bytes at `address` are mapped to themselves: whole GiB are added, as one page where CPUID offers
/// that, else as 512 of 2 MiB.
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
        if has_gib_pages() {
            entry.write_volatile((gib * GIB) | 0x87);
        } else {
            let directory = permanent(PAGE) as *mut u64;
            for index in 0..512 {
                directory.add(index).write_volatile((gib * GIB) | ((index as u64) << 21) | 0x87);
            }
            entry.write_volatile(directory as u64 | 7);
        }
    }
}

fn has_gib_pages() -> bool {
    cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0
}
