//! Time as a device sees it: a capability, so that tests, replay and fuzzing control it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of monotonic and wall-clock time.
pub trait Clock: Send + Sync {
    /// Time since an arbitrary fixed point, in nanoseconds; never goes backwards.
    fn monotonic_ns(&self) -> u64;

    /// Time since another fixed point, in nanoseconds, for telling how long something short took: as cheap to read as the host
    /// allows. It may run a little faster or slower than [`Clock::monotonic_ns`], and leap when the host sleeps, so that nothing
    /// may wait for it to reach a value.
    fn interval_ns(&self) -> u64 {
        self.monotonic_ns()
    }

    /// Time since 1970-01-01T00:00:00Z. May be stepped by the host's administrator.
    fn wall(&self) -> Duration;
}

/// The host's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts at zero now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct ManualClock {
    monotonic_ns: AtomicU64,
    wall_start_ns: u64,
}

impl ManualClock {
    /// A clock at monotonic time zero, whose wall clock reads `wall`.
    pub fn starting_at(wall: Duration) -> Self {
        Self {
            monotonic_ns: AtomicU64::new(0),
            wall_start_ns: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Moves both times forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        // A saturating add in a loop: the clock must never go backwards, not even by overflow.
        let _ = self
            .monotonic_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_add(by)));
    }
}

impl Clock for ManualClock {
    fn monotonic_ns(&self) -> u64 {
        self.monotonic_ns.load(Ordering::Relaxed)
    }

    fn wall(&self) -> Duration {
        Duration::from_nanos(self.wall_start_ns.saturating_add(self.monotonic_ns()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_both_times_and_never_wraps() {
        let clock = ManualClock::starting_at(Duration::from_secs(100));
        clock.advance(Duration::from_millis(1500));
        assert_eq!(clock.monotonic_ns(), 1_500_000_000);
        assert_eq!(clock.wall(), Duration::from_millis(101_500));
        clock.advance(Duration::MAX);
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.monotonic_ns(), u64::MAX);
    }
}
