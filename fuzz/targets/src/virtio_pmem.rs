//! `virtio_pmem`: the persistent memory device without a file to keep, so that nothing depends on a thread's time.

use crate::input::Input;
use crate::program::{self, QUEUE_STEPS, Subject};
use devices::virtio::pmem::Pmem;
use machine::bus::Range;
use virtio::testing::{Completion, Driver};

/// The queue of the device.
pub fn virtio_pmem(data: &[u8]) {
    let device = Pmem::new(Range { start: 1 << 40, size: 2 << 20 }, None, || {});
    let driver = Driver::attach(Box::new(device));
    program::run(driver, &mut Guest, QUEUE_STEPS, None, &mut Input::new(data));
}

struct Guest;

impl Subject for Guest {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        let kind = u32::from(input.below(3)).to_le_bytes();
        let length = input.choose(&[4_usize, 4, 4, 3, 0]);
        let answer = input.choose(&[4_u32, 4, 4, 8, 3, 0]);
        let head = kind.get(..length).unwrap_or_default();
        driver.request(0, &[head], &[answer]);
        length == 4 && answer >= 4
    }

    fn host(&mut self, _driver: &mut Driver, _input: &mut Input<'_>) {}

    fn check(&mut self, _queue: u16, completion: &Completion) {
        assert!(matches!(completion.data.first_chunk(), Some([0 | 1, 0, 0, 0])));
    }

    fn answers(&self, _queue: u16) -> bool {
        true
    }

    fn calm(&mut self, _driver: &mut Driver) {}

    fn works(&mut self, driver: &mut Driver) {
        assert_eq!(driver.call(0, &[&[0; 4]], &[4]).data, [0; 4]);
    }
}
