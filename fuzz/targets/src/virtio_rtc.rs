//! `virtio_rtc`: the clock device, its requests and its alarms.

use crate::input::Input;
use crate::program::{self, QUEUE_STEPS, Subject};
use devices::virtio::rtc::Rtc;
use machine::clock::ManualClock;
use std::sync::Arc;
use std::time::Duration;
use virtio::testing::{Completion, Driver};

const START: Duration = Duration::from_secs(1_700_000_000);
const REQUESTS: u16 = 0;
const ALARMS: u16 = 1;
const MONOTONIC: u16 = 1;
const READ: u16 = 1;
const SET_ALARM: u16 = 0x1004;
const NOTIFY_ALARM: u16 = 0x2000;

/// Both queues of the device.
pub fn virtio_rtc(data: &[u8]) {
    let input = &mut Input::new(data);
    let clock = Arc::new(ManualClock::starting_at(START));
    let offset: fn() -> Option<u64> = if input.flag() { || Some(37) } else { || None };
    let driver = Driver::attach_with(clock.clone(), Box::new(Rtc::new(clock, offset)));
    program::run(driver, &mut Guest, QUEUE_STEPS, None, input);
}

struct Guest;

impl Subject for Guest {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        if input.below(4) == 0 {
            let room = input.choose(&[16_u32, 16, 20, 15, 1]);
            driver.request(ALARMS, &[], &[room]);
            return room >= 16;
        }
        let kinds = [READ, 2, 0x1000, 0x1001, 0x1002, 0x1003, SET_ALARM, SET_ALARM, 0x1005, 0x7777];
        let kind = input.choose(&kinds);
        let clock = input.below(5);
        let mut request = [&kind.to_le_bytes()[..], &[0; 6]].concat();
        if kind == SET_ALARM {
            // Past, or so near that it comes soon: the program's end waits for it.
            let base = if clock == MONOTONIC { 0 } else { START.as_nanos() as u64 };
            let time = base + (u64::from(input.u16()) << input.below(20));
            request.extend(if input.flag() { time } else { input.u32().into() }.to_le_bytes());
        }
        request.extend(clock.to_le_bytes());
        request.extend([input.below(3) as u8, 0, 0, 0, 0, 0]);
        request.truncate(if input.below(8) == 0 { input.below(25).into() } else { 24 });
        if request.is_empty() {
            request.push(0);
        }
        let room = input.choose(&[24_u32, 24, 24, 16, 8, 3]);
        driver.request(REQUESTS, &[&request], &[room]);
        true
    }

    fn host(&mut self, driver: &mut Driver, input: &mut Input<'_>) {
        driver.clock.advance(Duration::from_millis(input.u16().into()));
    }

    fn check(&mut self, queue: u16, completion: &Completion) {
        if queue == ALARMS {
            assert_eq!(completion.data.first_chunk(), Some(&NOTIFY_ALARM.to_le_bytes()));
        } else {
            assert!(matches!(completion.data.first(), Some(0 | 2..=5)), "a status of the specification");
        }
    }

    fn answers(&self, queue: u16) -> bool {
        queue == REQUESTS
    }

    fn calm(&mut self, _driver: &mut Driver) {}

    fn works(&mut self, driver: &mut Driver) {
        let read = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let answer = driver.call(REQUESTS, &[&read], &[16]);
        assert_eq!((answer.written, answer.data[0]), (16, 0));
    }
}
