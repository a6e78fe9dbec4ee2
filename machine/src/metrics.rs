//! Counting and timing what is done, without slowing it: each counter and histogram has one writer, on the data path, and
//! any number of readers, who never make the writer wait.
//!
//! A device shows what it counted as [`Reading`]s. The API, Prometheus and the tests read the same ones.

use crate::inspect::{Field, Value, json};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether anything is counted and timed. Only a build by which the cost of that is measured (`--cfg uncounted`, docs/observe.md)
/// does without.
pub const COUNTED: bool = !cfg!(uncounted);

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds, by the one thread that does. Returns the sum.
    #[inline]
    pub fn add(&self, number: u64) -> u64 {
        if !COUNTED {
            return number;
        }
        // Not an atomic addition, which would cost more: there is one writer.
        let sum = self.get().wrapping_add(number);
        self.0.store(sum, Ordering::Relaxed);
        sum
    }

    /// Adds, where several threads may do so at once.
    pub fn add_shared(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// Takes back what [`Self::add`] added, by the same thread.
    #[inline]
    pub fn take_back(&self, number: u64) {
        self.0.store(self.get().wrapping_sub(number), Ordering::Relaxed);
    }

    /// The number.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bits of a value that tell its bucket, besides the place of its highest bit: a bucket is at most 1/8 as wide as the
/// values in it are large.
const PRECISION: u32 = 3;
const STEPS: usize = 1 << PRECISION;
/// Values from this power of two on (four minutes, in nanoseconds) share the last bucket.
const LARGEST: u32 = 38;
const BUCKETS: usize = (LARGEST - PRECISION + 1) as usize * STEPS;

/// How long things took, in nanoseconds: buckets whose width grows with the value (log-linear), so that percentiles are
/// within 12.5 % whatever the scale. 2 KiB, from the first time on; recording is an addition to one bucket and to the sum.
#[derive(Default)]
pub struct Histogram {
    buckets: OnceLock<Box<[Counter; BUCKETS]>>,
    sum: Counter,
    /// The least value, as its complement, so that zero is none yet.
    least: AtomicU64,
    greatest: AtomicU64,
}

impl Histogram {
    /// Counts something that took `ns` nanoseconds, by the one thread that does.
    #[inline]
    pub fn record(&self, ns: u64) {
        self.record_many(ns, 1);
    }

    /// Counts `count` things, each of which took `ns` nanoseconds, by the one thread that does.
    #[inline]
    pub fn record_many(&self, ns: u64, count: u64) {
        if count == 0 || !COUNTED {
            return;
        }
        let buckets = self.buckets.get_or_init(|| Box::new([const { Counter::new() }; BUCKETS]));
        if let Some(bucket) = buckets.get(bucket(ns)) {
            bucket.add(count);
        }
        self.sum.add(ns.wrapping_mul(count));
        if !ns > self.least.load(Ordering::Relaxed) {
            self.least.store(!ns, Ordering::Relaxed);
        }
        if ns > self.greatest.load(Ordering::Relaxed) {
            self.greatest.store(ns, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", Latency::of([self]))
    }
}

/// The bucket of a value.
#[inline]
fn bucket(value: u64) -> usize {
    if value < STEPS as u64 {
        return value as usize;
    }
    // The place of the highest bit: `PRECISION` or more.
    let place = value.ilog2();
    if place >= LARGEST {
        return BUCKETS.saturating_sub(1);
    }
    let shift = place.wrapping_sub(PRECISION);
    let step = (value >> shift) as usize & STEPS.wrapping_sub(1);
    (shift.wrapping_add(1) as usize).wrapping_mul(STEPS).wrapping_add(step)
}

/// The largest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let step = bucket as u64 & (STEPS as u64).wrapping_sub(1);
    match (bucket >> PRECISION) as u32 {
        0 => step,
        octave => {
            let shift = octave.wrapping_sub(1);
            let lower = (STEPS as u64 | step) << shift;
            lower.wrapping_add((1_u64 << shift).wrapping_sub(1))
        }
    }
}

/// What histograms say. Times are in nanoseconds, and 0 if nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many values there are.
    pub count: u64,
    /// Their sum.
    pub sum_ns: u64,
    /// The least.
    pub min_ns: u64,
    /// The greatest.
    pub max_ns: u64,
    /// Half of them are not above this.
    pub p50_ns: u64,
    /// 99 % of them are not above this.
    pub p99_ns: u64,
    /// 99.9 % of them are not above this.
    pub p999_ns: u64,
}

impl Latency {
    /// What `histograms` say together. They may be written to meanwhile.
    pub fn of<'a>(histograms: impl IntoIterator<Item = &'a Histogram>) -> Self {
        let mut counts = [0_u64; BUCKETS];
        let (mut sum_ns, mut least, mut max_ns) = (0_u64, 0_u64, 0_u64);
        for histogram in histograms {
            for (sum, bucket) in
                counts.iter_mut().zip(histogram.buckets.get().into_iter().flat_map(|all| all.iter()))
            {
                *sum = sum.wrapping_add(bucket.get());
            }
            sum_ns = sum_ns.wrapping_add(histogram.sum.get());
            least = least.max(histogram.least.load(Ordering::Relaxed));
            max_ns = max_ns.max(histogram.greatest.load(Ordering::Relaxed));
        }
        let count = counts.iter().fold(0_u64, |sum, count| sum.wrapping_add(*count));
        if count == 0 {
            return Self::default();
        }
        let percentile = |per_mille: u64| {
            // The rank of the value looked for, from 1.
            let rank = u128::from(count).wrapping_mul(per_mille.into()).div_ceil(1000).max(1);
            let mut seen = 0_u128;
            let at = counts.iter().position(|count| {
                seen = seen.wrapping_add((*count).into());
                seen >= rank
            });
            upper_bound(at.unwrap_or(0)).min(max_ns)
        };
        Self {
            count,
            sum_ns,
            min_ns: if least == 0 { 0 } else { !least },
            max_ns,
            p50_ns: percentile(500),
            p99_ns: percentile(990),
            p999_ns: percentile(999),
        }
    }

    /// The mean, in nanoseconds.
    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(self.count).unwrap_or(0)
    }

    /// As an object, for inspection.
    pub fn value(&self) -> Value {
        json!({
            "count": self.count,
            "min_ns": self.min_ns,
            "mean_ns": self.mean_ns(),
            "p50_ns": self.p50_ns,
            "p99_ns": self.p99_ns,
            "p999_ns": self.p999_ns,
            "max_ns": self.max_ns,
        })
    }
}

