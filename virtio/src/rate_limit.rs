//! Limits on bytes and operations per second, which several queues or devices may share.

use arc_swap::ArcSwapOption;
use machine::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Time is counted in 64ths of a nanosecond, so that rounding the cost of small requests stays without effect on the rate.
/// It then lasts for nine years.
const TICKS_PER_NS: u64 = 64;

/// What a bucket is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Tokens (bytes or operations) the bucket holds. It is full at the beginning.
    pub size: u64,
    /// How long an empty bucket takes to be full again: the rate is `size` in this time.
    pub refill_time: Duration,
    /// Further tokens at the beginning, which do not come back.
    pub one_time_burst: u64,
}

/// A token bucket. It is used without a lock, by any number of threads.
#[derive(Debug)]
pub struct TokenBucket {
    limit: Limit,
    /// Ticks it takes to refill the bucket.
    capacity: u64,
    /// The tick at which the bucket will be full.
    full_at: AtomicU64,
    burst_left: AtomicU64,
    refusals: AtomicU64,
}

impl TokenBucket {
    /// A full bucket. `None` when `limit` does not limit: its size or its time is zero.
    pub fn new(limit: Limit) -> Option<Self> {
        let refill = u64::try_from(limit.refill_time.as_nanos()).unwrap_or(u64::MAX);
        if limit.size == 0 || refill == 0 {
            return None;
        }
        Some(Self {
            limit,
            capacity: refill.saturating_mul(TICKS_PER_NS),
            full_at: AtomicU64::new(0),
            burst_left: AtomicU64::new(limit.one_time_burst),
            refusals: AtomicU64::new(0),
        })
    }

    /// Ticks in which `tokens` come in.
    fn cost(&self, tokens: u64) -> u64 {
        let cost =
            u128::from(tokens).saturating_mul(self.capacity.into()).checked_div(self.limit.size.into());
        u64::try_from(cost.unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// Takes `tokens` if the bucket is not empty. It may go into debt by what is taken, so that a request larger than the
    /// bucket is served too, and the average holds.
    ///
    /// # Errors
    /// When the bucket is empty: the monotonic time, in nanoseconds, at which it no longer is.
    pub fn consume(&self, tokens: u64, now_ns: u64) -> Result<(), u64> {
        if self.take_burst(tokens) {
            return Ok(());
        }
        let now = now_ns.saturating_mul(TICKS_PER_NS);
        let cost = self.cost(tokens);
        let taken = self.full_at.fetch_update(Ordering::AcqRel, Ordering::Acquire, |full_at| {
            (full_at.saturating_sub(now) < self.capacity).then(|| full_at.max(now).saturating_add(cost))
        });
        taken.map(drop).map_err(|full_at| {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            let empty_until = full_at.saturating_sub(self.capacity);
            // The first nanosecond after it.
            empty_until.wrapping_div(TICKS_PER_NS).saturating_add(1)
        })
    }

    /// Takes from the one-time burst, if all of it can come from there.
    fn take_burst(&self, tokens: u64) -> bool {
        self.burst_left.load(Ordering::Relaxed) > 0
            && self
                .burst_left
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(tokens))
                .is_ok()
    }

    /// Gives back what was taken for something that did not happen after all.
    pub fn restore(&self, tokens: u64) {
        let cost = self.cost(tokens);
        let _ = self
            .full_at
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |full_at| Some(full_at.saturating_sub(cost)));
    }
}

/// A limit on bytes and on operations, either of which may be absent. Clones share the same buckets: that is how a group
/// of devices is limited together, and how limits are changed while devices work.
#[derive(Clone)]
pub struct RateLimiter {
    buckets: Arc<Buckets>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Buckets {
    /// There is any bucket. Looked at first, so that what is not limited pays for no more.
    limited: AtomicBool,
    bytes: ArcSwapOption<TokenBucket>,
    operations: ArcSwapOption<TokenBucket>,
}

impl RateLimiter {
    /// A limiter with full buckets.
    pub fn new(bytes: Option<Limit>, operations: Option<Limit>, clock: Arc<dyn Clock>) -> Self {
        let limiter = Self::unlimited(clock);
        limiter.set(bytes, operations);
        limiter
    }

