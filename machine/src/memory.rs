//! Guest memory as devices see it.
//!
//! All code names guest memory through these aliases, so that a dirty log or another backend is chosen
//! in this one place.

use std::sync::Arc;

pub use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, VolatileSlice,
};

/// The dirty log attached to every region. `()` records nothing.
pub type DirtyLog = ();

/// One contiguous run of guest RAM, mapped into this process.
pub type GuestRegion = vm_memory::GuestRegionMmap<DirtyLog>;

/// All guest RAM, in guest-physical order.
pub type GuestRam = vm_memory::GuestMemoryMmap<DirtyLog>;

/// A shared handle on guest RAM. Regions stay mapped while any handle is held; a memory change is
/// published by giving devices a new handle.
pub type Memory = Arc<GuestRam>;
