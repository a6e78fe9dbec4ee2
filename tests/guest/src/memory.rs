//! RAM for queues and buffers, and ACPI tables.
//!
//! RAM behind the program is given out upwards to tasks, which give it back when they end, and from its end downwards
//! to what stays. Addresses are the devices' addresses too, since everything is mapped to itself.

use crate::boot_info::BootInfo;
use crate::cpu;
use crate::native::mapping;
use core::sync::atomic::{AtomicU64, Ordering};

const PAGE: u64 = 4096;
/// RAM assumed to follow the program if the monitor passed no memory map.
const ASSUMED: u64 = 16 << 20;

static NEXT: AtomicU64 = AtomicU64::new(0);
static LIMIT: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    safe static __end: u8;
}

/// Learns which RAM may be given out.
pub fn install(boot: &BootInfo) {
    let start = &raw const __end as u64;
    let region = boot.regions().iter().find(|region| (region.start..region.end).contains(&start));
    let limit = region.map_or(start + ASSUMED, |region| region.end.min(mapping::RAM_LIMIT));
    NEXT.store(start, Ordering::Relaxed);
    LIMIT.store(limit, Ordering::Relaxed);
}

/// Bytes that [`take`] can still give.
pub fn remaining() -> u64 {
    LIMIT.load(Ordering::Relaxed).saturating_sub(NEXT.load(Ordering::Relaxed))
}

/// First byte behind the RAM that is given out.
pub fn limit() -> u64 {
    LIMIT.load(Ordering::Relaxed)
}

/// Zeroed memory until [`release`]; ends the guest with a panic report if there is not enough.
pub fn take(size: u64, alignment: u64) -> *mut u8 {
    let memory = take_as_it_is(size, alignment);
    // SAFETY: the range was just given out and is RAM.
    unsafe { memory.write_bytes(0, size as usize) };
    memory
}

/// The same without clearing it.
pub fn take_as_it_is(size: u64, alignment: u64) -> *mut u8 {
    let start = NEXT.load(Ordering::Relaxed).next_multiple_of(alignment);
    match start.checked_add(size) {
        Some(end) if end <= limit() => NEXT.store(end, Ordering::Relaxed),
        _ => panic!("not enough memory for {size} bytes"),
    }
    start as *mut u8
}

/// Zeroed memory for good, aligned to a page.
pub fn permanent(size: u64) -> u64 {
    let start = limit().saturating_sub(size) & !(PAGE - 1);
    if start < NEXT.load(Ordering::Relaxed) {
        panic!("not enough memory for {size} bytes");
    }
    LIMIT.store(start, Ordering::Relaxed);
    // SAFETY: the range was just set apart and is RAM.
    unsafe { (start as *mut u8).write_bytes(0, size as usize) };
    start
}

/// A point to go back to.
pub struct Mark(u64);

/// Where [`take`] stands now.
pub fn mark() -> Mark {
    Mark(NEXT.load(Ordering::Relaxed))
}

/// Takes back everything given out since `mark`.
pub fn release(mark: Mark) {
    NEXT.store(mark.0, Ordering::Relaxed);
}

/// Makes sure that `size` bytes of device registers at `address` are mapped to themselves.
pub fn map(address: u64, size: u64) {
    mapping::map(address, size);
}

/// Finds an ACPI table by its signature: address and length. Only the header's length is believed.
pub fn acpi_table(rsdp: u64, signature: [u8; 4]) -> Option<(u64, u64)> {
    if rsdp == 0 || cpu::read64(rsdp) != u64::from_le_bytes(*b"RSD PTR ") {
        return None;
    }
    let (root, width) = match cpu::read8(rsdp + 15) {
        0 | 1 => (u64::from(cpu::read32(rsdp + 16)), 4),
        _ => (cpu::read64(rsdp + 24), 8),
    };
    let length = u64::from(cpu::read32(root + 4));
    (36..length).step_by(width).find_map(|offset| {
        let table =
            if width == 4 { u64::from(cpu::read32(root + offset)) } else { cpu::read64(root + offset) };
        (cpu::read32(table).to_le_bytes() == signature).then(|| (table, u64::from(cpu::read32(table + 4))))
    })
}
