//! What the device, its handler and its controls share.

use super::statistics::{Statistics, StatisticsStore};
use super::{PAGE_SIZE, hint};
use machine::bus::Range;
use machine::doorbell::Doorbell;
use machine::inspect::{Inspect, Value};
use machine::metrics::{Counter, Reading};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio::device::ConfigChange;

/// The first command for hints; those below mean something else.
const FIRST_COMMAND: u32 = 2;

/// Called with each run of pages that the driver says are free. Not on a CPU's thread; must not block.
pub type HintSink = Arc<dyn Fn(Range) + Send + Sync>;

/// A run of hints.
#[derive(Default)]
struct Hints {
    /// Who is told; nobody if no hints were asked for.
    sink: Option<HintSink>,
    /// The command that the last run had.
    last_command: u32,
    /// The driver is answering that command.
    answering: bool,
    /// The driver told of all there is.
    complete: bool,
}

/// What the handler did, since the device was made.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) inflated_pages: Counter,
    pub(super) deflated_pages: Counter,
    pub(super) reported_bytes: Counter,
    pub(super) hinted_bytes: Counter,
    pub(super) released_bytes: Counter,
    pub(super) refused_pages: Counter,
    pub(super) release_errors: Counter,
}

pub(super) struct Shared {
    num_pages: AtomicU32,
    actual: AtomicU32,
    hint_command: AtomicU32,
    poison_val: AtomicU32,
    /// The most pages the balloon can have.
    most_pages: u32,
    config_changed: Mutex<Option<ConfigChange>>,
    hints: Mutex<Hints>,
    pub(super) statistics: StatisticsStore,
    /// Statistics are wanted; the bell wakes the handler for them.
    pub(super) statistics_wanted: AtomicBool,
    pub(super) bell: Doorbell,
    pub(super) counters: Counters,
}

impl Shared {
    pub(super) fn new(size: u64, ram: u64) -> io::Result<Self> {
        let most_pages = pages(ram);
        Ok(Self {
            num_pages: AtomicU32::new(pages(size).min(most_pages)),
            actual: AtomicU32::new(0),
            hint_command: AtomicU32::new(hint::STOP),
            poison_val: AtomicU32::new(0),
            most_pages,
            config_changed: Mutex::default(),
            hints: Mutex::default(),
            statistics: StatisticsStore::default(),
            statistics_wanted: AtomicBool::new(false),
            bell: Doorbell::new()?,
            counters: Counters::default(),
        })
    }

    /// The fields of the configuration space, in order.
    pub(super) fn config(&self) -> [u32; 4] {
        [&self.num_pages, &self.actual, &self.hint_command, &self.poison_val]
            .map(|field| field.load(Ordering::SeqCst))
    }

    /// The driver wrote its configuration space: `actual` and `poison_val` are its own.
    pub(super) fn config_written(&self, offset: u64, data: &[u8]) {
        for (start, field) in [(4_u64, &self.actual), (12, &self.poison_val)] {
            let mut bytes = field.load(Ordering::SeqCst).to_le_bytes();
            for (at, byte) in (offset..).zip(data) {
                let place = at.checked_sub(start).and_then(|at| usize::try_from(at).ok());
                if let Some(place) = place.and_then(|at| bytes.get_mut(at)) {
                    *place = *byte;
                }
            }
            field.store(u32::from_le_bytes(bytes), Ordering::SeqCst);
        }
    }

    /// Whether free pages hold a value that must not be lost, since the driver checks for it.
    pub(super) fn is_poisoned(&self) -> bool {
        self.poison_val.load(Ordering::SeqCst) != 0
    }

    /// The driver says which command the hints that follow answer, or that there are no more.
    pub(super) fn hint_command_answered(&self, command: u32) {
        let mut hints = self.hints();
        let was = hints.answering;
        hints.answering = command > hint::DONE && command == self.hint_command.load(Ordering::SeqCst);
        hints.complete |= was && command == hint::STOP;
    }

    /// Who is to be told of hints, if the driver is answering the command that holds now.
    pub(super) fn hint_sink(&self) -> Option<HintSink> {
        let hints = self.hints();
        hints.answering.then(|| hints.sink.clone())?
    }

    fn hints(&self) -> MutexGuard<'_, Hints> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_config_changed(&self, change: Option<ConfigChange>) {
        *self.config_changed.lock().unwrap_or_else(PoisonError::into_inner) = change;
    }

    fn tell_driver(&self) {
        let changed = self.config_changed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(changed) = changed {
            changed.notify();
        }
    }

    /// What the driver set returns to its default.
    pub(super) fn reset(&self) {
        self.set_config_changed(None);
        for field in [&self.actual, &self.hint_command, &self.poison_val] {
            field.store(0, Ordering::SeqCst);
        }
        self.statistics.clear();
        // A driver that comes later is not asked what another one was.
        let mut hints = self.hints();
        *hints = Hints { last_command: hints.last_command, ..Hints::default() };
    }

    pub(super) fn restore(&self, actual: u32, poison_val: u32) {
        self.actual.store(actual, Ordering::SeqCst);
        self.poison_val.store(poison_val, Ordering::SeqCst);
        self.hint_command.store(hint::DONE, Ordering::SeqCst);
    }
}

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX)
}

