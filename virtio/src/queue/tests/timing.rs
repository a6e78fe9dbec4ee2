//! How long requests are said to take.

use super::*;
use machine::clock::{Clock, ManualClock};
use machine::metrics::{Figure, Latency};
use std::time::Duration;

/// A pair whose queue times its requests, and the time.
struct Timed {
    pair: Pair,
    counters: Arc<QueueCounters>,
    clock: Arc<ManualClock>,
}

impl Timed {
    fn new(features: Features) -> Self {
        let clock = Arc::new(ManualClock::default());
        clock.advance(Duration::from_millis(3));
        let counters = Arc::new(QueueCounters::timed());
        let mut pair = Pair::new(16, features);
        pair.device = pair.device.counting(Arc::clone(&counters), clock.clone());
        Self { pair, counters, clock }
    }

    fn wait(&self, ns: u64) {
        self.clock.advance(Duration::from_nanos(ns));
    }

    fn add(&mut self) {
        self.pair.driver.add(&[readable(DATA, 1)]).unwrap();
    }

    fn take(&mut self) -> Token {
        assert!(self.pair.pop().unwrap());
        self.pair.chain.token()
    }

    /// How many requests were timed, how long the shortest and the longest took, and all together.
    fn told(&self) -> (u64, u64, u64, u64) {
        let latency = Latency::of(self.counters.latency.as_deref());
        (latency.count, latency.min_ns, latency.max_ns, latency.sum_ns)
    }
}

#[test]
fn a_batch_counts_from_its_first_request_to_when_the_driver_is_told() {
    for features in layouts() {
        let mut queue = Timed::new(features);
        (0..4).for_each(|_| queue.add());
        queue.wait(500);
        for _ in 0..3 {
            let token = queue.take();
            queue.wait(100);
            queue.pair.device.push(token, 0);
        }
        queue.wait(20);
        assert_eq!(queue.told(), (0, 0, 0, 0), "the driver knows of nothing");
        queue.pair.device.notify();
        assert_eq!(queue.told(), (3, 320, 320, 960), "what it waited in the ring is not counted");
        queue.wait(1_000_000);
        let token = queue.take();
        queue.wait(7);
        queue.pair.device.push(token, 0);
        queue.pair.device.flush();
        queue.wait(1000);
        queue.pair.device.notify();
        assert_eq!(queue.told(), (4, 7, 320, 967), "a flush shows answers too");
    }
}

#[test]
fn requests_that_go_back_to_the_ring_count_from_when_they_are_taken_again() {
    for features in layouts() {
        let mut queue = Timed::new(features);
        queue.add();
        for _ in 0..3 {
            let token = queue.take();
            queue.wait(100);
            queue.pair.device.unpop(token);
            queue.pair.device.notify();
            queue.wait(1_000_000);
        }
        assert_eq!(queue.told(), (0, 0, 0, 0));
        let token = queue.take();
        queue.wait(9);
        queue.pair.device.push(token, 0);
        queue.pair.device.notify();
        assert_eq!(queue.told(), (1, 9, 9, 9));
    }
}

#[test]
fn requests_in_flight_over_several_batches_count_from_their_own() {
    let mut queue = Timed::new(features(false, true));
    (0..3).for_each(|_| queue.add());
    let first = queue.take();
    queue.pair.device.notify();
    queue.wait(1000);
    let (second, third) = (queue.take(), queue.take());
    queue.wait(50);
    queue.pair.device.push(second, 0);
    queue.pair.device.notify();
    assert_eq!(queue.told(), (1, 50, 50, 50));
    queue.wait(100);
    queue.pair.device.push(first, 0);
    queue.pair.device.push(third, 0);
    queue.pair.device.notify();
    assert_eq!(queue.told(), (3, 50, 1150, 50 + 1150 + 150));
}

#[test]
fn a_buffer_that_waited_for_data_counts_from_when_there_is_some() {
    for features in layouts() {
        let mut queue = Timed::new(features);
        (0..4).for_each(|_| queue.add());
        let held: Vec<_> = (0..3).map(|_| queue.take()).collect();
        queue.pair.device.notify();
        queue.wait(1_000_000_000);
        let now = queue.clock.interval_ns();
        queue.pair.device.begin_batch(now);
        queue.wait(30);
        queue.pair.device.push_held(held[0], 0);
        let _ = queue.take();
        queue.wait(5);
        queue.pair.device.push_held(held[1], 0);
        queue.pair.device.notify();
        assert_eq!(queue.told(), (2, 35, 35, 70));
        queue.wait(1_000_000_000);
        queue.pair.device.push_held(held[2], 0);
        queue.wait(4);
        queue.pair.device.notify();
        assert_eq!(queue.told(), (3, 4, 35, 74), "one that no batch was begun for begins it");
        assert_eq!(queue.counters.popped.get(), 4, "the last still waits");
    }
}

/// A clock that nobody may look at.
struct Blind;

impl Clock for Blind {
    fn monotonic_ns(&self) -> u64 {
        unreachable!("time is not asked for")
    }

    fn wall(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn a_queue_whose_device_times_its_requests_does_not_look_at_the_clock() {
    let counters = Arc::new(QueueCounters::default());
    let mut pair = Pair::new(16, features(false, true));
    pair.device = pair.device.counting(Arc::clone(&counters), Arc::new(Blind));
    pair.device.begin_batch(0);
    pair.serve(3);
    pair.device.flush();
    assert_eq!(counters.used.get(), 3);
    assert!(counters.readings().iter().all(|reading| !matches!(reading.figure, Figure::Latency(_))));
    assert!(machine::inspect::Inspect::inspect(&*counters).get("latency").is_none());
}