    /// A limiter that does not limit.
    pub fn unlimited(clock: Arc<dyn Clock>) -> Self {
        Self { buckets: Arc::default(), clock }
    }

    /// Limits anew, with full buckets. What waits for the old limits waits until the time it was told, or until it is rung for.
    pub fn set(&self, bytes: Option<Limit>, operations: Option<Limit>) {
        let bucket = |limit: Option<Limit>| limit.and_then(TokenBucket::new).map(Arc::new);
        let (bytes, operations) = (bucket(bytes), bucket(operations));
        let limited = bytes.is_some() || operations.is_some();
        self.buckets.bytes.store(bytes);
        self.buckets.operations.store(operations);
        self.buckets.limited.store(limited, Ordering::Release);
    }

    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        self.buckets.limited.load(Ordering::Acquire)
    }

    /// Asks for leave for one operation of `bytes`.
    ///
    /// # Errors
    /// When it has to wait: the monotonic time, in nanoseconds, at which to ask again.
    #[inline]
    pub fn consume(&self, bytes: u64) -> Result<(), u64> {
        if !self.is_limited() {
            return Ok(());
        }
        let now = self.clock.monotonic_ns();
        let operations = self.buckets.operations.load();
        if let Some(operations) = operations.as_ref() {
            operations.consume(1, now)?;
        }
        if let Some(bucket) = self.buckets.bytes.load().as_ref() {
            bucket.consume(bytes, now).inspect_err(|_| {
                if let Some(operations) = operations.as_ref() {
                    operations.restore(1);
                }
            })?;
        }
        Ok(())
    }

    /// Gives back what [`Self::consume`] took for one operation of `bytes` that is to be asked for again. What came from a
    /// one-time burst comes back as time.
    pub fn restore(&self, bytes: u64) {
        if !self.is_limited() {
            return;
        }
        if let Some(operations) = self.buckets.operations.load().as_ref() {
            operations.restore(1);
        }
        if let Some(bucket) = self.buckets.bytes.load().as_ref() {
            bucket.restore(bytes);
        }
    }
}

machine::inspect!(RateLimiter, this => {
    bytes: this.buckets.bytes.load_full(),
    operations: this.buckets.operations.load_full(),
});

machine::inspect!(TokenBucket, this => {
    size: this.limit.size,
    refill_time_ns: this.limit.refill_time.as_nanos() as u64,
    one_time_burst: this.limit.one_time_burst,
    burst_left,
    refusals,
});

#[cfg(test)]
mod tests {
    use super::*;
    use machine::clock::ManualClock;
    use proptest::prelude::*;

    fn limit(size: u64, millis: u64, one_time_burst: u64) -> Limit {
        Limit { size, refill_time: Duration::from_millis(millis), one_time_burst }
    }

    /// Requests as fast as allowed for `seconds`; returns how many were allowed.
    fn drive(limiter: &RateLimiter, clock: &ManualClock, bytes: u64, seconds: u64) -> u64 {
        let end = clock.monotonic_ns() + seconds * 1_000_000_000;
        let mut served = 0;
        while clock.monotonic_ns() < end {
            match limiter.consume(bytes) {
                Ok(()) => served += 1,
                Err(until) => {
                    assert!(until > clock.monotonic_ns(), "waiting must help");
                    clock.advance(Duration::from_nanos(until - clock.monotonic_ns()));
                }
            }
        }
        served
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn the_rate_holds_within_one_percent(rate in 2000..50_000_u64, bytes in 2000..200_000_u64) {
            let clock = Arc::new(ManualClock::default());
            let operations = limit(rate / 100, 10, 0);
            let limiter = RateLimiter::new(None, Some(operations), clock.clone());
            // The first bucketful is a burst.
            drive(&limiter, &clock, 0, 1);
            let served = drive(&limiter, &clock, 0, 1);
            let expected = rate / 100 * 100;
            prop_assert!(served.abs_diff(expected) * 100 <= expected, "{served} of {expected} operations");

            let rate = 40_000_000;
            let limiter = RateLimiter::new(Some(limit(rate, 1000, 0)), None, clock.clone());
            drive(&limiter, &clock, bytes, 2);
            let served = drive(&limiter, &clock, bytes, 1) * bytes;
            prop_assert!(served.abs_diff(rate) * 100 <= rate, "{served} bytes of {rate}");
        }
    }

