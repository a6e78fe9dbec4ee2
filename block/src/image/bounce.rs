//! The memory between a guest's buffers and direct I/O, for buffers that are not aligned as the storage wants.
//!
//! Guests align their buffers, so this is rare: one buffer per queue, which requests take in turns, bounds what a hostile
//! guest can make the monitor allocate.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use virtio::chain::{Segment, parts};

const SIZE: usize = 256 << 10;
const ALIGNMENT: usize = 4096;

/// An aligned buffer of [`Bounce::SIZE`] bytes.
pub(super) struct Bounce(NonNull<u8>);

// SAFETY: it is memory that nobody else has.
unsafe impl Send for Bounce {}

impl Bounce {
    /// How many bytes it has.
    pub(super) const SIZE: u64 = SIZE as u64;

    const LAYOUT: Layout = match Layout::from_size_align(SIZE, ALIGNMENT) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    };

    pub(super) fn new() -> Self {
        // SAFETY: the size is not zero.
        let memory = unsafe { alloc_zeroed(Self::LAYOUT) };
        Self(NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(Self::LAYOUT)))
    }

    /// Its first `length` bytes, or all it has.
    pub(super) fn segment(&self, length: u64) -> Segment {
        Segment::new(self.0.as_ptr(), length.min(Self::SIZE) as usize)
    }

    /// Copies the first `length` bytes of `from` into it, or as many as it has.
    ///
    /// # Safety
    /// The segments are mapped, and no operation uses the buffer.
    pub(super) unsafe fn fill(&mut self, from: &[Segment], length: u64) {
        let mut to = self.0.as_ptr();
        for part in parts(from, 0, length.min(Self::SIZE)) {
            // SAFETY: the caller says that the part is mapped, and together the parts are no longer than the buffer. The
            // guest may write to it meanwhile, in which case it gets what it asked for: bytes of either version.
            unsafe { std::ptr::copy(part.as_ptr(), to, part.len()) };
            to = to.wrapping_add(part.len());
        }
    }

    /// Copies its first `length` bytes to the start of `to`.
    ///
    /// # Safety
    /// As for [`Self::fill`].
    pub(super) unsafe fn empty(&self, to: &[Segment], length: u64) {
        let mut from = self.0.as_ptr();
        for part in parts(to, 0, length.min(Self::SIZE)) {
            // SAFETY: as in `fill`.
            unsafe { std::ptr::copy(from, part.as_ptr(), part.len()) };
            from = from.wrapping_add(part.len());
        }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated with this layout.
        unsafe { dealloc(self.0.as_ptr(), Self::LAYOUT) };
    }
}
