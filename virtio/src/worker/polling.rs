//! How long to look for work before sleeping.
//!
//! Being woken costs a few microseconds here and, for the driver's doorbell, a few more in the guest. When the next request
//! is near, looking for it meanwhile is cheaper than sleeping; when it is far, it is waste. So the window grows while sleeps
//! turn out shorter than the limit, and shrinks to nothing while they turn out longer.

/// The window that growing starts from, and below which shrinking ends, in nanoseconds.
const SMALLEST: u64 = 4_000;

/// The polling window in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Polling {
    limit_ns: u64,
    window_ns: u64,
}

impl Polling {
    /// Polls for at most `limit_ns`, and begins with that.
    pub(super) fn new(limit_ns: u64) -> Self {
        Self { limit_ns, window_ns: limit_ns }
    }

    /// How long to poll now, in nanoseconds.
    pub(super) fn window_ns(&self) -> u64 {
        self.window_ns
    }

    /// There was nothing to do for `idle_ns`, polling included, of which the end was slept.
    pub(super) fn slept(&mut self, idle_ns: u64) {
        self.window_ns = if idle_ns <= self.limit_ns {
            self.window_ns.saturating_mul(2).max(SMALLEST).min(self.limit_ns)
        } else {
            Some(self.window_ns >> 1).filter(|window| *window >= SMALLEST).unwrap_or(0)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_the_gaps() {
        let mut polling = Polling::new(30_000);
        assert_eq!(polling.window_ns(), 30_000);
        for _ in 0..4 {
            polling.slept(1_000_000);
        }
        assert_eq!(polling.window_ns(), 0, "a few long gaps end polling");
        polling.slept(1_000_000);
        assert_eq!(polling.window_ns(), 0);
        polling.slept(10_000);
        assert_eq!(polling.window_ns(), SMALLEST);
        for _ in 0..10 {
            polling.slept(10_000);
        }
        assert_eq!(polling.window_ns(), 30_000, "short gaps bring it back, up to the limit");
    }

    #[test]
    fn no_limit_means_no_polling() {
        let mut polling = Polling::new(0);
        polling.slept(0);
        assert_eq!(polling.window_ns(), 0);
    }
}