/// One thing that was counted or timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What, such as `read_bytes`.
    pub name: &'static str,
    /// The figure.
    pub figure: Figure,
}

/// A figure, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// A number that only grows.
    Total(u64),
    /// A number that goes up and down.
    Level(u64),
    /// Times.
    Latency(Latency),
}

impl Reading {
    /// A number that only grows.
    pub fn total(name: &'static str, number: u64) -> Self {
        Self { name, figure: Figure::Total(number) }
    }

    /// A number that goes up and down.
    pub fn level(name: &'static str, number: u64) -> Self {
        Self { name, figure: Figure::Level(number) }
    }

    /// Times.
    pub fn latency<'a>(name: &'static str, histograms: impl IntoIterator<Item = &'a Histogram>) -> Self {
        Self { name, figure: Figure::Latency(Latency::of(histograms)) }
    }
}

impl Field for Counter {
    fn field(&self) -> Value {
        self.get().into()
    }
}

impl Field for Histogram {
    fn field(&self) -> Value {
        Latency::of([self]).value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for at in 1..BUCKETS {
            let first = upper_bound(at - 1) + 1;
            assert_eq!(bucket(first), at, "{first}");
            assert_eq!(bucket(upper_bound(at)), at);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn an_empty_histogram_says_nothing() {
        assert_eq!(Latency::of([&Histogram::default()]), Latency::default());
        assert_eq!(Latency::of([]), Latency::default());
    }

    #[test]
    fn what_took_the_same_time_is_recorded_at_once() {
        let (one_by_one, at_once) = (Histogram::default(), Histogram::default());
        for (ns, count) in [(70, 3), (5_000, 32), (1, 0)] {
            at_once.record_many(ns, count);
            (0..count).for_each(|_| one_by_one.record(ns));
        }
        assert_eq!(Latency::of([&at_once]), Latency::of([&one_by_one]));
        assert_eq!((Latency::of([&at_once]).count, Latency::of([&at_once]).min_ns), (35, 70));
    }

    proptest! {
        /// The oracle: the same figures from the sorted values.
        #[test]
        fn percentiles_are_those_of_the_values(values in prop::collection::vec(0..1_u64 << 38, 1..400)) {
            let halves = [Histogram::default(), Histogram::default()];
            for (at, value) in values.iter().enumerate() {
                halves[at % 2].record(*value);
            }
            let latency = Latency::of(&halves);
            let mut sorted = values.clone();
            sorted.sort_unstable();
            prop_assert_eq!(latency.count, values.len() as u64);
            prop_assert_eq!(latency.sum_ns, values.iter().sum::<u64>());
            prop_assert_eq!((latency.min_ns, latency.max_ns), (sorted[0], sorted[sorted.len() - 1]));
            for (found, per_mille) in [(latency.p50_ns, 500), (latency.p99_ns, 990), (latency.p999_ns, 999)] {
                let exact = sorted[(sorted.len() * per_mille).div_ceil(1000) - 1];
                prop_assert!(found >= exact && found - exact <= exact / 8, "{found} for {exact}");
            }
        }
    }
}
