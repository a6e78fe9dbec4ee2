//! Instructions that the host writes into guest memory.

use machine::memory::{GuestAddress, GuestRam};

/// Has CPUs see, as instructions too, the `length` bytes that were written at `address`: they do without being told (Intel SDM 3,
/// 11.6).
pub fn written(_: &GuestRam, _: GuestAddress, _length: usize) {}
