//! `virtio_pmem`: the persistent memory device, with a file to keep and without.

use crate::disk::{Behaviour, MemoryDisk};
use crate::input::Input;
use crate::program::{self, QUEUE_STEPS, Subject};
use block::engine::EngineError;
use block::image::{Image, Stream};
use block::virtio_pmem::{Flush, Pmem};
use machine::bus::Range;
use std::sync::Arc;
use virtio::testing::{Completion, Driver};

impl Flush for MemoryDisk {
    fn stream(&self) -> Result<Box<dyn Stream>, EngineError> {
        Image::stream(self, 1)
    }
}

/// The queue of the device.
pub fn virtio_pmem(data: &[u8]) {
    let input = &mut Input::new(data);
    let file = MemoryDisk::new(0, false);
    let flush: Option<Arc<dyn Flush>> = if input.flag() { Some(Arc::new(file.clone())) } else { None };
    let driver = Driver::attach(Box::new(Pmem::new(Range { start: 1 << 40, size: 2 << 20 }, flush)));
    program::run(driver, &mut Guest { file }, QUEUE_STEPS, None, input);
}

struct Guest {
    file: MemoryDisk,
}

impl Subject for Guest {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        let kind = u32::from(input.below(3)).to_le_bytes();
        let length = input.choose(&[4_usize, 4, 4, 3, 0]);
        let answer = input.choose(&[4_u32, 4, 4, 8, 3, 0]);
        let head = kind.get(..length).unwrap_or_default();
        driver.request(0, &[head], &[answer]);
        length == 4 && answer >= 4
    }

    fn host(&mut self, _driver: &mut Driver, input: &mut Input<'_>) {
        if input.flag() {
            self.file.behave(|behaviour| behaviour.delay = input.u8().into());
        } else {
            self.file.behave(|behaviour| behaviour.fail_next = Some(5));
        }
    }

    fn check(&mut self, _queue: u16, completion: &Completion) {
        assert!(matches!(completion.data.first_chunk(), Some([0 | 1, 0, 0, 0])));
    }

    fn answers(&self, _queue: u16) -> bool {
        true
    }

    fn calm(&mut self, _driver: &mut Driver) {
        self.file.behave(|behaviour| *behaviour = Behaviour::default());
    }

    fn works(&mut self, driver: &mut Driver) {
        assert_eq!(driver.call(0, &[&[0; 4]], &[4]).data, [0; 4]);
    }
}
