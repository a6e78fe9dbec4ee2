//! Instructions that the host writes into guest memory.

use machine::memory::{GuestAddress, GuestMemoryBackend, GuestRam};

/// Has CPUs see, as instructions too, the `length` bytes that were written at `address` (Arm ARM, B2.4.4). What is not memory is
/// left aside.
pub fn written(ram: &GuestRam, address: GuestAddress, length: usize) {
    let Ok(slice) = ram.get_slice(address, length) else { return };
    let guard = slice.ptr_guard();
    synchronize(guard.as_ptr(), length);
}

/// Writes the lines of the data cache back to where instructions are fetched from, and drops those of the instruction cache, on
/// all of the host's CPUs.
#[cfg(target_arch = "aarch64")]
fn synchronize(start: *const u8, length: usize) {
    use std::arch::asm;
    let cache_type: usize;
    // SAFETY: reads a register that Linux lets programs read.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) cache_type, options(nomem, nostack, preserves_flags)) };
    let lines = |shift: usize| {
        // Of the smallest line, the number of words as a power of two.
        let size = 4_usize << (cache_type >> shift & 0xf);
        (start.addr() & !(size - 1)..start.addr().saturating_add(length)).step_by(size)
    };
    for line in lines(16) {
        // SAFETY: changes no memory; the address is of a line that has bytes of a mapping of this process.
        unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: waits until that is done.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
    for line in lines(0) {
        // SAFETY: as above.
        unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: as above.
    unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Not on a processor of this architecture: no guest of it runs here.
#[cfg(not(target_arch = "aarch64"))]
fn synchronize(_: *const u8, _length: usize) {}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::memory::Bytes;

    #[test]
    fn memory_keeps_its_content_and_what_is_none_is_left_aside() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap();
        ram.write_obj(0xd420_0000_u32, GuestAddress(0x1ffc)).unwrap();
        for (address, length) in [(0x1ffc, 4), (0x1001, 0xfff), (0x1800, 0), (0x1ffc, 8), (0, 4)] {
            written(&ram, GuestAddress(address), length);
        }
        assert_eq!(ram.read_obj::<u32>(GuestAddress(0x1ffc)).unwrap(), 0xd420_0000);
    }
}
