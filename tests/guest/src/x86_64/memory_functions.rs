//! The memory functions that the compiler calls, which a program without a C library has to bring along.
//!
//! The string instructions are used throughout: a compiled loop could be turned back into a call of itself.

use core::arch::asm;

/// Copies `count` bytes between areas that do not overlap.
///
/// # Safety
/// Both areas are valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _, options(nostack, preserves_flags))
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
        // SAFETY: the caller's promise; `count` is not 0 here, and the direction flag is put back.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rdi") to.add(count - 1) => _, inout("rsi") from.add(count - 1) => _,
                inout("rcx") count => _, options(nostack))
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
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, inout("rcx") count => _, in("al") value as u8, options(nostack, preserves_flags))
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
