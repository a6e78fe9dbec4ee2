//! Waiting for a link only while it matters.
//!
//! A worker waits on descriptors that stay the same for a handler's life, and runs the handler while they are readable. But a
//! tap with packets for which the guest has no buffers stays readable, and a full link is waited for by being
//! writable. So the worker waits on an epoll descriptor instead, which is readable when the link is what it is
//! being waited for, and in which the link is only while it is. A doorbell may be in it always, for those who change
//! whether the link is to be waited for.

use machine::doorbell::Doorbell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What a link is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// A packet to receive.
    Readable,
    /// Room to send.
    Writable,
}

/// The interest in one descriptor's readiness.
pub struct Interest {
    epoll: Epoll,
    descriptor: RawFd,
    readiness: Readiness,
    on: bool,
}

impl Interest {
    /// None yet, in `descriptor` having `readiness`; but in `wake` being rung, if there is one.
    ///
    /// # Errors
    /// When the host is out of descriptors.
    pub fn new(descriptor: RawFd, readiness: Readiness, wake: Option<&Doorbell>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        if let Some(wake) = wake {
            epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
        }
        Ok(Self { epoll, descriptor, readiness, on: false })
    }

    /// Whether [`Self::descriptor`] is to become readable when the link is ready. A system call only on a change.
    pub fn set(&mut self, on: bool) {
        if on == self.on {
            return;
        }
        let (operation, events) = match (on, self.readiness) {
            (true, Readiness::Readable) => (ControlOperation::Add, EventSet::IN),
            (true, Readiness::Writable) => (ControlOperation::Add, EventSet::OUT),
            // Removed, rather than left with no events: errors and hang-ups cannot be masked.
            (false, _) => (ControlOperation::Delete, EventSet::empty()),
        };
        match self.epoll.ctl(operation, self.descriptor, EpollEvent::new(events, 0)) {
            Ok(()) => self.on = on,
            Err(error) => tracing::error!(%error, "cannot change what a network link is waited for"),
        }
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// What the worker waits on.
    pub fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
