//! The clocks of the device, and their alarms.

use machine::clock::Clock;
use machine::inspect::{Value, json};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// While an alarm is set, the clocks are looked at this often at least: the host's administrator may step them.
const LOOK_NS: u64 = 10_000_000_000;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// Which time a clock tells (virtio 1.4, 5.23.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// UTC since 1970, by the host's clock, of which only its administrator knows how it takes leap seconds.
    UtcMaybeSmeared,
    /// Time that nobody sets, since some point before the machine started.
    Monotonic,
    /// International Atomic Time since 1970.
    Tai,
}

impl Kind {
    /// Its number in the specification.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Tai => 1,
            Self::Monotonic => 2,
            Self::UtcMaybeSmeared => 4,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::UtcMaybeSmeared => "utc_maybe_smeared",
            Self::Monotonic => "monotonic",
            Self::Tai => "tai",
        }
    }
}

/// An alarm: one for each clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Alarm {
    /// When, in the clock's nanoseconds.
    pub(super) time: u64,
    pub(super) enabled: bool,
    /// The clock has reached the time since the driver last spoke of it.
    expired: bool,
    /// The driver is to be told.
    pending: bool,
}

impl Alarm {
    /// The driver set it. What it was to be told before is void.
    pub(super) fn set(&mut self, time: u64, enabled: bool) {
        *self = Self { time, enabled, expired: false, pending: false };
    }
}

/// The clocks.
pub(super) struct Clocks {
    clock: Arc<dyn Clock>,
    tai_offset: fn() -> Option<u64>,
    /// What the monotonic clock has more than the host's.
    monotonic_lead: u64,
    clocks: Vec<(Kind, Alarm)>,
}

impl Clocks {
    pub(super) fn new(clock: Arc<dyn Clock>, tai_offset: fn() -> Option<u64>) -> Self {
        let mut kinds = vec![Kind::UtcMaybeSmeared, Kind::Monotonic];
        kinds.extend(tai_offset().map(|_| Kind::Tai));
        let clocks = kinds.into_iter().map(|kind| (kind, Alarm::default())).collect();
        Self { clock, tai_offset, monotonic_lead: 0, clocks }
    }

    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.clocks.len()).unwrap_or(0)
    }

    pub(super) fn kind(&self, id: u16) -> Option<Kind> {
        self.clocks.get(usize::from(id)).map(|(kind, _)| *kind)
    }

    pub(super) fn alarm(&mut self, id: u16) -> Option<&mut Alarm> {
        self.clocks.get_mut(usize::from(id)).map(|(_, alarm)| alarm)
    }

    /// What a clock of that kind shows, in nanoseconds; `None` if the host does not know.
    pub(super) fn now(&self, kind: Kind) -> Option<u64> {
        let wall = || u64::try_from(self.clock.wall().as_nanos()).unwrap_or(u64::MAX);
        match kind {
            Kind::UtcMaybeSmeared => Some(wall()),
            Kind::Monotonic => Some(self.clock.monotonic_ns().saturating_add(self.monotonic_lead)),
            Kind::Tai => {
                (self.tai_offset)().map(|offset| wall().saturating_add(offset.saturating_mul(NS_PER_SECOND)))
            }
        }
    }

    /// Looks which alarms have come. Returns when to look again: monotonic time of the host, in nanoseconds.
    pub(super) fn look(&mut self) -> Option<u64> {
        let mut next: Option<u64> = None;
        for index in 0..self.clocks.len() {
            let Some((kind, mut alarm)) = self.clocks.get(index).copied() else { break };
            let Some(now) = self.now(kind).filter(|_| alarm.enabled) else { continue };
            if now < alarm.time {
                // Also after a step backwards: it comes again.
                (alarm.expired, alarm.pending) = (false, false);
                let wait = alarm.time.saturating_sub(now).min(LOOK_NS);
                let time = self.clock.monotonic_ns().saturating_add(wait);
                next = Some(next.map_or(time, |other| other.min(time)));
            } else if !alarm.expired {
                (alarm.expired, alarm.pending) = (true, true);
            }
            if let Some((_, place)) = self.clocks.get_mut(index) {
                *place = alarm;
            }
        }
        next
    }

    /// A clock of whose alarm the driver is to be told.
    pub(super) fn pending(&self) -> Option<u16> {
        let index = self.clocks.iter().position(|(_, alarm)| alarm.pending)?;
        u16::try_from(index).ok()
    }

    /// The driver was told of a clock's alarm.
    pub(super) fn told(&mut self, id: u16) {
        if let Some(alarm) = self.alarm(id) {
            alarm.pending = false;
        }
    }

    /// Forgets the alarms. The monotonic clock has a new beginning.
    pub(super) fn reset(&mut self) {
        self.monotonic_lead = 0;
        self.clocks.iter_mut().for_each(|(_, alarm)| *alarm = Alarm::default());
    }

    pub(super) fn save(&self) -> SavedClocks {
        let clocks = self.clocks.iter().map(|(kind, alarm)| SavedClock { kind: *kind, alarm: *alarm });
        let monotonic_ns = self.now(Kind::Monotonic).unwrap_or(0);
        SavedClocks { monotonic_ns, clocks: clocks.collect() }
    }

    /// The clocks become those that the driver knows, also if the host does not know one of them.
    pub(super) fn restore(&mut self, saved: &SavedClocks) {
        self.monotonic_lead = saved.monotonic_ns.saturating_sub(self.clock.monotonic_ns());
        self.clocks = saved.clocks.iter().map(|clock| (clock.kind, clock.alarm)).collect();
    }

    pub(super) fn inspect(&self) -> Value {
        let clock = |(kind, alarm): &(Kind, Alarm)| {
            json!({
                "kind": kind.name(),
                "now_ns": self.now(*kind),
                "alarm_ns": alarm.enabled.then_some(alarm.time),
                "alarm_expired": alarm.expired,
            })
        };
        self.clocks.iter().map(clock).collect()
    }
}

/// The most clocks that a saved state can have.
pub(super) const MOST_CLOCKS: usize = 16;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SavedClocks {
    /// What the monotonic clock showed.
    monotonic_ns: u64,
    pub(super) clocks: Vec<SavedClock>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedClock {
    kind: Kind,
    #[serde(default)]
    alarm: Alarm,
}
