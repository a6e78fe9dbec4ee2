//! The host's pages behind guest RAM: giving them back, and taking them ahead of use. The one place that does this.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use machine::bus::Range;
use machine::memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegion, HostPages, Memory};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vm_memory::FileOffset;

/// `f_type` of a hugetlbfs, also that of a memfd of huge pages.
const HUGETLBFS_MAGIC: libc::c_long = 0x9584_58f6;

/// The host's pages behind all of guest RAM.
pub struct RamPages {
    regions: Vec<Region>,
    /// Keeps the regions mapped.
    _memory: Memory,
}

/// A region of guest RAM.
struct Region {
    range: Range,
    host: *mut u8,
    /// Size of the host's pages in it, in bytes.
    page: u64,
    /// The file that other processes may map too, and where in it the region begins.
    shared: Option<FileOffset>,
}

// SAFETY: the pointers are into mappings that `_memory` keeps, and nothing is read or written through them here.
unsafe impl Send for RamPages {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for RamPages {}

impl RamPages {
    /// The pages behind `memory`.
    ///
    /// # Errors
    /// When the host does not say what kind of pages it has there.
    pub fn new(memory: Memory) -> io::Result<Self> {
        let regions = memory.iter().map(Region::new).collect::<io::Result<_>>()?;
        Ok(Self { regions, _memory: memory })
    }

    /// The parts of `range` that are RAM: the region and what of it.
    fn parts(&self, range: Range) -> impl Iterator<Item = (&Region, Range)> {
        let end = range.start.saturating_add(range.size);
        self.regions.iter().filter_map(move |region| {
            let start = range.start.max(region.range.start);
            let end = end.min(region.range.start.saturating_add(region.range.size));
            (start < end).then(|| (region, Range { start, size: end.saturating_sub(start) }))
        })
    }
}

impl Region {
    fn new(region: &GuestRegion) -> io::Result<Self> {
        let shared = region.file_offset().filter(|_| region.flags() & libc::MAP_SHARED != 0).cloned();
        let page = page_size(region)?;
        let range = Range { start: region.start_addr().0, size: GuestMemoryRegion::len(region) };
        Ok(Self { range, host: region.as_ptr(), page, shared })
    }

    /// The whole pages in `part` of the region.
    fn whole_pages(&self, part: Range) -> Option<Range> {
        // The host's pages are aligned in the region, whose start is at the start of one.
        let offset = part.start.checked_sub(self.range.start)?;
        let first = offset.checked_next_multiple_of(self.page)?;
        let end = offset.checked_add(part.size)?;
        let size =
            end.checked_sub(end.checked_rem(self.page)?)?.checked_sub(first).filter(|size| *size > 0)?;
        Some(Range { start: self.range.start.checked_add(first)?, size })
    }

