//! Links: what carries packets between a guest and the host.
//!
//! A packet has a header in front of it ([`crate::virtio_net::header`]) which says what of checksums and segmentation is still to
//! be done.

mod interest;
mod interface;
mod socket;
pub mod tap;

pub use interest::{Interest, Readiness};
pub use socket::SocketLink;
pub use tap::{Ipv4Setting, Tap, TapConfig, TapError, TapQueue};

use crate::features::Features;
use std::io;
use std::os::fd::RawFd;
use virtio::chain::Segment;

/// One queue pair's end of a link. Nothing here waits.
pub trait Link: Send + Sync {
    /// Receives one packet, header first, cut off where the segments end. Returns how many bytes it has been given; 0: the other
    /// end is gone.
    ///
    /// # Safety
    /// The segments' memory is mapped, and may be written to at any time by others.
    ///
    /// # Errors
    /// `WouldBlock` when there is no packet; another when the link does not work any more.
    unsafe fn receive(&self, into: &[Segment]) -> io::Result<usize>;

    /// Sends one packet, header first.
    ///
    /// # Safety
    /// The segments' memory is mapped, and may be written to at any time by others.
    ///
    /// # Errors
    /// `WouldBlock` when the link has no room for it now; another when it refuses the packet.
    unsafe fn send(&self, from: &[Segment]) -> io::Result<usize>;

    /// What to wait on: readable when there is a packet, writable when there is room.
    fn descriptor(&self) -> RawFd;

    /// Which of [`Features::GUEST_OFFLOADS`] it can leave to the guest.
    fn offloads(&self) -> Features;

    /// Sets which of them it leaves to the guest from now on. For all queue pairs of the link.
    ///
    /// # Errors
    /// When the host refuses.
    fn set_offloads(&self, offloads: Features) -> io::Result<()>;

    /// Whether packets may be received by this queue pair; those of a pair that is not go to others.
    ///
    /// # Errors
    /// When the host refuses.
    fn set_enabled(&self, enabled: bool) -> io::Result<()>;
}

/// Receives by `readv(2)`.
///
/// # Safety
/// As for [`Link::receive`].
unsafe fn read(descriptor: RawFd, into: &[Segment]) -> io::Result<usize> {
    let count = libc::c_int::try_from(into.len()).unwrap_or(libc::c_int::MAX);
    loop {
        // SAFETY: the array is valid through the call, and the caller says that what it points to is.
        let result = unsafe { libc::readv(descriptor, Segment::as_iovecs(into), count) };
        if let Some(result) = finished(result) {
            return result;
        }
    }
}

/// Sends by `writev(2)`.
///
/// # Safety
/// As for [`Link::send`].
unsafe fn write(descriptor: RawFd, from: &[Segment]) -> io::Result<usize> {
    let count = libc::c_int::try_from(from.len()).unwrap_or(libc::c_int::MAX);
    loop {
        // SAFETY: the array is valid through the call, and the caller says that what it points to is.
        let result = unsafe { libc::writev(descriptor, Segment::as_iovecs(from), count) };
        if let Some(result) = finished(result) {
            return result;
        }
    }
}

/// What a system call came to; `None`: it was interrupted.
fn finished(result: isize) -> Option<io::Result<usize>> {
    match usize::try_from(result) {
        Ok(length) => Some(Ok(length)),
        Err(_) => {
            let error = io::Error::last_os_error();
            (error.kind() != io::ErrorKind::Interrupted).then_some(Err(error))
        }
    }
}
