//! Guest RAM through host pointers: the one place where this crate touches guest memory unchecked.
//!
//! The guest writes to its memory at any time, so nothing here makes references to it: ring fields are accessed as
//! atomics, and payload is copied by volatile accesses.

use machine::memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegion, Memory, VolatileSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// One run of guest memory at its address in this process. An array of them is an array of `iovec`s, for
/// `readv(2)` and io_uring.
///
/// It is a plain pointer: whoever dereferences it (that is, hands it to the kernel) keeps the queue it came from until
/// the access is over.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Segment(libc::iovec);

// SAFETY: a segment is an address and a length; all accesses through it are the unsafe act of whoever makes them.
unsafe impl Send for Segment {}
// SAFETY: as above; it has no interior mutability.
unsafe impl Sync for Segment {}

impl Segment {
    /// A segment of host memory that did not come from a queue, such as a bounce buffer.
    pub fn new(pointer: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: pointer.cast(), iov_len: len })
    }

    /// Where it starts.
    pub fn as_ptr(self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Its length in bytes.
    pub fn len(self) -> usize {
        self.0.iov_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(self) -> bool {
        self.0.iov_len == 0
    }

    /// The part that begins at `offset` and has at most `len` bytes; empty when `offset` is at or past the end.
    #[must_use]
    pub fn part(self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len());
        let len = self.len().saturating_sub(offset).min(len);
        Self::new(self.as_ptr().wrapping_add(offset), len)
    }

    /// The array, as the kernel takes it.
    pub fn as_iovecs(segments: &[Self]) -> *const libc::iovec {
        segments.as_ptr().cast()
    }

    /// Copies to `data`, which is no longer than the segment, from its start.
    ///
    /// # Safety
    /// The memory is mapped.
    pub(crate) unsafe fn read(self, data: &mut [u8]) {
        // SAFETY: the caller says that the memory is mapped.
        unsafe { VolatileSlice::new(self.as_ptr(), self.len()) }.copy_to(data);
    }

    /// Copies `data`, which is no longer than the segment, to its start.
    ///
    /// # Safety
    /// The memory is mapped.
    pub(crate) unsafe fn write(self, data: &[u8]) {
        // SAFETY: the caller says that the memory is mapped.
        unsafe { VolatileSlice::new(self.as_ptr(), self.len()) }.copy_from(data);
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:p}+{:#x}", self.0.iov_base, self.0.iov_len)
    }
}

#[derive(Clone, Copy)]
struct Region {
    start: u64,
    size: u64,
    host: *mut u8,
}

impl Region {
    /// Where `address` is and how many bytes follow it, itself included.
    fn locate(&self, address: u64) -> Option<(*mut u8, u64)> {
        let offset = address.checked_sub(self.start)?;
        let rest = self.size.checked_sub(offset).filter(|rest| *rest > 0)?;
        Some((self.host.wrapping_add(usize::try_from(offset).ok()?), rest))
    }
}

/// Where each region of guest RAM is in this process.
pub(crate) struct RamMap {
    memory: Memory,
    regions: Vec<Region>,
    /// Index of the region found last: successive buffers are mostly in the same one.
    recent: usize,
}

// SAFETY: the pointers are into mappings kept alive by `memory`, which is itself `Send`.
unsafe impl Send for RamMap {}

impl RamMap {
    pub(crate) fn new(memory: Memory) -> Self {
        let region = |region: &GuestRegion| Region {
            start: region.start_addr().0,
            size: GuestMemoryRegion::len(region),
            host: region.as_ptr(),
        };
        let regions = memory.iter().map(region).collect();
        Self { memory, regions, recent: 0 }
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    fn locate(&mut self, address: u64) -> Option<(*mut u8, u64)> {
        if let Some(found) = self.regions.get(self.recent).and_then(|region| region.locate(address)) {
            return Some(found);
        }
        let at = self.regions.partition_point(|region| region.start <= address).checked_sub(1)?;
        let found = self.regions.get(at)?.locate(address)?;
        self.recent = at;
        Some(found)
    }

    /// Adds the segments that `address..address + len` is made of: one, unless it runs on into a following region. `None`
    /// when part of it is not RAM; `segments` may then have grown.
    pub(crate) fn resolve(&mut self, address: u64, len: u32, segments: &mut Vec<Segment>) -> Option<()> {
        let mut address = address;
        let mut left = u64::from(len);
        while left > 0 {
            let (pointer, rest) = self.locate(address)?;
            let part = rest.min(left);
            segments.push(Segment::new(pointer, usize::try_from(part).ok()?));
            left = left.wrapping_sub(part);
            if left > 0 {
                address = address.checked_add(part)?;
            }
        }
        Some(())
    }

    /// A table in guest memory, which lies in one region. `None` when it does not.
    pub(crate) fn table(&mut self, address: u64, len: u64) -> Option<Table> {
        let (base, rest) = self.locate(address)?;
        (len > 0 && len <= rest).then_some(())?;
        Some(Table { base, len: usize::try_from(len).ok()?, _memory: Arc::clone(&self.memory) })
    }

    /// As [`Self::table`], without a handle of its own: for use while the map is borrowed.
    pub(crate) fn borrowed_table(&mut self, address: u64, len: u64) -> Option<BorrowedTable<'_>> {
        let (base, rest) = self.locate(address)?;
        (len > 0 && len <= rest).then_some(())?;
        Some(BorrowedTable { base, len: usize::try_from(len).ok()?, map: self })
    }
}

