//! The messages are those of virtio 1.4, 5.23.6, byte by byte.

use super::*;
use machine::clock::ManualClock;
use std::time::Duration;
use virtio::testing::{Driver, Layout};

const START: u64 = 1_700_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;
const UTC: u16 = 0;
const MONOTONIC: u16 = 1;
const TAI: u16 = 2;

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::starting_at(Duration::from_nanos(START)))
}

fn rtc(clock: Arc<ManualClock>) -> Box<dyn VirtioDevice> {
    Box::new(Rtc::new(clock, || Some(37)))
}

virtio::conformance!(conformance, || rtc(clock()));

fn driver(features: u64) -> Driver {
    let clock = clock();
    let mut driver = Driver::attach_with(clock.clone(), rtc(clock));
    driver.initialize(Layout::SPLIT, features);
    driver
}

/// A request of `kind`, with the fields that follow its head.
fn request(kind: u16, fields: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 6], fields].concat()
}

fn of_clock(kind: u16, id: u16, last: u8) -> Vec<u8> {
    request(kind, &[&id.to_le_bytes()[..], &[last, 0, 0, 0, 0, 0]].concat())
}

fn set_alarm(id: u16, time: u64, flags: u8) -> Vec<u8> {
    request(0x1004, &[&time.to_le_bytes()[..], &id.to_le_bytes(), &[flags, 0, 0, 0, 0, 0]].concat())
}

/// Makes a request, in no time.
fn call(driver: &mut Driver, request: &[u8], room: u32) -> Vec<u8> {
    driver.request(0, &[request], &[room]).unwrap();
    driver.run();
    let mut answer = driver.completion(0).unwrap();
    answer.data.truncate(answer.written as usize);
    answer.data
}

fn read(driver: &mut Driver, id: u16) -> u64 {
    let answer = call(driver, &of_clock(1, id, 0), 16);
    assert_eq!(answer[..8], [0; 8]);
    u64::from_le_bytes(answer[8..].try_into().unwrap())
}

