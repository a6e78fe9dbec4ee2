//! The machines and programs that share the memory, and how each is interrupted.

use machine::inspect::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most events kept, over all peers: so many descriptors a server can have this process hold.
const MOST_EVENTS: usize = 4096;

/// The peers by number, this machine among them, with an event for each of their vectors.
#[derive(Debug, Default)]
pub struct Peers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    events: BTreeMap<u16, Vec<File>>,
    rung: u64,
    /// Of peers or vectors that there are not.
    missed: u64,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts a peer. Never blocks: an event that cannot take more is raised already.
    pub fn ring(&self, peer: u16, vector: u16) {
        let mut table = self.lock();
        let event = table.events.get(&peer).and_then(|events| events.get(usize::from(vector)));
        let rung = event.map(|mut event| event.write(&1_u64.to_ne_bytes()));
        match rung {
            Some(_) => table.rung = table.rung.saturating_add(1),
            None => table.missed = table.missed.saturating_add(1),
        }
    }

    /// A peer has one more vector, whose event, which does not block, is `event`. `false`: there are too many.
    pub(super) fn add(&self, peer: u16, event: File) -> bool {
        let mut table = self.lock();
        if table.events.values().map(Vec::len).sum::<usize>() >= MOST_EVENTS {
            return false;
        }
        table.events.entry(peer).or_default().push(event);
        true
    }

    /// A peer is gone.
    pub(super) fn remove(&self, peer: u16) {
        self.lock().events.remove(&peer);
    }
}

machine::inspect!(Peers, this => { ..*this.lock() });

machine::inspect!(Table, this => {
    peers: this.vectors(),
    rung,
    missed,
});

impl Table {
    /// How many vectors each peer has.
    fn vectors(&self) -> Value {
        self.events.iter().map(|(peer, events)| (peer.to_string(), Value::from(events.len()))).collect()
    }
}