/// A part of a ring: bytes of guest memory accessed as aligned little-endian atomics. An access outside of the
/// table reads as 0 or is dropped; the queue code makes none.
pub(crate) struct Table {
    base: *mut u8,
    len: usize,
    /// Keeps the bytes mapped.
    _memory: Memory,
}

// SAFETY: the pointer is into a mapping kept alive by `_memory`, and all accesses are atomic.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// A pointer to an aligned `T` that lies within the table.
    #[inline]
    fn field<T>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        let pointer = self.base.wrapping_add(offset).cast::<T>();
        (end <= self.len && pointer.is_aligned()).then_some(pointer)
    }

    #[inline]
    pub(crate) fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        debug_assert!(self.field::<u16>(offset).is_some());
        // SAFETY: `field` gives an aligned pointer into mapped memory, which is only accessed atomically.
        self.field(offset).map_or(0, |at| u16::from_le(unsafe { AtomicU16::from_ptr(at) }.load(order)))
    }

    #[inline]
    pub(crate) fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        debug_assert!(self.field::<u16>(offset).is_some());
        if let Some(at) = self.field(offset) {
            // SAFETY: as in `load_u16`.
            unsafe { AtomicU16::from_ptr(at) }.store(value.to_le(), order);
        }
    }

    #[inline]
    pub(crate) fn load_u32(&self, offset: usize) -> u32 {
        debug_assert!(self.field::<u32>(offset).is_some());
        // SAFETY: as in `load_u16`.
        let load = |at| u32::from_le(unsafe { AtomicU32::from_ptr(at) }.load(Ordering::Relaxed));
        self.field(offset).map_or(0, load)
    }

    #[inline]
    pub(crate) fn store_u32(&self, offset: usize, value: u32) {
        debug_assert!(self.field::<u32>(offset).is_some());
        if let Some(at) = self.field(offset) {
            // SAFETY: as in `load_u16`.
            unsafe { AtomicU32::from_ptr(at) }.store(value.to_le(), Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn load_u64(&self, offset: usize) -> u64 {
        debug_assert!(self.field::<u64>(offset).is_some());
        // SAFETY: as in `load_u16`.
        let load = |at| u64::from_le(unsafe { AtomicU64::from_ptr(at) }.load(Ordering::Relaxed));
        self.field(offset).map_or(0, load)
    }

    /// Whether the start is a multiple of `alignment`, a power of two, in this process also.
    pub(crate) fn is_aligned(&self, alignment: usize) -> bool {
        self.base.addr() & alignment.wrapping_sub(1) == 0
    }
}

/// An indirect descriptor table, which may have any alignment.
pub(crate) struct BorrowedTable<'a> {
    base: *mut u8,
    len: usize,
    pub(crate) map: &'a mut RamMap,
}

impl BorrowedTable<'_> {
    /// The 16 bytes at `offset`, as two little-endian numbers. `None` outside of the table.
    #[inline]
    pub(crate) fn read_16(&self, offset: usize) -> Option<[u64; 2]> {
        if offset.checked_add(16)? > self.len {
            return None;
        }
        let mut bytes = [0; 16];
        // SAFETY: the bytes are within the table, which lies in a region that `map` keeps mapped.
        unsafe { Segment::new(self.base.wrapping_add(offset), 16).read(&mut bytes) };
        let bytes = u128::from_le_bytes(bytes);
        Some([bytes as u64, (bytes >> 64) as u64])
    }
}
