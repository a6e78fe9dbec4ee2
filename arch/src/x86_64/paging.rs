//! The guest's page tables, as its CPU walks them (Intel SDM 3, 4; AMD APM 2, 5): for debuggers and core dumps, which see
//! memory by linear addresses. Permissions and accessed bits are left aside.

use crate::mapping::{self, Mapping};
use hypervisor::x86_64::VcpuState;
use machine::memory::{Bytes, GuestAddress, GuestRam};

pub use hypervisor::x86_64::Sregs as State;
use hypervisor::x86_64::Sregs;

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

const PRESENT: u64 = 1;
/// The entry maps memory itself, instead of pointing to a table.
const LARGE: u64 = 1 << 7;
/// Bits of an entry that are an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What of a CPU says how it finds memory.
///
/// # Errors
/// When the host refuses.
pub fn state(cpu: &dyn VcpuState) -> hypervisor::Result<State> {
    cpu.sregs()
}

/// How a CPU finds memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// Linear addresses are physical ones.
    Off,
    /// 32-bit, two levels, with 4 MiB pages or without.
    Legacy {
        /// Whether large pages are on.
        large: bool,
    },
    /// 32-bit, three levels.
    Pae,
    /// 64-bit, with this many levels: 4 or 5.
    Long(u32),
}

impl Paging {
    /// The way of a CPU in this state.
    pub fn of(sregs: &Sregs) -> Self {
        if sregs.cr0 & CR0_PG == 0 {
            Self::Off
        } else if sregs.efer & EFER_LMA != 0 {
            Self::Long(if sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 })
        } else if sregs.cr4 & CR4_PAE != 0 {
            Self::Pae
        } else {
            Self::Legacy { large: sregs.cr4 & CR4_PSE != 0 }
        }
    }
}

/// Where linear `address` is in guest-physical memory, and how many bytes from there on lie in the same page.
pub fn translate(ram: &GuestRam, sregs: &Sregs, address: u64) -> Option<(u64, u64)> {
    let within = |base: u64, bits: u32| {
        let size = 1_u64 << bits;
        (base & !(size - 1) | address & (size - 1), size - (address & (size - 1)))
    };
    match Paging::of(sregs) {
        Paging::Off => Some((address, u64::MAX - address)),
        Paging::Legacy { large } => {
            let address = address & 0xffff_ffff;
            let entry = |table: u64, index: u64| ram.read_obj::<u32>(GuestAddress(table + index * 4)).ok();
            let directory = u64::from(entry(sregs.cr3 & 0xffff_f000, address >> 22)?);
            if directory & PRESENT == 0 {
                return None;
            }
            if large && directory & LARGE != 0 {
                // PSE-36: bits 32 to 39 of the address are in bits 13 to 20.
                return Some(within(directory & 0xffc0_0000 | (directory >> 13 & 0xff) << 32, 22));
            }
            let page = u64::from(entry(directory & 0xffff_f000, address >> 12 & 0x3ff)?);
            (page & PRESENT != 0).then(|| within(page & 0xffff_f000, 12))
        }
        Paging::Pae => {
            let address = address & 0xffff_ffff;
            let table =
                ram.read_obj::<u64>(GuestAddress((sregs.cr3 & 0xffff_ffe0) + (address >> 30) * 8)).ok()?;
            if table & PRESENT == 0 {
                return None;
            }
            let (page, bits) = walk(ram, table & ADDRESS, address, 2)?;
            Some(within(page, bits))
        }
        Paging::Long(levels) => {
            let bits = 12 + 9 * levels;
            // Canonical: the bits above are copies of the highest one.
            let above = address.cast_signed() >> (bits - 1);
            if above != 0 && above != -1 {
                return None;
            }
            let (page, bits) = walk(ram, sregs.cr3 & ADDRESS, address, levels)?;
            Some(within(page, bits))
        }
    }
}

/// Walks tables of 512 entries from the one of this level down: the page's address, and its size as a power of two.
fn walk(ram: &GuestRam, table: u64, address: u64, levels: u32) -> Option<(u64, u32)> {
    step(ram, table, address, levels).ok()
}

/// Where the upper half of a 64-bit CPU's linear addresses begins, in which kernels are; `None` in other modes.
pub fn kernel_half(sregs: &Sregs) -> Option<u64> {
    let Paging::Long(levels) = Paging::of(sregs) else { return None };
    Some(u64::MAX << (11 + 9 * levels))
}

/// What a 64-bit CPU maps from linear address `from` on, ascending and joined where possible, up to `most` runs. Looks at
/// `most_entries` entries of tables at most: a guest can make tables that map without end.
pub fn mappings(ram: &GuestRam, sregs: &Sregs, from: u64, most: usize, most_entries: u64) -> Vec<Mapping> {
    let Paging::Long(levels) = Paging::of(sregs) else { return Vec::new() };
    mapping::runs(from, most, most_entries, |address| step(ram, sregs.cr3 & ADDRESS, address, levels))
}

