//! `virtio_watchdog`: the watchdog of virtio.

use crate::input::Input;
use crate::program::{self, QUEUE_STEPS, Subject};
use devices::virtio::watchdog::Watchdog;
use std::time::Duration;
use virtio::testing::{Completion, Driver};

/// The queue of the device, and time.
pub fn virtio_watchdog(data: &[u8]) {
    let driver = Driver::attach(Box::new(Watchdog::new(|| {})));
    program::run(driver, &mut Guest, QUEUE_STEPS, None, &mut Input::new(data));
}

struct Guest;

impl Subject for Guest {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        let room = input.choose(&[1_u32, 4, 4, 0]);
        let words: &[&[u8]] = if room == 0 { &[b"ping"] } else { &[] };
        driver.request(0, words, &[room][..usize::from(room > 0)]);
        room > 0
    }

    fn host(&mut self, driver: &mut Driver, input: &mut Input<'_>) {
        driver.clock.advance(Duration::from_millis(input.u16().into()));
    }

    fn check(&mut self, _queue: u16, completion: &Completion) {
        assert_eq!(completion.data.first(), Some(&1));
    }

    fn answers(&self, _queue: u16) -> bool {
        true
    }

    fn calm(&mut self, _driver: &mut Driver) {}

    fn works(&mut self, driver: &mut Driver) {
        assert_eq!(driver.call(0, &[], &[1]).data, [1]);
    }
}
