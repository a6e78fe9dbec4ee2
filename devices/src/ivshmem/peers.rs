//! The machines and programs that share the memory, and how each is interrupted.
//!
//! A peer's event is opened by the peer and shared with it. Whether writing waits is up to whoever changed that last, and how much
//! it takes up to all that write to it. So it is asked before each write whether there is room.

use machine::inspect::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most events kept, over all peers: so many descriptors a server can have this process hold.
const MOST_EVENTS: usize = 4096;

/// The peers by number, this machine among them, with an event for each of their vectors.
#[derive(Debug, Default)]
pub struct Peers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    events: BTreeMap<u16, Vec<Arc<File>>>,
    rung: u64,
    /// Of events that took no more, and so were raised already.
    full: u64,
    /// Of peers or vectors that there are not.
    missed: u64,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts a peer. An event that cannot take more is raised already, and left alone.
    pub fn ring(&self, peer: u16, vector: u16) {
        let find = |table: &Table| table.events.get(&peer)?.get(usize::from(vector)).cloned();
        let event = find(&self.lock());
        // Others ring meanwhile: the table is not held.
        let rung = event.map(|event| has_room(&event) && (&*event).write(&1_u64.to_ne_bytes()).is_ok());
        let mut table = self.lock();
        let counter = match rung {
            Some(true) => &mut table.rung,
            Some(false) => &mut table.full,
            None => &mut table.missed,
        };
        *counter = counter.saturating_add(1);
    }

    /// A peer has one more vector, whose event is `event`. `false`: there are too many.
    pub(super) fn add(&self, peer: u16, event: File) -> bool {
        let mut table = self.lock();
        if table.events.values().map(Vec::len).sum::<usize>() >= MOST_EVENTS {
            return false;
        }
        table.events.entry(peer).or_default().push(Arc::new(event));
        true
    }

    /// A peer is gone.
    pub(super) fn remove(&self, peer: u16) {
        self.lock().events.remove(&peer);
    }
}

/// Whether an event takes one more.
fn has_room(event: &File) -> bool {
    let mut entry = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, which outlives the call.
    let ready = unsafe { libc::poll(&mut entry, 1, 0) };
    ready == 1 && entry.revents & libc::POLLOUT != 0
}

machine::inspect!(Peers, this => { ..*this.lock() });

machine::inspect!(Table, this => {
    peers: this.vectors(),
    rung,
    full,
    missed,
});

impl Table {
    /// How many vectors each peer has.
    fn vectors(&self) -> Value {
        self.events.iter().map(|(peer, events)| (peer.to_string(), Value::from(events.len()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::inspect::Inspect;
    use std::io::Read;
    use std::os::fd::FromRawFd;

    #[test]
    fn a_peer_that_has_its_event_full_and_waiting_holds_nobody_up() {
        // SAFETY: plain numbers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: the descriptor is new and nobody else's.
        let event = unsafe { File::from_raw_fd(fd) };
        let mut peer = event.try_clone().unwrap();
        let peers = Peers::default();
        assert!(peers.add(5, event));
        peers.ring(5, 0);
        // The most that it holds: whoever writes to it waits.
        peer.write_all(&(u64::MAX - 2).to_ne_bytes()).unwrap();
        peers.ring(5, 0);
        peers.ring(5, 1);
        peers.ring(6, 0);
        let found = peers.inspect();
        assert_eq!((&found["rung"], &found["full"], &found["missed"]), (&1.into(), &1.into(), &2.into()));
        let mut count = [0; 8];
        peer.read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
        peers.ring(5, 0);
        assert_eq!(peers.inspect()["rung"], 2);
    }
}
