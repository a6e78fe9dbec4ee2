use super::*;
use machine::clock::ManualClock;
use machine::interrupt::recording::Pins;
use std::time::Duration;

/// 2024-02-28T23:59:58Z, a Wednesday before a leap day.
const START: u64 = 1_709_164_798;

const GSI: u32 = 8;

fn rtc() -> (Rtc, Arc<ManualClock>) {
    let (rtc, clock, _) = wired();
    (rtc, clock)
}

fn wired() -> (Rtc, Arc<ManualClock>, Arc<Pins>) {
    let clock = Arc::new(ManualClock::starting_at(Duration::from_secs(START)));
    let pins = Arc::new(Pins::default());
    (Rtc::new(clock.clone(), InterruptLine::new(pins.clone(), GSI)), clock, pins)
}

/// Lets time pass as the machine does; how often it looked.
fn wait(rtc: &mut Rtc, clock: &ManualClock, time: Duration) -> u32 {
    let end = clock.monotonic_ns() + time.as_nanos() as u64;
    let mut looks = 0;
    while let Some(deadline) = rtc.deadline().filter(|deadline| *deadline <= end) {
        clock.advance(Duration::from_nanos(deadline.saturating_sub(clock.monotonic_ns())));
        rtc.look();
        looks += 1;
        assert!(
            rtc.deadline().is_none_or(|next| next > clock.monotonic_ns()),
            "a look moves the deadline on"
        );
    }
    clock.advance(Duration::from_nanos(end - clock.monotonic_ns()));
    looks
}

fn read(rtc: &mut Rtc, index: u8) -> u8 {
    rtc.write(0, &[index]);
    let mut data = [0xff];
    rtc.read(1, &mut data);
    data[0]
}

fn write(rtc: &mut Rtc, index: u8, value: u8) {
    rtc.write(0, &[index]);
    rtc.write(1, &[value]);
}

/// Century, year, month, day, hours, minutes, seconds.
fn time(rtc: &mut Rtc) -> [u8; 7] {
    [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS].map(|index| read(rtc, index))
}

crate::conformance!(
    conformance,
    Rtc::PORTS.size,
    rtc().0,
    keeps ["offset_s", "seen_s", "memory"]
);

#[test]
fn shows_the_time_in_bcd_and_binary_over_a_leap_day() {
    let (mut rtc, clock) = rtc();
    assert_eq!(time(&mut rtc), [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58]);
    assert_eq!(read(&mut rtc, DAY_OF_WEEK), 4);
    clock.advance(Duration::from_secs(2));
    assert_eq!(time(&mut rtc), [0x20, 0x24, 0x02, 0x29, 0, 0, 0]);
    write(&mut rtc, REGISTER_B, B_24_HOURS | B_BINARY);
    assert_eq!(time(&mut rtc), [20, 24, 2, 29, 0, 0, 0]);
}

#[test]
fn twelve_hour_form_has_a_twelve_and_no_zero() {
    let (mut rtc, _clock) = rtc();
    for (hour, shown) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
        write(&mut rtc, REGISTER_B, B_24_HOURS | B_BINARY);
        write(&mut rtc, HOURS, hour);
        write(&mut rtc, REGISTER_B, 0);
        assert_eq!(read(&mut rtc, HOURS), shown, "hour {hour}");
        write(&mut rtc, HOURS, shown);
        write(&mut rtc, REGISTER_B, B_24_HOURS | B_BINARY);
        assert_eq!(read(&mut rtc, HOURS), hour);
    }
}

#[test]
fn setting_the_clock_takes_effect_when_updates_resume_and_survives_a_reset() {
    let (mut rtc, clock) = rtc();
    write(&mut rtc, REGISTER_B, B_24_HOURS | B_SET);
    clock.advance(Duration::from_secs(100));
    assert_eq!(read(&mut rtc, SECONDS), 0x58, "updates are stopped");
    let new = [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59];
    // Seconds first: fields are taken together, in whatever order they come.
    for (index, value) in
        [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS].into_iter().zip(new).rev()
    {
        write(&mut rtc, index, value);
    }
    write(&mut rtc, REGISTER_B, B_24_HOURS);
    assert_eq!(time(&mut rtc), new);
    clock.advance(Duration::from_secs(1));
    rtc.reset();
    assert_eq!(time(&mut rtc), [0x20, 0x00, 0x01, 0x01, 0, 0, 0]);
    assert_eq!(read(&mut rtc, DAY_OF_WEEK), 7);
}

