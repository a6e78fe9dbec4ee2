//! Guest memory that the host cannot give: its huge pages are used up, a file system is full, a memory chip is broken.
//!
//! A CPU that reaches for such memory fails, and the machine ends as it does whenever a CPU fails. A thread of this process that
//! does so in the guest's name, such as a device's worker, gets SIGBUS, which ends the process. So there is a handler: it puts
//! a page of zeros where the memory should be, has the thread go on, and tells the machine thread, which ends the machine. Disks
//! call nothing stable any more that was read from guest memory meanwhile.

use devices::host_console::restore_terminal;
use machine::doorbell::Doorbell;
use machine::memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegion, Memory, forget_loss, note_loss};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// The kernel's code for memory that is broken where nobody has used it yet.
const BUS_MCEERR_AO: libc::c_int = 5;
/// What [`LOST`] is while nothing is.
const NOTHING: u64 = u64::MAX;

/// A part of this process's memory that is a guest's. A signal handler may be looking at it, so it is never freed, but used again.
struct Entry {
    taken: AtomicBool,
    start: AtomicUsize,
    /// In bytes; 0 where there is nothing to look at.
    size: AtomicUsize,
    /// The size of a page there.
    page: AtomicUsize,
    /// The guest-physical address of the start.
    guest: AtomicU64,
    next: AtomicPtr<Self>,
}

/// The first of all entries.
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(null_mut());
/// The guest-physical address of the first page that was lost and not told of yet.
static LOST: AtomicU64 = AtomicU64::new(NOTHING);
/// Rung when a page is lost.
static BELL: OnceLock<Doorbell> = OnceLock::new();
/// What was done about the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Regions of guest memory whose faults are dealt with, until this is dropped. That is before they are unmapped.
#[derive(Default)]
pub struct Watched(Vec<&'static Entry>);

impl Watched {
    /// Watches all regions of `memory`, that of a new machine.
    ///
    /// # Errors
    /// When the host does not say what kind of pages it has there.
    pub fn new(memory: &Memory) -> io::Result<Self> {
        forget_loss();
        let mut watched = Self::default();
        memory.iter().try_for_each(|region| watched.add(region))?;
        Ok(watched)
    }

    /// Watches another region.
    ///
    /// # Errors
    /// As [`Watched::new`].
    pub fn add(&mut self, region: &GuestRegion) -> io::Result<()> {
        let page = usize::try_from(crate::host_pages::page_size(region)?).map_err(io::Error::other)?;
        let size = usize::try_from(GuestMemoryRegion::len(region)).map_err(io::Error::other)?;
        let entry = free_entry();
        entry.start.store(region.as_ptr() as usize, Ordering::Relaxed);
        entry.page.store(page.max(1), Ordering::Relaxed);
        entry.guest.store(region.start_addr().0, Ordering::Relaxed);
        entry.size.store(size, Ordering::Release);
        self.0.push(entry);
        Ok(())
    }

    /// The region that begins at guest-physical address `start` goes: it is watched by itself from now on.
    pub fn take(&mut self, start: u64) -> Self {
        let goes = |entry: &mut &'static Entry| entry.guest.load(Ordering::Relaxed) == start;
        Self(self.0.extract_if(.., goes).collect())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.iter().for_each(|entry| entry.free());
    }
}

impl Entry {
    fn free(&self) {
        self.size.store(0, Ordering::Release);
        self.taken.store(false, Ordering::Release);
    }
}

/// All entries there are. Safe in a signal handler.
fn entries() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: entries are leaked, so that a pointer to one is good for ever.
    let at = |pointer: &AtomicPtr<Entry>| unsafe { pointer.load(Ordering::Acquire).as_ref() };
    std::iter::successors(at(&ENTRIES), move |entry: &&Entry| at(&entry.next))
}

fn free_entry() -> &'static Entry {
    let take = |entry: &&Entry| !entry.taken.swap(true, Ordering::AcqRel);
    if let Some(entry) = entries().find(take) {
        return entry;
    }
    let entry = Box::into_raw(Box::new(Entry {
        taken: AtomicBool::new(true),
        start: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        page: AtomicUsize::new(1),
        guest: AtomicU64::new(0),
        next: AtomicPtr::new(null_mut()),
    }));
    // SAFETY: it was just made, and is never freed.
    let entry = unsafe { &*entry };
    let mut first = ENTRIES.load(Ordering::Acquire);
    loop {
        entry.next.store(first, Ordering::Relaxed);
        let this = std::ptr::from_ref(entry).cast_mut();
        match ENTRIES.compare_exchange(first, this, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return entry,
            Err(other) => first = other,
        }
    }
}