    /// `pages` are whole pages of the region.
    fn release(&self, pages: Range) -> io::Result<()> {
        let offset = pages.start.saturating_sub(self.range.start);
        let Some(shared) = &self.shared else { return self.advise(pages, libc::MADV_DONTNEED) };
        let (start, size) = (shared.start().checked_add(offset), libc::off_t::try_from(pages.size));
        let start = start.and_then(|start| libc::off_t::try_from(start).ok());
        let (Some(start), Ok(size)) = (start, size) else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: only changes what the file holds, which is guest RAM that the guest gave away.
        let result = unsafe { libc::fallocate(shared.file().as_raw_fd(), mode, start, size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn advise(&self, part: Range, advice: i32) -> io::Result<()> {
        let (Ok(offset), Ok(size)) =
            (usize::try_from(part.start.saturating_sub(self.range.start)), usize::try_from(part.size))
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: the range lies in the region, which is mapped, and is guest RAM, to which there are no references.
        let result = unsafe { libc::madvise(self.host.wrapping_add(offset).cast(), size, advice) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl HostPages for RamPages {
    fn release(&self, range: Range) -> io::Result<u64> {
        let mut released = 0;
        for (region, part) in self.parts(range) {
            if let Some(pages) = region.whole_pages(part) {
                region.release(pages)?;
                released = pages.size.saturating_add(released);
            }
        }
        Ok(released)
    }

    fn populate(&self, range: Range) -> io::Result<()> {
        const MADV_POPULATE_WRITE: i32 = 23;
        for (region, part) in self.parts(range) {
            if let Some(pages) = region.whole_pages(part) {
                region.advise(pages, MADV_POPULATE_WRITE)?;
            }
        }
        Ok(())
    }
}

/// The size of the host's pages behind a region of guest memory, in bytes.
///
/// # Errors
/// When the host does not say what kind of pages it has there.
pub fn page_size(region: &GuestRegion) -> io::Result<u64> {
    match region.file_offset() {
        Some(file) => file_page_size(file.file()),
        None => anonymous_page_size(region.flags()),
    }
}

fn file_page_size(file: &File) -> io::Result<u64> {
    // SAFETY: a zeroed statfs is a valid one, and fstatfs only fills it.
    let mut status: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and the place is a statfs.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut status) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if status.f_type == HUGETLBFS_MAGIC {
        return u64::try_from(status.f_bsize).map_err(|_| io::ErrorKind::InvalidData.into());
    }
    Ok(small_page())
}

/// Whether a file's pages are huge ones, from the pool that the host keeps of them.
pub fn is_hugetlb(file: &File) -> bool {
    file_page_size(file).is_ok_and(|size| size > small_page())
}

fn anonymous_page_size(flags: i32) -> io::Result<u64> {
    if flags & libc::MAP_HUGETLB == 0 {
        return Ok(small_page());
    }
    match flags.cast_unsigned() >> libc::MAP_HUGE_SHIFT & 0x3f {
        0 => crate::memory::default_hugepage_size().ok_or_else(|| io::ErrorKind::Unsupported.into()),
        bits => Ok(1 << bits),
    }
}

fn small_page() -> u64 {
    // SAFETY: only asks.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// For what gives guest RAM back.
///
/// # Errors
/// As [`RamPages::new`].
pub fn of(memory: &Memory) -> io::Result<Arc<dyn HostPages>> {
    Ok(Arc::new(RamPages::new(Arc::clone(memory))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ByteSize, MemoryConfig};
    use crate::memory;
    use machine::memory::{Bytes, GuestAddress};

    const M: u64 = 1 << 20;
    const PAGE: u64 = 4096;

    /// How much of the first region is in the host's memory.
    fn resident(memory: &Memory) -> u64 {
        let region = memory.iter().next().unwrap();
        let mut pages = vec![0u8; (GuestMemoryRegion::len(region) / PAGE) as usize];
        // SAFETY: one byte for each page of the mapping.
        let result = unsafe {
            libc::mincore(region.as_ptr().cast(), GuestMemoryRegion::len(region) as usize, pages.as_mut_ptr())
        };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 == 1).count() as u64 * PAGE
    }

    fn filled(shared: bool) -> Memory {
        let config = MemoryConfig { size: ByteSize(6 * M), shared, thp: false, ..MemoryConfig::default() };
        let memory = memory::provide(&config, &[(0, 2 * M), (16 * M, 4 * M)], None).unwrap().ram;
        for region in memory.iter() {
            let bytes = vec![7; GuestMemoryRegion::len(region) as usize];
            memory.write_slice(&bytes, region.start_addr()).unwrap();
        }
        memory
    }

    fn byte(memory: &Memory, address: u64) -> u8 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn released_pages_go_back_to_the_host_and_others_stay() {
        for shared in [false, true] {
            let memory = filled(shared);
            let pages = RamPages::new(Arc::clone(&memory)).unwrap();
            assert_eq!(resident(&memory), 2 * M);
            // From the middle of a page to that of another, of which the whole ones count.
            let released = pages.release(Range { start: M + 100, size: 10 * PAGE }).unwrap();
            assert_eq!((released, resident(&memory)), (9 * PAGE, 2 * M - 9 * PAGE), "shared: {shared}");
            assert_eq!((byte(&memory, M + PAGE - 1), byte(&memory, M + PAGE)), (7, 0));
            assert_eq!((byte(&memory, M + 10 * PAGE - 1), byte(&memory, M + 10 * PAGE)), (0, 7));
            // Over the hole in between, into the second region.
            assert_eq!(pages.release(Range { start: 2 * M - PAGE, size: 15 * M }).unwrap(), PAGE + M - PAGE);
            assert_eq!((byte(&memory, 17 * M - PAGE - 1), byte(&memory, 17 * M - PAGE)), (0, 7));
        }
    }

    #[test]
    fn what_is_not_ram_or_no_whole_page_is_left_alone() {
        let memory = filled(false);
        let pages = RamPages::new(Arc::clone(&memory)).unwrap();
        for range in [
            Range { start: 2 * M, size: 14 * M },
            Range { start: 20 * M, size: u64::MAX },
            Range { start: u64::MAX - 5, size: 100 },
            Range { start: M + 1, size: PAGE },
            Range { start: M, size: PAGE - 1 },
            Range { start: M, size: 0 },
        ] {
            assert_eq!(pages.release(range).unwrap(), 0, "{range:?}");
        }
        assert_eq!(resident(&memory), 2 * M);
    }

    #[test]
    fn populated_pages_are_there_with_what_they_held() {
        for shared in [false, true] {
            let memory = filled(shared);
            let pages = RamPages::new(Arc::clone(&memory)).unwrap();
            pages.release(Range { start: 0, size: M }).unwrap();
            assert_eq!(resident(&memory), M);
            pages.populate(Range { start: 0, size: 2 * M }).unwrap();
            assert_eq!(resident(&memory), 2 * M);
            assert_eq!((byte(&memory, 0), byte(&memory, M)), (0, 7));
        }
    }
}