#[test]
fn an_update_is_announced_just_before_it_happens() {
    let (mut rtc, clock) = rtc();
    assert_eq!(read(&mut rtc, REGISTER_A) & A_UPDATE_IN_PROGRESS, 0);
    clock.advance(Duration::from_nanos(1_000_000_000 - 100_000));
    assert_ne!(read(&mut rtc, REGISTER_A) & A_UPDATE_IN_PROGRESS, 0);
    clock.advance(Duration::from_nanos(100_000));
    assert_eq!(read(&mut rtc, REGISTER_A) & A_UPDATE_IN_PROGRESS, 0);
}

#[test]
fn flags_tell_once_what_happened() {
    let (mut rtc, clock) = rtc();
    write(&mut rtc, HOURS_ALARM, 0x00);
    write(&mut rtc, MINUTES_ALARM, 0x00);
    write(&mut rtc, SECONDS_ALARM, 0x01);
    assert_eq!(read(&mut rtc, REGISTER_C), 0);
    clock.advance(Duration::from_micros(980));
    assert_eq!(read(&mut rtc, REGISTER_C), C_PERIODIC, "1024 Hz");
    clock.advance(Duration::from_secs(2));
    assert_eq!(read(&mut rtc, REGISTER_C) & (C_ALARM | C_UPDATE_ENDED), C_UPDATE_ENDED);
    clock.advance(Duration::from_secs(1));
    assert_eq!(read(&mut rtc, REGISTER_C) & (C_ALARM | C_UPDATE_ENDED), C_ALARM | C_UPDATE_ENDED);
    assert_eq!(read(&mut rtc, REGISTER_C), 0);
}

#[test]
fn an_alarm_is_the_first_matching_second_as_counted_one_by_one() {
    let (mut rtc, _clock) = rtc();
    let start = i64::try_from(START).unwrap();
    rtc.b |= B_BINARY;
    for alarm in
        [[0xff, 0xff, 0xff], [30, 0xff, 0xff], [0xff, 10, 0xff], [5, 4, 3], [0xff, 0xc0, 23], [59, 59, 23]]
    {
        rtc.alarm = alarm;
        let field = |at: usize, value: i64| alarm[at] >= ANY || i64::from(alarm[at]) == value;
        let matches =
            |time: i64| field(0, time % 60) && field(1, time / 60 % 60) && field(2, time / 3600 % 24);
        let expected = (start + 1..=start + 86_400).find(|&time| matches(time));
        assert_eq!(rtc.next_alarm(start), expected, "{alarm:?}");
    }
    rtc.alarm = [61, 0, 0];
    assert_eq!(rtc.next_alarm(start), None, "a time that never comes");
}

#[test]
fn an_alarm_interrupts_when_it_is_due_until_it_is_acknowledged() {
    let (mut rtc, clock, pins) = wired();
    // As Linux does: the alarm off, its time, the alarm on.
    for (index, value) in [(HOURS_ALARM, 0x01), (MINUTES_ALARM, 0x30), (SECONDS_ALARM, 0x00)] {
        write(&mut rtc, index, value);
    }
    rtc.write(0, &[REGISTER_B]);
    assert_eq!(rtc.write(1, &[B_24_HOURS | C_ALARM]), Some(Effect::Deadline));
    assert!(wait(&mut rtc, &clock, Duration::from_secs(5401)) <= 92, "it sleeps a minute at a time");
    assert!(!pins.level(GSI), "a second before");
    wait(&mut rtc, &clock, Duration::from_secs(1));
    assert_eq!((pins.level(GSI), pins.edges(GSI)), (true, 1));
    assert_eq!(read(&mut rtc, REGISTER_C) & (C_INTERRUPT | C_ALARM), C_INTERRUPT | C_ALARM);
    assert!(!pins.level(GSI));
    assert_eq!(read(&mut rtc, REGISTER_C) & (C_INTERRUPT | C_ALARM), 0);
    wait(&mut rtc, &clock, Duration::from_secs(86_400));
    assert_eq!(pins.edges(GSI), 2, "again the next day");
}