    #[test]
    fn bursts_come_first_and_once() {
        let clock = Arc::new(ManualClock::default());
        let limiter = RateLimiter::new(None, Some(limit(10, 1000, 5)), clock.clone());
        let burst = || (0..100).take_while(|_| limiter.consume(0).is_ok()).count();
        assert_eq!(burst(), 15);
        clock.advance(Duration::from_secs(100));
        assert_eq!(burst(), 10, "the one-time burst does not come back, and idling saves up one bucket");
        clock.advance(Duration::from_millis(300));
        assert_eq!(burst(), 3);
    }

    #[test]
    fn a_request_larger_than_the_bucket_is_served_and_paid_for() {
        let clock = Arc::new(ManualClock::default());
        let limiter = RateLimiter::new(Some(limit(1000, 1000, 0)), None, clock);
        assert_eq!(limiter.consume(5000), Ok(()));
        let until = limiter.consume(1).unwrap_err();
        assert!((4_000_000_000..4_000_000_100).contains(&until), "{until}");
    }

    #[test]
    fn a_refused_request_takes_from_neither_bucket() {
        let clock = Arc::new(ManualClock::default());
        let limiter = RateLimiter::new(Some(limit(1, 1000, 0)), Some(limit(3, 1_000_000, 0)), clock.clone());
        assert!(limiter.consume(1).is_ok());
        for _ in 0..10 {
            assert!(limiter.consume(1).is_err());
        }
        clock.advance(Duration::from_secs(1));
        assert!(limiter.consume(1).is_ok(), "refusals cost no operations");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let clock = Arc::new(ManualClock::default());
        let limiter = RateLimiter::new(Some(limit(1000, 1000, 0)), Some(limit(1, 1000, 0)), clock);
        for _ in 0..3 {
            assert_eq!(limiter.consume(1000), Ok(()));
            limiter.restore(1000);
        }
        limiter.restore(1 << 40);
        assert_eq!(limiter.consume(1000), Ok(()), "the buckets hold no more than before");
        assert!(limiter.consume(1).is_err());
        RateLimiter::unlimited(Arc::new(ManualClock::default())).restore(1);
    }

    #[test]
    fn a_group_shares_its_buckets() {
        let clock = Arc::new(ManualClock::default());
        let limiter = RateLimiter::new(None, Some(limit(4, 1000, 0)), clock);
        let other = limiter.clone();
        let served =
            (0..10).filter(|i| if i % 2 == 0 { &limiter } else { &other }.consume(0).is_ok()).count();
        assert_eq!(served, 4);
    }

    #[test]
    fn limits_change_for_all_who_share_them() {
        let clock = Arc::new(ManualClock::default());
        let limiter = RateLimiter::unlimited(clock);
        let other = limiter.clone();
        assert!((0..100).all(|_| other.consume(0).is_ok()));
        limiter.set(None, Some(limit(4, 1000, 0)));
        assert_eq!((0..100).take_while(|_| other.consume(0).is_ok()).count(), 4);
        limiter.set(Some(limit(10, 1000, 0)), None);
        assert_eq!((0..100).take_while(|_| other.consume(5).is_ok()).count(), 2);
        limiter.set(None, None);
        assert!((0..100).all(|_| other.consume(5).is_ok()));
    }

    #[test]
    fn a_limit_of_nothing_does_not_limit() {
        let limiter =
            RateLimiter::new(Some(limit(0, 1, 0)), Some(limit(1, 0, 0)), Arc::new(ManualClock::default()));
        assert!(!limiter.is_limited());
        assert!((0..1000).all(|_| limiter.consume(1 << 40).is_ok()));
    }
}
