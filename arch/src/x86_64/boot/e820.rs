//! The memory map that a kernel is given: what is RAM, and what it must keep off (ACPI 6.5, 15).

use crate::x86_64::layout::{EBDA, ECAM_0, ECAM_SIZE, HIGH_RAM, MemoryLayout, RESERVED_SIZE, RESERVED_START};
use machine::bus::Range;

/// What a range of addresses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// Usable.
    Ram = 1,
    /// Neither RAM nor free for devices.
    Reserved = 2,
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// Addresses.
    pub range: Range,
    /// What they are.
    pub kind: E820Type,
}

impl E820Entry {
    /// As BIOS calls give it: address, size and kind, little-endian.
    pub fn bytes(&self) -> Vec<u8> {
        let Range { start, size } = self.range;
        [&start.to_le_bytes()[..], &size.to_le_bytes(), &(self.kind as u32).to_le_bytes()].concat()
    }
}

/// A machine's memory map, ascending and without overlaps.
pub fn e820(layout: &MemoryLayout) -> Vec<E820Entry> {
    let ram = |start: u64, end: u64| E820Entry {
        range: Range { start, size: end.saturating_sub(start) },
        kind: E820Type::Ram,
    };
    let reserved =
        |start: u64, size: u64| E820Entry { range: Range { start, size }, kind: E820Type::Reserved };

    let mut map = vec![
        ram(0, EBDA),
        reserved(EBDA, HIGH_RAM.saturating_sub(EBDA)),
        ram(HIGH_RAM, layout.low_ram_end()),
        reserved(ECAM_0.start, ECAM_0.size),
        reserved(RESERVED_START, RESERVED_SIZE),
    ];
    map.extend(layout.ram().iter().skip(1).map(|&range| E820Entry { range, kind: E820Type::Ram }));
    // The ECAMs of further segments follow each other.
    let further = layout.segments().len().saturating_sub(1) as u64;
    if let Some(first) = layout.segments().get(1) {
        map.push(reserved(first.ecam.start, further.saturating_mul(ECAM_SIZE)));
    }
    map
}