/// As [`walk`]; where nothing is mapped, tells for how many address bits that holds.
fn step(ram: &GuestRam, mut table: u64, address: u64, levels: u32) -> Result<(u64, u32), u32> {
    for level in (0..levels).rev() {
        let bits = 12 + 9 * level;
        let entry = ram.read_obj::<u64>(GuestAddress(table + (address >> bits & 0x1ff) * 8)).unwrap_or(0);
        if entry & PRESENT == 0 {
            return Err(bits);
        }
        if level == 0 || (level <= 2 && entry & LARGE != 0) {
            return Ok((entry & ADDRESS & !((1 << bits) - 1), bits));
        }
        table = entry & ADDRESS;
    }
    Err(12)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    fn put(ram: &GuestRam, table: u64, index: u64, entry: u64) {
        ram.write_obj(entry, GuestAddress(table + index * 8)).unwrap();
    }

    fn long(levels: u32) -> Sregs {
        Sregs {
            cr0: CR0_PG,
            cr3: 0x1000 | 0x18,
            cr4: CR4_PAE | if levels == 5 { CR4_LA57 } else { 0 },
            efer: EFER_LMA,
            ..Sregs::default()
        }
    }

    #[test]
    fn without_paging_addresses_are_physical() {
        assert_eq!(translate(&ram(), &Sregs::default(), 0x1234).unwrap().0, 0x1234);
    }

    #[test]
    fn four_and_five_levels_and_large_pages() {
        let ram = ram();
        let linear = 0xffff_8123_4567_89ab_u64;
        let index = |level: u32| linear >> (12 + 9 * level) & 0x1ff;
        put(&ram, 0x1000, index(3), 0x2003);
        put(&ram, 0x2000, index(2), 0x3003);
        put(&ram, 0x3000, index(1), 0x4003);
        // No-execute is not a part of the address.
        put(&ram, 0x4000, index(0), 1 << 63 | 0x1_2345_6003);
        assert_eq!(translate(&ram, &long(4), linear), Some((0x1_2345_69ab, 0x1000 - 0x9ab)));
        put(&ram, 0x3000, index(1), 0x2_0000_0083 | 0x1000);
        let offset = linear & 0x1f_ffff;
        assert_eq!(translate(&ram, &long(4), linear), Some((0x2_0000_0000 + offset, 0x20_0000 - offset)));
        put(&ram, 0x2000, index(2), 0x40_0000_0083);
        let offset = linear & 0x3fff_ffff;
        assert_eq!(translate(&ram, &long(4), linear), Some((0x40_0000_0000 + offset, 0x4000_0000 - offset)));
        assert_eq!(translate(&ram, &long(4), linear ^ 1 << 39), None, "not present");
        assert_eq!(translate(&ram, &long(4), linear ^ 1 << 60), None, "not canonical");

        // With five levels the same tables are one level down.
        let mut five = long(5);
        five.cr3 = 0x5000;
        let far = linear ^ 0x0055 << 48;
        put(&ram, 0x5000, far >> 48 & 0x1ff, 0x1003);
        assert_eq!(translate(&ram, &five, far).map(|found| found.0), Some(0x40_0000_0000 + offset));
    }

    #[test]
    fn the_paging_of_32_bit_guests() {
        let ram = ram();
        let mut legacy = Sregs { cr0: CR0_PG, cr3: 0x1000, cr4: CR4_PSE, ..Sregs::default() };
        let put = |table: u64, index: u64, entry: u32| {
            ram.write_obj(entry, GuestAddress(table + index * 4)).unwrap();
        };
        put(0x1000, 0x300, 0x2003);
        put(0x2000, 1, 0x0007_7003);
        assert_eq!(translate(&ram, &legacy, 0xc000_1abc), Some((0x7_7abc, 0x544)));
        put(0x1000, 0x301, 0x0080_0083 | 0x5 << 13);
        assert_eq!(translate(&ram, &legacy, 0xc040_0001).map(|found| found.0), Some(0x5_0080_0001));
        legacy.cr4 = CR4_PAE;
        legacy.cr3 = 0x3020;
        ram.write_obj(0x4001_u64, GuestAddress(0x3020 + 24)).unwrap();
        ram.write_obj(0x60_0083_u64, GuestAddress(0x4000)).unwrap();
        assert_eq!(translate(&ram, &legacy, 0xc000_0010).map(|found| found.0), Some(0x60_0010));
    }

    #[test]
    fn mappings_are_joined_and_bounded() {
        let ram = ram();
        put(&ram, 0x1000, 511, 0x2003);
        put(&ram, 0x2000, 510, 0x3003);
        for index in 0..8 {
            put(&ram, 0x3000, index, (0x100_0000 + index * 0x20_0000) | 0x83);
        }
        put(&ram, 0x3000, 10, 0x83);
        // A table that is its own entry maps a lot.
        put(&ram, 0x1000, 256, 0x1003);
        let start = 0xffff_ffff_8000_0000;
        assert_eq!(
            mappings(&ram, &long(4), start, 10, 1 << 20),
            [
                Mapping { linear: start, physical: 0x100_0000, size: 16 << 20 },
                Mapping { linear: start + (20 << 20), physical: 0, size: 2 << 20 },
            ]
        );
        assert!(mappings(&ram, &long(4), 1 << 63 | 0x7fff << 48, 4, 1 << 14).len() <= 4);
    }
}
