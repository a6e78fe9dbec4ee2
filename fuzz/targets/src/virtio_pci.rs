//! `virtio_pci`: the PCI transport, in front of the plainest device.

use crate::input::Input;
use crate::program::{self, REGISTER_STEPS, Subject};
use virtio::testing::{Completion, Driver, Echo};

/// Registers and capabilities of the transport.
pub fn virtio_pci(data: &[u8]) {
    let input = &mut Input::new(data);
    let device = if input.flag() { Echo::with_single_handler() } else { Echo::new() };
    let driver = Driver::attach(Box::new(device));
    program::run(driver, &mut Plain, REGISTER_STEPS, None, input);
}

struct Plain;

impl Subject for Plain {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        let queue = input.below(2);
        let data = vec![input.u8(); 1 + usize::from(input.u8())];
        driver.request(queue, &[&data], &[1 + u32::from(input.u8())]);
        true
    }

    fn host(&mut self, driver: &mut Driver, _input: &mut Input<'_>) {
        driver.function.config_change().notify();
    }

    fn check(&mut self, _queue: u16, _completion: &Completion) {}

    fn answers(&self, _queue: u16) -> bool {
        true
    }

    fn calm(&mut self, _driver: &mut Driver) {}

    fn works(&mut self, driver: &mut Driver) {
        driver.write_config(0, &[1]);
        // The number is the handlers', which were made before it was set.
        let answer = driver.call(1, &[b"abc"], &[3]);
        assert_eq!(answer.data, b"abc");
    }
}
