//! Doorbells: guest writes that wake a worker without leaving the hypervisor.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An event that the guest rings by writing to an address, and a worker waits for.
///
/// Clones ring the same bell.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<EventFd>);

impl Doorbell {
    /// A new bell that has not been rung.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::new(EFD_NONBLOCK)?)))
    }

    /// Rings the bell. Never blocks; ringing twice before it is heard is ringing once.
    pub fn ring(&self) {
        // The only failure is a counter at its limit, in which case the bell is already ringing.
        let _ = self.0.write(1);
    }

    /// True, once, if the bell was rung since this was last asked.
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }

    /// The eventfd, for epoll and for the hypervisor.
    pub fn event(&self) -> &EventFd {
        &self.0
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Where in a device's register window a guest write rings a bell.
#[derive(Clone, Debug)]
pub struct DoorbellAddress {
    /// Offset from the start of the window, in bytes.
    pub offset: u64,
    /// Access size that rings it: 1, 2, 4 or 8 bytes; `None` for any.
    pub size: Option<u8>,
    /// The value that must be written to ring it; `None` for any.
    pub value: Option<u64>,
    /// The bell.
    pub doorbell: Doorbell,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_is_heard_once_and_by_every_clone() {
        let bell = Doorbell::new().unwrap();
        assert!(!bell.take());
        let other = bell.clone();
        other.ring();
        bell.ring();
        assert!(bell.take());
        assert!(!other.take());
    }
}
