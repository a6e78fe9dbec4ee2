//! Which queues time their requests, and for how long they do.

use super::*;

#[test]
fn what_was_timed_outlasts_a_pause_and_a_reset_and_is_of_this_machine() {
    for layout in [Layout::SPLIT, Layout::PACKED] {
        let mut driver = ready(layout);
        driver.call(0, &[b"a"], &[1]);
        driver.request(0, &[b"b"], &[1]).unwrap();
        driver.stop();
        assert_eq!(driver.latency(0).count, 1, "what is in the ring was not taken");
        driver.clock.advance(std::time::Duration::from_secs(1));
        let saved = driver.function.save().unwrap();
        driver.start();
        driver.run();
        let latency = driver.latency(0);
        assert_eq!((latency.count, latency.max_ns), (2, 0), "the pause is not the request's");
        driver.initialize(layout, u64::MAX);
        driver.call(0, &[b"c"], &[1]);
        assert_eq!((driver.latency(0).count, driver.latency(1).count), (3, 0));
        let mut other = attached();
        other.function.restore(&saved).unwrap();
        assert_eq!(other.latency(0).count, 0);
    }
}

#[test]
fn a_request_that_is_refused_for_want_of_a_device_is_timed_too() {
    let mut driver = ready(Layout::SPLIT);
    driver.stop();
    drop(driver.function.withdraw_device());
    driver.start();
    driver.call(0, &[b"x"], &[1]);
    driver.request(1, &[b"x"], &[1]).unwrap();
    driver.kick(1);
    driver.run();
    assert_eq!((driver.latency(0).count, driver.latency(1).count), (1, 0), "one is not answered");
}