/// Has faults of guest memory dealt with from now on. What is returned is rung when there was one; then [`take_lost`] tells more. It
/// is the same for all of the process.
///
/// # Errors
/// When the host is out of resources.
pub fn install() -> io::Result<Doorbell> {
    let new = Doorbell::new()?;
    let bell = BELL.get_or_init(|| new).clone();
    let mut failed = None;
    BEFORE.get_or_init(|| {
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let handler: extern "C" fn(_, _, _) = on_fault;
        // SAFETY: zeroes are a valid action.
        let (mut before, mut action): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        // SAFETY: the handler only does what is safe in one, and both places are actions.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) } != 0 {
            failed = Some(io::Error::last_os_error());
        }
        before
    });
    failed.map_or(Ok(bell), Err)
}

/// The guest-physical address of a page that was lost, if there was one since this was asked last.
pub fn take_lost() -> Option<u64> {
    let address = LOST.swap(NOTHING, Ordering::AcqRel);
    (address != NOTHING).then_some(address)
}

extern "C" fn on_fault(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives one, with an address for this signal.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code == BUS_MCEERR_AO {
        return;
    }
    // SAFETY: the place is this thread's own.
    let error = unsafe { *libc::__errno_location() };
    let replaced = code > 0 && replace(address);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = error };
    if !replaced {
        restore_terminal();
        if code <= 0 {
            // Somebody sent it: it takes effect when the handler is left.
            // SAFETY: both calls are safe in a handler.
            unsafe {
                libc::signal(libc::SIGBUS, libc::SIG_DFL);
                libc::raise(libc::SIGBUS);
            }
            return;
        }
        if let Some(before) = BEFORE.get() {
            // What faulted does so again, and then happens what would have happened.
            // SAFETY: it was the action before; the old one is not wanted.
            unsafe { libc::sigaction(libc::SIGBUS, before, null_mut()) };
        }
    }
}

/// Puts a page of zeros at `address`, if that is a guest's, and tells. `false`: it is not, or the host refuses.
fn replace(address: usize) -> bool {
    let found = entries().find_map(|entry| {
        let size = entry.size.load(Ordering::Acquire);
        let offset = address.checked_sub(entry.start.load(Ordering::Relaxed))?;
        (offset < size).then_some((entry, offset))
    });
    let Some((entry, offset)) = found else { return false };
    let page = entry.page.load(Ordering::Relaxed);
    let offset = offset.checked_div(page).unwrap_or(0).wrapping_mul(page);
    let start = entry.start.load(Ordering::Relaxed).wrapping_add(offset);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a whole page of guest memory, which the host does not have: whatever it held is lost already.
    if unsafe { libc::mmap(start as *mut _, page, access, flags, -1, 0) } == libc::MAP_FAILED {
        return false;
    }
    note_loss();
    let guest = entry.guest.load(Ordering::Relaxed).wrapping_add(offset as u64);
    let _ = LOST.compare_exchange(NOTHING, guest, Ordering::AcqRel, Ordering::Relaxed);
    if let Some(bell) = BELL.get() {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: eight bytes, as an event takes. If it takes no more it has been rung.
        unsafe { libc::write(bell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::memory::{Bytes, GuestAddress, GuestRam};
    use std::fs::File;
    use std::sync::Arc;
    use vm_memory::FileOffset;
    use vm_memory::mmap::MmapRegionBuilder;

    /// Memory of `pages` pages at guest-physical address 1 GiB, behind which there is a file.
    fn memory(pages: usize) -> (Memory, File) {
        // SAFETY: a name, and no flags.
        let fd = unsafe { libc::memfd_create(c"lost".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: it is new, and nobody else's.
        let file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
        let size = pages * page();
        file.set_len(size as u64).unwrap();
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0))
            .build()
            .unwrap();
        let region = GuestRegion::new(region, GuestAddress(1 << 30)).unwrap();
        (Arc::new(GuestRam::from_regions(vec![region]).unwrap()), file)
    }

    fn page() -> usize {
        // SAFETY: only asks.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap()
    }

    #[test]
    fn a_page_that_is_lost_reads_as_zeros_and_is_told_of() {
        let bell = install().unwrap();
        let (memory, file) = memory(4);
        let watched = Watched::new(&memory).unwrap();
        memory.write_slice(&vec![7; 4 * page()], GuestAddress(1 << 30)).unwrap();
        file.set_len(2 * page() as u64).unwrap();
        let at = |page_number: usize| GuestAddress((1 << 30) + (page_number * page()) as u64 + 5);
        let read = |number| memory.read_obj::<u8>(at(number)).unwrap();
        assert_eq!((read(1), take_lost(), bell.take()), (7, None, false));
        assert_eq!((read(3), take_lost(), bell.take()), (0, Some((1 << 30) + 3 * page() as u64), true));
        memory.write_obj(8_u8, at(3)).unwrap();
        assert_eq!((read(3), read(1), take_lost()), (8, 7, None));
        assert_eq!((read(2), take_lost().is_some()), (0, true));
        drop(watched);
        // The next region takes the entry that is free again.
        let (other, _file) = self::memory(1);
        let _watched = Watched::new(&other).unwrap();
        assert_eq!(entries().count(), 1);
    }
}