#[test]
fn a_driver_learns_of_the_clocks_and_reads_them() {
    for layout in Layout::all() {
        let clock = clock();
        let mut driver = Driver::attach_with(clock.clone(), rtc(clock.clone()));
        driver.initialize(layout, u64::MAX);
        assert_eq!(
            call(&mut driver, &request(0x1000, &[]), 16),
            [0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
        );
        for (id, kind) in [(UTC, 4), (MONOTONIC, 2), (TAI, 1)] {
            let answer = call(&mut driver, &of_clock(0x1001, id, 0), 16);
            assert_eq!(answer, [0, 0, 0, 0, 0, 0, 0, 0, kind, 0, 1, 0, 0, 0, 0, 0]);
            assert_eq!(call(&mut driver, &of_clock(0x1002, id, 1), 16), [0; 16]);
        }
        clock.advance(Duration::from_secs(5));
        assert_eq!(read(&mut driver, UTC), START + 5 * SECOND);
        assert_eq!(read(&mut driver, MONOTONIC), 5 * SECOND);
        assert_eq!(read(&mut driver, TAI), START + 42 * SECOND);
    }
}

#[test]
fn a_host_that_does_not_know_tai_has_no_such_clock() {
    let clock = clock();
    let mut driver = Driver::new(Box::new(Rtc::new(clock, || None)), Layout::SPLIT);
    assert_eq!(call(&mut driver, &request(0x1000, &[]), 16)[8], 2);
    assert_eq!(call(&mut driver, &of_clock(1, TAI, 0), 16), [3, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn what_cannot_be_done_is_refused_with_its_reason() {
    let mut driver = driver(u64::MAX);
    let refused = |status: u8| vec![status, 0, 0, 0, 0, 0, 0, 0];
    let read = of_clock(1, UTC, 0);
    for (request, room, answer) in [
        (request(0x7777, &[]), 16, refused(2)),
        (of_clock(2, UTC, 1), 24, refused(2)),
        (of_clock(1, 3, 0), 16, refused(3)),
        (of_clock(1, u16::MAX, 0), 16, refused(3)),
        (read[..15].to_vec(), 16, refused(4)),
        (read[..1].to_vec(), 16, refused(4)),
        (read.clone(), 15, refused(4)),
        (read.clone(), 3, vec![4, 0, 0]),
        (set_alarm(UTC, 0, 2), 8, refused(4)),
        (set_alarm(3, 0, 1), 8, refused(3)),
        (read.clone(), 100, call(&mut driver, &read, 16)),
    ] {
        assert_eq!(call(&mut driver, &request, room), answer, "{request:x?} {room}");
    }
    // Without room for a status nothing is written.
    assert_eq!(driver.call(0, &[&read], &[]).written, 0);
}

#[test]
fn alarms_are_not_there_unless_negotiated() {
    let mut driver = driver(!FEATURE_ALARM);
    assert_eq!(call(&mut driver, &of_clock(0x1001, UTC, 0), 16)[10], 0);
    for request in [of_clock(0x1003, UTC, 0), set_alarm(UTC, 0, 1), of_clock(0x1005, UTC, 1)] {
        assert_eq!(call(&mut driver, &request, 24)[0], 2);
    }
}

/// Runs the handler and returns what it waits for.
fn run(driver: &mut Driver) -> Progress {
    driver.tasks[0].handler.run(0)
}

#[test]
fn an_alarm_is_told_once_when_its_time_has_come() {
    let mut driver = driver(u64::MAX);
    driver.request(1, &[], &[16]).unwrap();
    let time = START + 3 * SECOND;
    assert_eq!(call(&mut driver, &set_alarm(UTC, time, 1), 8), [0; 8]);
    let told = [&time.to_le_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(call(&mut driver, &of_clock(0x1003, UTC, 0), 24)[8..], told);
    assert_eq!(run(&mut driver), Progress::Until(3 * SECOND));
    driver.clock.advance(Duration::from_nanos(3 * SECOND - 1));
    assert_eq!(run(&mut driver), Progress::Until(3 * SECOND));
    assert_eq!(driver.completion(1), None);
    driver.clock.advance(Duration::from_nanos(1));
    assert_eq!(run(&mut driver), Progress::Idle);
    let message = driver.completion(1).unwrap();
    assert_eq!(
        (message.written, message.data),
        (16, vec![0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    );
    driver.request(1, &[], &[16]).unwrap();
    driver.clock.advance(Duration::from_secs(3));
    run(&mut driver);
    assert_eq!(driver.completion(1), None);
    // Enabled again it comes again, at once.
    call(&mut driver, &of_clock(0x1005, UTC, 1), 8);
    run(&mut driver);
    assert!(driver.completion(1).is_some());
}

#[test]
fn an_alarm_waits_for_room_and_is_void_when_disabled() {
    let mut driver = driver(u64::MAX);
    call(&mut driver, &set_alarm(MONOTONIC, 1, 1), 8);
    driver.clock.advance(Duration::from_secs(1));
    run(&mut driver);
    assert!(!driver.tasks[0].handler.has_work(), "there is no room to tell it");
    driver.request(1, &[], &[16]).unwrap();
    assert!(driver.tasks[0].handler.has_work());
    run(&mut driver);
    assert_eq!(driver.completion(1).unwrap().data[8], MONOTONIC as u8);

    call(&mut driver, &set_alarm(MONOTONIC, 2 * SECOND, 1), 8);
    driver.clock.advance(Duration::from_secs(5));
    run(&mut driver);
    call(&mut driver, &of_clock(0x1005, MONOTONIC, 0), 8);
    driver.request(1, &[], &[16]).unwrap();
    run(&mut driver);
    assert_eq!(driver.completion(1), None);
    // A distant alarm is looked at now and then, since clocks may be stepped.
    call(&mut driver, &set_alarm(UTC, u64::MAX, 1), 8);
    assert_eq!(run(&mut driver), Progress::Until(driver.clock.monotonic_ns() + 10 * SECOND));
}

#[test]
fn a_message_without_room_breaks_the_queue_and_a_reset_forgets_alarms() {
    let mut driver = driver(u64::MAX);
    driver.request(1, &[], &[15]).unwrap();
    call(&mut driver, &set_alarm(UTC, 0, 1), 8);
    run(&mut driver);
    assert!(!driver.function.is_live(), "the driver is told that the device needs a reset");
    driver.initialize(Layout::SPLIT, u64::MAX);
    assert_eq!(call(&mut driver, &of_clock(0x1003, UTC, 0), 24)[8..], [0; 16]);
    driver.request(1, &[], &[16]).unwrap();
    run(&mut driver);
    assert_eq!(driver.completion(1), None);
}

#[test]
fn clocks_and_alarms_go_on_in_another_machine() {
    let (here, there) = (clock(), clock());
    here.advance(Duration::from_secs(100));
    there.advance(Duration::from_secs(1));
    let device = Rtc::new(here, || Some(37));
    lock(&device.clocks).alarm(UTC).unwrap().set(START + 200 * SECOND, true);
    let state = device.save().unwrap();
    let mut other = Rtc::new(there, || None);
    other.restore(&state).unwrap();
    let clocks = lock(&other.clocks);
    assert_eq!(clocks.now(clocks.kind(MONOTONIC).unwrap()), Some(100 * SECOND));
    assert_eq!(clocks.now(clocks.kind(TAI).unwrap()), None, "this host does not know it");
    drop(clocks);
    assert_eq!(lock(&other.clocks).look(), Some(11 * SECOND));
}

#[test]
fn the_host_says_what_its_tai_offset_is_or_nothing() {
    assert!(host_tai_offset().is_none_or(|offset| (30..60).contains(&offset)));
}
