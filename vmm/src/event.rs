//! What happens to the machine, told to whoever listens.
//!
//! An event has a number, a time, a source and a name, in the form that cloud-hypervisor's event monitor uses. Telling never waits
//! for a listener: one that cannot take an event at once is forgotten.

use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many past events are kept for a listener that comes back.
const KEPT: usize = 256;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Counts events from 1.
    pub id: u64,
    /// Since the process started.
    pub timestamp: Duration,
    /// What it happened to: `vmm`, `vm`, `guest`, `device`.
    pub source: &'static str,
    /// What happened, such as `booted`.
    pub event: &'static str,
    /// More about it.
    pub properties: Option<BTreeMap<&'static str, Value>>,
}

/// Takes an event without blocking; `false` when it will take no more.
pub type Listener = Box<dyn FnMut(&Arc<Event>) -> bool + Send>;

/// Where events are told. Clones are the same.
#[derive(Clone)]
pub struct Events(Arc<Mutex<Told>>);

struct Told {
    start: Instant,
    next: u64,
    past: VecDeque<Arc<Event>>,
    listeners: Vec<Listener>,
}

impl Default for Events {
    fn default() -> Self {
        let told = Told { start: Instant::now(), next: 1, past: VecDeque::new(), listeners: Vec::new() };
        Self(Arc::new(Mutex::new(told)))
    }
}

impl Events {
    /// Tells that `event` happened to `source`.
    pub fn emit(&self, source: &'static str, event: &'static str) {
        self.tell(source, event, None);
    }

    /// As [`Events::emit`], with more about it.
    pub fn emit_with<const N: usize>(
        &self,
        source: &'static str,
        event: &'static str,
        properties: [(&'static str, Value); N],
    ) {
        self.tell(source, event, Some(BTreeMap::from(properties)));
    }

    fn tell(
        &self,
        source: &'static str,
        event: &'static str,
        properties: Option<BTreeMap<&'static str, Value>>,
    ) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let event =
            Arc::new(Event { id: told.next, timestamp: told.start.elapsed(), source, event, properties });
        told.next += 1;
        told.listeners.retain_mut(|listener| listener(&event));
        if told.past.len() == KEPT {
            told.past.pop_front();
        }
        told.past.push_back(event);
    }

    /// Has `listener` told of every event from now on, and first of those kept whose number is above `after`. With `None`, of
    /// none of those.
    pub fn listen(&self, after: Option<u64>, mut listener: Listener) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missed =
            after.into_iter().flat_map(|after| told.past.iter().filter(move |event| event.id > after));
        for event in missed {
            if !listener(event) {
                return;
            }
        }
        told.listeners.push(listener);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn listener(events: &Events, after: Option<u64>) -> mpsc::Receiver<Arc<Event>> {
        let (sender, receiver) = mpsc::channel();
        events.listen(after, Box::new(move |event| sender.send(Arc::clone(event)).is_ok()));
        receiver
    }

    #[test]
    fn a_listener_hears_what_happens_and_can_ask_for_what_it_missed() {
        let events = Events::default();
        let first = listener(&events, None);
        events.emit("vm", "booting");
        events.emit_with("vm", "device-removed", [("id", "_disk0".into())]);
        let heard: Vec<_> = first.try_iter().map(|event| (event.id, event.event)).collect();
        assert_eq!(heard, [(1, "booting"), (2, "device-removed")]);
        let late = listener(&events, Some(1));
        events.emit("vm", "shutdown");
        let heard: Vec<_> = late.try_iter().map(|event| event.id).collect();
        assert_eq!(heard, [2, 3]);
        assert!(listener(&events, None).try_iter().next().is_none());
    }

    #[test]
    fn a_listener_that_takes_no_more_is_forgotten_and_the_past_is_bounded() {
        let events = Events::default();
        drop(listener(&events, None));
        for _ in 0..KEPT + 10 {
            events.emit("vm", "reboot");
        }
        let told = events.0.lock().unwrap();
        assert!(told.listeners.is_empty());
        assert_eq!((told.past.len(), told.past[0].id), (KEPT, 11));
    }
}
