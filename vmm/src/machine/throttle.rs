//! Holding the CPUs for a share of the time, so that a guest changes its memory more slowly than it is copied.
//!
//! In each period the CPUs are held first and run for the rest of it. They are parked while they are held, as by a pause: a
//! pause, an end or a task for a CPU does not wait for the period to end.

use super::Machine;
use crate::api::request::SetThrottle;
use crate::api::{Answer, ApiError, Reply};
use machine::inspect::{Value, json};
use machine::metrics::Reading;
use std::time::{Duration, Instant};

/// How long a period is: short, so that the guest's clients notice little of it.
const PERIOD: Duration = Duration::from_millis(20);
/// The largest share, in percent.
pub const MOST: u8 = 99;

/// When CPUs are held.
#[derive(Default)]
pub struct Throttle {
    percent: u8,
    /// When that changes next; `None` when they are never held.
    next: Option<Instant>,
    /// Since when they are held.
    held: Option<Instant>,
    holds: u64,
    held_ns: u64,
}

impl Throttle {
    /// Has CPUs be held for `percent` of the time from now on. Returns whether they are to be let go.
    pub fn set(&mut self, percent: u8, now: Instant) -> bool {
        self.percent = percent.min(MOST);
        if self.percent > 0 {
            self.next.get_or_insert(now);
            return false;
        }
        self.next = None;
        self.end_hold(now)
    }

    /// The share, in percent.
    pub fn percent(&self) -> u8 {
        self.percent
    }

    /// When [`Throttle::turn`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// `Some(true)`: CPUs are to be held now; `Some(false)`: they are to run.
    pub fn turn(&mut self, now: Instant) -> Option<bool> {
        let due = self.next.filter(|next| *next <= now)?;
        let hold = PERIOD.saturating_mul(self.percent.into()).checked_div(100).unwrap_or_default();
        let holding = self.held.is_some();
        let lasts = if holding { PERIOD.saturating_sub(hold) } else { hold };
        // Who comes late does not make up for it by turns that follow each other at once.
        self.next = due.checked_add(lasts).map(|next| next.max(now));
        if holding {
            self.end_hold(now);
        } else {
            self.held = Some(now);
            self.holds = self.holds.wrapping_add(1);
        }
        Some(!holding)
    }

    fn end_hold(&mut self, now: Instant) -> bool {
        let Some(since) = self.held.take() else { return false };
        let ns = now.saturating_duration_since(since).as_nanos();
        self.held_ns = self.held_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX));
        true
    }

    /// What it did so far.
    pub fn readings(&self) -> Vec<Reading> {
        vec![Reading::total("holds", self.holds), Reading::total("held_ns", self.held_ns)]
    }

    /// What it does and did.
    pub fn inspect(&self) -> Value {
        json!({
            "percent": self.percent,
            "held": self.held.is_some(),
            "holds": self.holds,
            "held_ns": self.held_ns,
        })
    }
}

impl Machine {
    /// Has the CPUs be held for a share of the time.
    ///
    /// # Errors
    /// When that is more than [`MOST`].
    pub fn set_throttle(&mut self, request: &SetThrottle) -> Answer {
        let SetThrottle { percent } = *request;
        if percent > MOST {
            return Err(ApiError {
                field: Some("percent".to_owned()),
                ..ApiError::bad(format!(
                    "percent {percent}: CPUs can be held for 0 to {MOST} percent of the time"
                ))
            });
        }
        if self.throttle.set(percent, Instant::now()) {
            self.hold_back(false);
        }
        self.events.emit_with("vm", "throttled", [("percent", percent.into())]);
        Ok(Reply::Done)
    }

    /// The share of the time in which CPUs are held, in percent.
    pub fn throttle_percent(&self) -> u8 {
        self.throttle.percent()
    }

    /// Holds the CPUs, or lets them go, if it is time to.
    pub(super) fn turn_throttle(&mut self, now: Instant) {
        if let Some(hold) = self.throttle.turn(now) {
            self.hold_back(hold);
        }
    }

    fn hold_back(&self, hold: bool) {
        for cpu in &self.cpus {
            cpu.throttle(hold);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_held_for_their_share_of_each_period() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        assert_eq!((throttle.deadline(), throttle.turn(start)), (None, None));
        for percent in [1, 25, 99] {
            assert!(!throttle.set(percent, start));
            let (mut held, mut since) = (Duration::ZERO, None);
            let begun = throttle.held_ns;
            for _ in 0..20 {
                let now = throttle.deadline().unwrap();
                assert_eq!(throttle.turn(now - Duration::from_nanos(1)), None);
                match throttle.turn(now).unwrap() {
                    true => since = Some(now),
                    false => held += now - since.take().unwrap(),
                }
            }
            // The last period runs to the next turn.
            let now = throttle.deadline().unwrap();
            assert_eq!(now - start, PERIOD * 10);
            assert_eq!(held, PERIOD * u32::from(percent) / 10);
            assert_eq!(u128::from(throttle.held_ns - begun), held.as_nanos());
            assert!(!throttle.set(0, now), "they run");
        }
        throttle.set(50, start);
        assert_eq!(throttle.turn(start), Some(true));
        assert!(throttle.set(0, start + PERIOD), "they are let go at once");
        assert_eq!(throttle.deadline(), None);
    }

    #[test]
    fn who_comes_late_goes_on_from_there() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        throttle.set(50, start);
        let late = start + PERIOD * 100;
        assert_eq!(throttle.turn(late), Some(true));
        assert_eq!(throttle.deadline(), Some(late));
        assert_eq!(throttle.turn(late), Some(false));
        assert_eq!(throttle.deadline(), Some(late + PERIOD / 2));
    }
}
