//! What happens to the machine, told to whoever listens.
//!
//! An event has a number, a time, a source and a name, in the form that cloud-hypervisor's event monitor uses. Telling never waits
//! for a listener: one that cannot take an event at once is forgotten.

use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tracing::Level;

/// How many events of one name a guest can cause in a row, and what it takes for one more. A guest fills no disk with them, and drives out
/// none that others caused: there are fourteen such names.
const BURST: u32 = 16;
const REFILL: Duration = Duration::from_secs(1);

/// How many past events are kept for a listener that comes back.
const KEPT: usize = 256;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Counts events from 1.
    pub id: u64,
    /// Since the process started.
    pub timestamp: Duration,
    /// By the host's clock, since 1970 (UTC, without leap seconds).
    pub unix_time: Duration,
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
    /// Of each name, what the guest can cause. The names are the program's own, and so few.
    budgets: BTreeMap<&'static str, Budget>,
}

/// What the guest can cause of one name. A guest that restarts for ever does not hide that it panicked.
struct Budget {
    /// How many events, as of `since`.
    left: u32,
    since: Instant,
    /// How many it caused that were not told.
    left_out: u64,
}

impl Default for Events {
    fn default() -> Self {
        let start = Instant::now();
        Self(Arc::new(Mutex::new(Told {
            start,
            next: 1,
            past: VecDeque::new(),
            listeners: Vec::new(),
            budgets: BTreeMap::new(),
        })))
    }
}

impl Events {
    /// Tells that `event` happened to `source`.
    pub fn emit(&self, source: &'static str, event: &'static str) {
        let mut told = self.lock();
        told.tell_all_left_out();
        told.tell(source, event, None);
    }