fn bytes(pages: u32) -> u64 {
    u64::from(pages).saturating_mul(PAGE_SIZE)
}

impl Shared {
    /// What was counted, and what the guest told of its memory.
    pub(super) fn readings(&self) -> Vec<Reading> {
        let [num_pages, actual, ..] = self.config();
        let counters = &self.counters;
        let mut readings = vec![
            Reading::level("size_bytes", bytes(num_pages)),
            Reading::level("actual_bytes", bytes(actual)),
            Reading::total("inflated_bytes", counters.inflated_pages.get().saturating_mul(PAGE_SIZE)),
            Reading::total("deflated_bytes", counters.deflated_pages.get().saturating_mul(PAGE_SIZE)),
            Reading::total("reported_bytes", counters.reported_bytes.get()),
            Reading::total("hinted_bytes", counters.hinted_bytes.get()),
            Reading::total("released_bytes", counters.released_bytes.get()),
            Reading::total("refused_pages", counters.refused_pages.get()),
            Reading::total("release_errors", counters.release_errors.get()),
        ];
        readings.extend(self.statistics.read().iter().map(|(name, value)| Reading::level(name, value)));
        readings
    }
}

machine::inspect!(Shared, this => {
    size: bytes(this.num_pages.load(Ordering::SeqCst)),
    actual: bytes(this.actual.load(Ordering::SeqCst)),
    hint_command,
    hints_complete: this.hints().complete,
    hex poison_value: this.poison_val,
    ..this.counters,
    statistics: this.statistics.read(),
});

machine::inspect!(Counters, this => {
    inflated_bytes: this.inflated_pages.get().saturating_mul(PAGE_SIZE),
    deflated_bytes: this.deflated_pages.get().saturating_mul(PAGE_SIZE),
    reported_bytes,
    hinted_bytes,
    released_bytes,
    refused_pages,
    release_errors,
});

/// Controls a balloon while its device is in use. Clones control the same balloon.
#[derive(Clone)]
pub struct BalloonControl(Arc<Shared>);

impl BalloonControl {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// How large the balloon is to be, in bytes.
    pub fn size(&self) -> u64 {
        bytes(self.0.num_pages.load(Ordering::SeqCst))
    }

    /// How large its driver says it is, in bytes. At most all of the guest's memory.
    pub fn actual(&self) -> u64 {
        bytes(self.0.actual.load(Ordering::SeqCst).min(self.0.most_pages))
    }

    /// The most it can be, in bytes.
    pub fn most(&self) -> u64 {
        bytes(self.0.most_pages)
    }

    /// Tells the driver how large it is to be, in bytes, rounded down to pages and to [`Self::most`].
    pub fn resize(&self, size: u64) {
        self.0.num_pages.store(pages(size).min(self.0.most_pages), Ordering::SeqCst);
        self.0.tell_driver();
    }

    /// What the driver told last of its memory.
    pub fn statistics(&self) -> Statistics {
        self.0.statistics.read()
    }

    /// Asks the driver for new statistics; they come when it likes.
    pub fn request_statistics(&self) {
        self.0.statistics_wanted.store(true, Ordering::SeqCst);
        self.0.bell.ring();
    }

    /// Asks the driver which pages are free, and has them told to `sink`. A page that the guest wrote to since this was
    /// called is not free, which is for the caller to see. To be followed by [`Self::end_hints`], so that the driver
    /// frees what it holds.
    pub fn begin_hints(&self, sink: HintSink) {
        let mut hints = self.0.hints();
        hints.last_command = hints.last_command.wrapping_add(1).max(FIRST_COMMAND);
        hints.sink = Some(sink);
        hints.answering = false;
        hints.complete = false;
        self.0.hint_command.store(hints.last_command, Ordering::SeqCst);
        drop(hints);
        self.0.tell_driver();
    }

    /// Whether the driver has told of all free pages since [`Self::begin_hints`].
    pub fn hints_complete(&self) -> bool {
        self.0.hints().complete
    }

    /// Lets the driver have its free pages back. The sink is not called any more.
    pub fn end_hints(&self) {
        let mut hints = self.0.hints();
        hints.sink = None;
        self.0.hint_command.store(hint::DONE, Ordering::SeqCst);
        drop(hints);
        self.0.tell_driver();
    }

    /// The device's live fields, as [`Inspect`] shows them.
    pub fn inspect(&self) -> Value {
        self.0.inspect()
    }
}
