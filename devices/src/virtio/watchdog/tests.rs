use super::*;
use std::time::Duration;
use virtio::testing::{Driver, Layout};

virtio::conformance!(conformance, || Box::new(Watchdog::new(|| {})));

/// A driven watchdog, and how often it expired.
fn rig(layout: Layout) -> (Driver, Arc<AtomicU64>) {
    let (driver, expired, _) = rig_with_hold(layout);
    (driver, expired)
}

/// As [`rig`], and what holds the watchdog.
fn rig_with_hold(layout: Layout) -> (Driver, Arc<AtomicU64>, Hold) {
    let expired = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&expired);
    let device = Watchdog::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let hold = device.hold();
    (Driver::new(Box::new(device), layout), expired, hold)
}

fn ping(driver: &mut Driver) {
    driver.request(0, &[], &[4]).unwrap();
    driver.run();
    let answer = driver.completion(0).unwrap();
    assert_eq!((answer.written, answer.data[0]), (1, 1));
}

fn pass(driver: &mut Driver, seconds: u64) -> Progress {
    driver.clock.advance(Duration::from_secs(seconds));
    driver.tasks[0].handler.run(0)
}

#[test]
fn a_guest_that_speaks_is_left_alone_and_a_silent_one_is_told_of_once() {
    for layout in Layout::all() {
        let (mut driver, expired) = rig(layout);
        assert_eq!(pass(&mut driver, 1000), Progress::Idle, "nothing is watched before the first word");
        for _ in 0..10 {
            ping(&mut driver);
            let now = driver.clock.monotonic_ns();
            assert_eq!(pass(&mut driver, 15), Progress::Until(now + LIMIT_NS));
        }
        assert_eq!(expired.load(Ordering::Relaxed), 0);
        assert_eq!(pass(&mut driver, 5), Progress::Idle);
        assert_eq!(pass(&mut driver, 100), Progress::Idle);
        assert_eq!(expired.load(Ordering::Relaxed), 1);
        ping(&mut driver);
        pass(&mut driver, 20);
        assert_eq!(expired.load(Ordering::Relaxed), 2);
    }
}

#[test]
fn a_pause_costs_the_guest_no_time_and_a_reset_ends_the_watch() {
    let (mut driver, expired) = rig(Layout::SPLIT);
    ping(&mut driver);
    driver.stop();
    driver.clock.advance(Duration::from_secs(1000));
    driver.start();
    assert!(matches!(pass(&mut driver, 19), Progress::Until(_)));
    driver.initialize(Layout::SPLIT, u64::MAX);
    assert_eq!(pass(&mut driver, 1000), Progress::Idle);
    assert_eq!(expired.load(Ordering::Relaxed), 0);
}

#[test]
fn a_guest_that_cannot_speak_is_not_taken_for_dead_and_has_all_of_its_time_afterwards() {
    let (mut driver, expired, hold) = rig_with_hold(Layout::SPLIT);
    ping(&mut driver);
    pass(&mut driver, 10);
    hold.hold();
    for _ in 0..10 {
        assert!(matches!(pass(&mut driver, 100), Progress::Until(_)));
    }
    hold.release(driver.clock.monotonic_ns());
    assert!(matches!(pass(&mut driver, 19), Progress::Until(_)));
    assert_eq!(expired.load(Ordering::Relaxed), 0);
    // It stays silent.
    assert!(matches!(pass(&mut driver, 1), Progress::Idle));
    assert_eq!(expired.load(Ordering::Relaxed), 1);
}

#[test]
fn a_word_that_came_in_time_counts_though_it_is_heard_late() {
    let (mut driver, expired) = rig(Layout::SPLIT);
    ping(&mut driver);
    driver.request(0, &[], &[1]).unwrap();
    assert!(matches!(pass(&mut driver, 60), Progress::Until(_)));
    assert_eq!(expired.load(Ordering::Relaxed), 0);
}

#[test]
fn a_buffer_without_room_breaks_the_queue() {
    let (mut driver, _) = rig(Layout::SPLIT);
    driver.request(0, &[b"ping"], &[]).unwrap();
    driver.run();
    assert!(!driver.function.is_live(), "the driver is told that the device needs a reset");
    driver.initialize(Layout::SPLIT, u64::MAX);
    ping(&mut driver);
}