    /// As [`Events::emit`], with more about it.
    pub fn emit_with<const N: usize>(
        &self,
        source: &'static str,
        event: &'static str,
        properties: [(&'static str, Value); N],
    ) {
        let mut told = self.lock();
        told.tell_all_left_out();
        told.tell(source, event, Some(BTreeMap::from(properties)));
    }

    /// As [`Events::emit_with`], of what the guest can have happen as often as it likes: what is too much is left out, and told of as
    /// `events-left-out` before the next event of that name, or that the guest has no part in.
    pub fn emit_for_guest<const N: usize>(
        &self,
        source: &'static str,
        event: &'static str,
        properties: [(&'static str, Value); N],
    ) {
        let mut told = self.lock();
        if told.guest_may(event, Instant::now()) {
            told.tell_left_out(event);
            told.tell(source, event, (N > 0).then(|| BTreeMap::from(properties)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `listener` told of every event from now on, and first of those kept whose number is above `after`. With `None`, of
    /// none of those.
    pub fn listen(&self, after: Option<u64>, mut listener: Listener) {
        let mut told = self.lock();
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

impl Told {
    fn tell(
        &mut self,
        source: &'static str,
        event: &'static str,
        properties: Option<BTreeMap<&'static str, Value>>,
    ) {
        log(source, event, properties.as_ref());
        // A clock before that has not been set.
        let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = Arc::new(Event {
            id: self.next,
            timestamp: self.start.elapsed(),
            unix_time,
            source,
            event,
            properties,
        });
        self.next += 1;
        self.listeners.retain_mut(|listener| listener(&event));
        if self.past.len() == KEPT {
            self.past.pop_front();
        }
        self.past.push_back(event);
    }

    /// Tells how many events of the name `event` were left out, if any.
    fn tell_left_out(&mut self, event: &'static str) {
        let left_out = self.budgets.get_mut(event).map(|budget| std::mem::take(&mut budget.left_out));
        if let Some(count) = left_out.filter(|count| *count > 0) {
            let properties = BTreeMap::from([("event", event.into()), ("count", count.into())]);
            self.tell("vmm", "events-left-out", Some(properties));
        }
    }

    fn tell_all_left_out(&mut self) {
        while let Some(event) =
            self.budgets.iter().find_map(|(event, budget)| (budget.left_out > 0).then_some(*event))
        {
            self.tell_left_out(event);
        }
    }

    /// Whether the guest may cause another event of the name `event`; counts it if not.
    fn guest_may(&mut self, event: &'static str, now: Instant) -> bool {
        let full = Budget { left: BURST, since: now, left_out: 0 };
        self.budgets.entry(event).or_insert(full).take(now)
    }
}

impl Budget {
    /// Takes one event from it; counts one that is left out if there is none.
    fn take(&mut self, now: Instant) -> bool {
        let refills = now.saturating_duration_since(self.since).as_millis() / REFILL.as_millis();
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(refills).min(BURST);
        self.since = self.since.checked_add(REFILL.saturating_mul(refills)).unwrap_or(now);
        let Some(rest) = self.left.checked_sub(1) else {
            self.left_out += 1;
            return false;
        };
        self.left = rest;
        true
    }
}

/// Tells the log of an event. Guests cannot cause so many that they would have to be limited there.
fn log(source: &str, event: &str, properties: Option<&BTreeMap<&'static str, Value>>) {
    if tracing::event_enabled!(Level::INFO) {
        let properties = properties.into_iter().flatten();
        let properties: String = properties.map(|(name, value)| format!(" {name}={value}")).collect();
        tracing::info!("{source}: {event}{properties}");
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
    #[test]
    fn a_guest_drives_out_no_events_and_those_left_out_are_counted() {
        let events = Events::default();
        let heard = listener(&events, None);
        events.emit("vm", "booted");
        for _ in 0..1000 {
            events.emit_for_guest("vm", "rebooting", []);
        }
        events.emit("vm", "paused");
        let heard: Vec<_> = heard.try_iter().collect();
        let of_guest = heard.iter().filter(|event| event.event == "rebooting").count();
        assert!((BURST as usize..KEPT).contains(&of_guest), "{of_guest}");
        let left_out = heard.iter().filter(|event| event.event == "events-left-out");
        let left_out: u64 =
            left_out.map(|event| event.properties.as_ref().unwrap()["count"].as_u64().unwrap()).sum();
        assert_eq!(left_out as usize + of_guest, 1000);
        assert_eq!(events.0.lock().unwrap().past[0].event, "booted");
    }

    #[test]
    fn a_guest_that_restarts_for_ever_hides_nothing_else_and_each_name_has_its_count() {
        let events = Events::default();
        let heard = listener(&events, None);
        for _ in 0..1000 {
            events.emit_for_guest("vm", "rebooting", []);
        }
        events.emit_for_guest("guest", "panic", [("events", 1.into())]);
        for _ in 0..1000 {
            events.emit_for_guest("guest", "watchdog", []);
        }
        events.emit("vm", "paused");
        let heard: Vec<_> = heard.try_iter().filter(|event| event.event != "rebooting").collect();
        assert_eq!((heard[0].event, heard[1].event), ("panic", "watchdog"));
        let left_out = heard.iter().filter(|event| event.event == "events-left-out");
        let names: Vec<_> =
            left_out.map(|event| event.properties.as_ref().unwrap()["event"].clone()).collect();
        assert_eq!(names, ["rebooting", "watchdog"]);
    }

    #[test]
    fn names_that_take_turns_drive_out_no_events_of_others() {
        let events = Events::default();
        events.emit("vm", "booted");
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"];
        for name in std::iter::repeat_n(names, 100).flatten() {
            events.emit_for_guest("vm", name, []);
        }
        events.emit("vm", "paused");
        assert_eq!(events.0.lock().unwrap().past[0].event, "booted");
    }

    #[test]
    fn a_guest_that_was_silent_is_heard_again() {
        let events = Events::default();
        let mut told = events.0.lock().unwrap();
        let mut now = Instant::now();
        let caused = |told: &mut Told, now| (0..1000).filter(|_| told.guest_may("rebooting", now)).count();
        assert_eq!(caused(&mut told, now), BURST as usize);
        for (silence, again) in [(REFILL * 3, 3), (REFILL * 1000, BURST as usize)] {
            now += silence;
            assert_eq!(caused(&mut told, now), again);
        }
    }
}
