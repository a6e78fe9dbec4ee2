//! A network in memory, which checks what the device sends.

use crate::disk::always_ready;
use net::features::Features;
use net::link::Link;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use virtio::chain::Segment;

/// The largest packet, header included (virtio 1.2, 5.1.6.3.1).
const MAX_PACKET: usize = 65562;
/// A packet's header, and the smallest frame after it.
pub(crate) const HEADER: usize = 12;
const MIN_FRAME: usize = 14;
/// What one system call takes, `IOV_MAX`.
const MAX_SEGMENTS: usize = 1024;
/// Packets that wait to be received at most.
const MAX_WAITING: usize = 64;

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    sent: u64,
    full: bool,
    fails: bool,
}

/// One queue pair's end of the network.
#[derive(Default)]
pub(crate) struct MemoryLink {
    state: Mutex<State>,
}

impl MemoryLink {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the guest a packet, header first.
    pub(crate) fn inject(&self, packet: Vec<u8>) {
        let mut state = self.lock();
        if state.waiting.len() < MAX_WAITING {
            state.waiting.push_back(packet);
        }
    }

    /// Whether there is no room for packets of the guest, and whether the link is broken.
    pub(crate) fn set(&self, full: bool, fails: bool) {
        let mut state = self.lock();
        state.full = full;
        state.fails = fails;
    }

    /// Drops what waits to be received.
    pub(crate) fn clear(&self) {
        self.lock().waiting.clear();
    }

    /// How many packets the guest sent.
    pub(crate) fn sent(&self) -> u64 {
        self.lock().sent
    }
}

impl Link for MemoryLink {
    unsafe fn receive(&self, into: &[Segment]) -> io::Result<usize> {
        assert!((1..=MAX_SEGMENTS).contains(&into.len()), "{} segments", into.len());
        let mut state = self.lock();
        if state.fails {
            return Err(io::Error::from_raw_os_error(77));
        }
        let Some(packet) = state.waiting.pop_front() else { return Err(io::ErrorKind::WouldBlock.into()) };
        let mut rest = &packet[..];
        for segment in into {
            let (part, after) = rest.split_at(rest.len().min(segment.len()));
            // SAFETY: the caller keeps the segment mapped.
            unsafe { std::ptr::copy(part.as_ptr(), segment.as_ptr(), part.len()) };
            rest = after;
        }
        Ok(packet.len() - rest.len())
    }

    unsafe fn send(&self, from: &[Segment]) -> io::Result<usize> {
        assert!((1..=MAX_SEGMENTS).contains(&from.len()), "{} segments", from.len());
        let mut packet = Vec::new();
        for segment in from {
            let at = packet.len();
            packet.resize(at + segment.len(), 0);
            // SAFETY: the caller keeps the segment mapped.
            unsafe { std::ptr::copy(segment.as_ptr(), packet[at..].as_mut_ptr(), segment.len()) };
        }
        assert!((HEADER + MIN_FRAME..=MAX_PACKET).contains(&packet.len()), "{} bytes", packet.len());
        let (flags, gso_type, gso_size) = (packet[0], packet[1], &packet[4..6]);
        assert_eq!(flags & !1, 0, "only the flag for a checksum is the driver's");
        assert!(matches!(gso_type & 0x7f, 0 | 1 | 3 | 4 | 5), "segmentation {gso_type}");
        assert!(gso_type == 0 || gso_size != [0; 2], "segments of no size");
        assert_eq!(packet[10..HEADER], [0; 2], "the number of buffers is not the driver's");
        let mut state = self.lock();
        if state.fails {
            return Err(io::Error::from_raw_os_error(77));
        }
        if state.full {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.sent += 1;
        Ok(packet.len())
    }

    fn descriptor(&self) -> RawFd {
        always_ready()
    }

    fn offloads(&self) -> Features {
        Features::GUEST_OFFLOADS
    }

    fn set_offloads(&self, offloads: Features) -> io::Result<()> {
        assert!(Features::GUEST_OFFLOADS.contains(offloads), "only what the link can do is asked for");
        Ok(())
    }

    fn set_enabled(&self, _enabled: bool) -> io::Result<()> {
        Ok(())
    }
}
