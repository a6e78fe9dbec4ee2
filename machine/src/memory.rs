//! Guest memory as devices see it.
//!
//! All code names guest memory through these aliases, so that a dirty log or another backend is chosen
//! in this one place.

use crate::bus::Range;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory,
    VolatileSlice,
};

/// Memory of the process itself, all zero. It takes of the host only the pages that were touched.
pub type LazyRegion = vm_memory::MmapRegion<()>;

/// Memory that is mapped into the process: its own, or that of a file.
pub type MappedRegion = vm_memory::MmapRegion<()>;

/// The dirty log attached to every region. `()` records nothing.
pub type DirtyLog = ();

/// One contiguous run of guest RAM, mapped into this process.
pub type GuestRegion = vm_memory::GuestRegionMmap<DirtyLog>;

/// All guest RAM, in guest-physical order.
pub type GuestRam = vm_memory::GuestMemoryMmap<DirtyLog>;

/// A shared handle on guest RAM. Regions stay mapped while any handle is held; a memory change is
/// published by giving devices a new handle.
pub type Memory = Arc<GuestRam>;

/// Whether a page of guest memory was lost.
static LOST: AtomicBool = AtomicBool::new(false);

/// A page of guest memory was lost: the host could not give it, and there are zeroes in its place. The machine is about to end. Safe in a
/// signal handler.
pub fn note_loss() {
    LOST.store(true, Ordering::SeqCst);
}

/// Whether [`note_loss`] was called: nothing that was read from guest memory since can be told to be safe.
pub fn is_lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// The memory is that of another machine.
pub fn forget_loss() {
    LOST.store(false, Ordering::SeqCst);
}

/// What a device that changes how much memory the guest has may do about the host pages behind guest RAM.
///
/// Ranges come from the guest: parts that are not RAM are left alone. Both calls take as long as the host needs for that
/// many pages, so they are for workers, not for CPUs.
pub trait HostPages: Send + Sync {
    /// Gives the pages of `range` back to the host, as far as they are whole pages of it. What they held is lost; they
    /// read as something that the guest had or as zeroes, and come anew when they are touched. Returns how many bytes
    /// were given back.
    ///
    /// # Errors
    /// When the host refuses; part of the range may be given back then.
    fn release(&self, range: Range) -> io::Result<u64>;

    /// Takes the pages of `range` from the host now, so that touching them later cannot fail. Their contents stay.
    ///
    /// # Errors
    /// When the host does not have them.
    fn populate(&self, range: Range) -> io::Result<()>;
}
