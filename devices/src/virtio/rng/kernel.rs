//! The kernel's random numbers, without a descriptor that a sandbox would have to leave open.

/// Fills `buffer`, and returns how much of it. Does not wait: 0 before the host has gathered entropy, early in
/// its boot.
pub(super) fn fill(buffer: &mut [u8]) -> usize {
    // SAFETY: the buffer lives during the call and has this length.
    let count = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), libc::GRND_NONBLOCK) };
    usize::try_from(count).unwrap_or(0)
}