#[test]
fn an_alarm_that_is_set_does_not_ring_for_what_is_past() {
    let (mut rtc, clock, pins) = wired();
    write(&mut rtc, REGISTER_B, B_24_HOURS | C_ALARM);
    wait(&mut rtc, &clock, Duration::from_secs(100));
    read(&mut rtc, REGISTER_C);
    let edges = pins.edges(GSI);
    // A time that passed since the last look at the flags.
    clock.advance(Duration::from_secs(100));
    for (index, value) in [(HOURS_ALARM, 0x00), (MINUTES_ALARM, 0x02), (SECONDS_ALARM, 0x00)] {
        write(&mut rtc, index, value);
    }
    assert_eq!((pins.edges(GSI), read(&mut rtc, REGISTER_C) & C_ALARM), (edges, 0));
}

#[test]
fn updates_and_periods_interrupt_each_time_the_guest_has_answered() {
    let (mut rtc, clock, pins) = wired();
    write(&mut rtc, REGISTER_B, B_24_HOURS | C_UPDATE_ENDED);
    for _ in 0..10 {
        wait(&mut rtc, &clock, Duration::from_secs(1));
        assert_eq!(read(&mut rtc, REGISTER_C) & (C_INTERRUPT | C_UPDATE_ENDED), C_INTERRUPT | C_UPDATE_ENDED);
    }
    assert_eq!(pins.edges(GSI), 10);
    write(&mut rtc, REGISTER_B, B_24_HOURS | C_PERIODIC);
    let period = Duration::from_nanos(rtc.period_ns().unwrap());
    for _ in 0..100 {
        wait(&mut rtc, &clock, period);
        read(&mut rtc, REGISTER_C);
    }
    assert_eq!(pins.edges(GSI), 110);
    // 8192 Hz, and nobody answers.
    write(&mut rtc, REGISTER_A, 0x23);
    assert!(wait(&mut rtc, &clock, Duration::from_secs(1)) < 100, "it is looked at ever less often");
    assert_eq!(pins.edges(GSI), 111);
    rtc.reset();
    assert_eq!((pins.level(GSI), rtc.deadline()), (false, None));
}

#[test]
fn a_pending_interrupt_is_saved() {
    let (mut rtc, clock, _) = wired();
    write(&mut rtc, REGISTER_B, B_24_HOURS | C_UPDATE_ENDED);
    wait(&mut rtc, &clock, Duration::from_secs(1));
    let (mut other, _, pins) = wired();
    other.restore(&rtc.save().unwrap()).unwrap();
    assert!(pins.level(GSI));
    assert_eq!(read(&mut other, REGISTER_C) & C_UPDATE_ENDED, C_UPDATE_ENDED);
    assert!(!pins.level(GSI));
}

#[test]
fn an_alarm_rings_that_was_due_while_the_machine_was_not_there() {
    let (mut rtc, _, _) = wired();
    write(&mut rtc, SECONDS_ALARM, 0x59);
    write(&mut rtc, REGISTER_B, B_24_HOURS | C_ALARM);
    for field in [HOURS_ALARM, MINUTES_ALARM] {
        write(&mut rtc, field, ANY);
    }
    let state = rtc.save().unwrap();
    let (mut other, clock, pins) = wired();
    clock.advance(Duration::from_secs(1000));
    other.restore(&state).unwrap();
    assert_eq!(other.deadline(), Some(clock.monotonic_ns()), "at once");
    other.look();
    assert!(pins.level(GSI));
}

#[test]
fn memory_is_kept() {
    let (mut rtc, _clock) = rtc();
    write(&mut rtc, 0x10, 0xa5);
    write(&mut rtc, 0x7f, 0x5a);
    rtc.reset();
    assert_eq!(
        (read(&mut rtc, 0x10), read(&mut rtc, 0xff)),
        (0xa5, 0x5a),
        "bit 7 of the index is no address"
    );
}
