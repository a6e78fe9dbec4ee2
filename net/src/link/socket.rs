//! A link over a socket that keeps packets apart (`SOCK_SEQPACKET`): for tests and fuzzing, where the other end plays the network.

use super::{Link, read, write};
use crate::features::Features;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use virtio::chain::Segment;

/// One end of a socket pair.
pub struct SocketLink {
    socket: OwnedFd,
    offloads: AtomicU64,
    enabled: AtomicBool,
    /// What receiving fails with, or 0.
    error: AtomicI32,
}

impl SocketLink {
    /// A link, and the socket at its other end. Neither waits.
    ///
    /// # Errors
    /// When the host is out of descriptors.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let mut ends = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: the array has room for the two descriptors.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call returned two descriptors that nobody else has.
        let [socket, other] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let (offloads, enabled) = (AtomicU64::new(0), AtomicBool::new(true));
        Ok((Self { socket, offloads, enabled, error: AtomicI32::new(0) }, other))
    }

    /// From now on receiving fails with this error number, or works again if it is 0.
    pub fn fail_receiving(&self, errno: i32) {
        self.error.store(errno, Ordering::Relaxed);
    }

    /// What was last set by [`Link::set_offloads`].
    pub fn current_offloads(&self) -> Features {
        Features::from_bits_retain(self.offloads.load(Ordering::Relaxed))
    }

    /// What was last set by [`Link::set_enabled`].
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }
}

impl Link for SocketLink {
    unsafe fn receive(&self, into: &[Segment]) -> io::Result<usize> {
        match self.error.load(Ordering::Relaxed) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        // SAFETY: passed on from the caller.
        unsafe { read(self.socket.as_raw_fd(), into) }
    }

    unsafe fn send(&self, from: &[Segment]) -> io::Result<usize> {
        // SAFETY: passed on from the caller.
        unsafe { write(self.socket.as_raw_fd(), from) }
    }

    fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn offloads(&self) -> Features {
        Features::GUEST_OFFLOADS
    }

    fn set_offloads(&self, offloads: Features) -> io::Result<()> {
        self.offloads.store(offloads.bits(), Ordering::Relaxed);
        Ok(())
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        self.enabled.store(enabled, Ordering::Relaxed);
        Ok(())
    }
}
