//! The memory functions that the compiler calls, which a program without a C library has to bring along.
//!
//! In assembler throughout: a compiled loop could be turned back into a call of itself.

use core::arch::asm;

/// Copies `count` bytes between areas that do not overlap.
///
/// # Safety
/// Both areas are valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("2: cmp {n}, #8", "b.lo 3f", "ldr {w}, [{f}], #8", "str {w}, [{t}], #8", "sub {n}, {n}, #8", "b 2b",
            "3: cbz {n}, 4f", "ldrb {w:w}, [{f}], #1", "strb {w:w}, [{t}], #1", "sub {n}, {n}, #1", "b 3b", "4:",
            n = inout(reg) count => _, f = inout(reg) from => _, t = inout(reg) to => _, w = out(reg) _, options(nostack))
    };
    to
}

/// Copies `count` bytes between areas that may overlap.
///
/// # Safety
/// Both areas are valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the caller's promise; a forward copy never reads what it has written.
        unsafe { memcpy(to, from, count) };
    } else {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("2: cbz {n}, 3f", "sub {n}, {n}, #1", "ldrb {w:w}, [{f}, {n}]", "strb {w:w}, [{t}, {n}]", "b 2b", "3:",
                n = inout(reg) count => _, f = in(reg) from, t = in(reg) to, w = out(reg) _, options(nostack))
        };
    }
    to
}

/// Sets `count` bytes to the low byte of `value`.
///
/// # Safety
/// The area is valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    let word = u64::from(value as u8) * 0x0101_0101_0101_0101;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("2: cmp {n}, #8", "b.lo 3f", "str {w}, [{t}], #8", "sub {n}, {n}, #8", "b 2b",
            "3: cbz {n}, 4f", "strb {w:w}, [{t}], #1", "sub {n}, {n}, #1", "b 3b", "4:",
            n = inout(reg) count => _, t = inout(reg) to => _, w = in(reg) word, options(nostack))
    };
    to
}

/// Compares `count` bytes as unsigned numbers.
///
/// # Safety
/// Both areas are valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for offset in 0..count {
        // SAFETY: the caller's promise.
        let (a, b) = unsafe { (left.add(offset).read_volatile(), right.add(offset).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// Tells whether `count` bytes differ.
///
/// # Safety
/// Both areas are valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, count) }
}
