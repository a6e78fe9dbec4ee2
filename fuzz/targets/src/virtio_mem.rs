//! `virtio_mem`: the memory device, against a set of the blocks that are plugged.

use crate::host_pages::CheckedPages;
use crate::input::Input;
use crate::program::{self, QUEUE_STEPS, Subject};
use devices::virtio::mem::{MIN_BLOCK, Mem, MemControl, MemOptions};
use machine::bus::Range;
use std::sync::Arc;
use virtio::testing::{Completion, Driver};

const REGION: Range = Range { start: 4 << 30, size: 256 * MIN_BLOCK };

/// The request queue and the configuration space.
pub fn virtio_mem(data: &[u8]) {
    let input = &mut Input::new(data);
    let choice = input.u8();
    let pages = Arc::new(CheckedPages::new(MIN_BLOCK, Some(REGION)));
    let options = MemOptions {
        region: REGION,
        block_size: MIN_BLOCK << (choice & 3),
        requested: 0,
        node: choice.into(),
        populate: choice & 4 != 0,
    };
    let mem = Mem::new(options, pages.clone()).expect("the sizes fit each other");
    let mut host = Host { control: mem.control(), pages };
    host.control.resize(u64::from(choice >> 3) * (MIN_BLOCK << 3)).expect("it is within the region");
    program::run(Driver::attach(Box::new(mem)), &mut host, QUEUE_STEPS, None, input);
}

struct Host {
    control: MemControl,
    pages: Arc<CheckedPages>,
}

fn request(kind: u16, address: u64, count: u16) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}

impl Subject for Host {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        let kind = input.below(5);
        let address = match input.below(8) {
            0 => input.u64(),
            1 => REGION.start + u64::from(input.u32()),
            _ => REGION.start + u64::from(input.u8()) * self.control.block_size(),
        };
        let count = if input.below(8) == 0 { input.u16() } else { input.u8().into() };
        let room = if input.below(16) == 0 { u32::from(input.u8() & 31) } else { 10 };
        if room > 0 {
            driver.request(0, &[&request(kind, address, count)], &[room]);
        }
        room >= 10
    }

    fn host(&mut self, _driver: &mut Driver, input: &mut Input<'_>) {
        match input.below(4) {
            0 => self.pages.refuse(input.flag()),
            1 => {
                let size = u64::from(input.u16()) * (MIN_BLOCK / 2);
                let fits = size <= REGION.size && size.is_multiple_of(self.control.block_size());
                assert_eq!(self.control.resize(size).is_ok(), fits);
            }
            _ => {
                assert!(self.control.plugged() <= REGION.size);
                assert_eq!(self.control.plugged() % self.control.block_size(), 0);
            }
        }
    }

    fn check(&mut self, _queue: u16, completion: &Completion) {
        assert_eq!(completion.written, 10);
        assert!(completion.data[0] < 4 && completion.data[8] < 3, "{completion:?} is an answer");
    }

    fn answers(&self, _queue: u16) -> bool {
        true
    }

    fn calm(&mut self, _driver: &mut Driver) {
        self.pages.refuse(false);
    }

    fn works(&mut self, driver: &mut Driver) {
        let block = self.control.block_size();
        self.control.resize(2 * block).expect("the region has more blocks");
        let mut call =
            |kind, address, count| driver.call(0, &[&request(kind, address, count)], &[10]).data[0];
        assert_eq!(call(2, 0, 0), 0, "all is unplugged");
        assert_eq!(call(0, REGION.start + block, 2), 0);
        assert_eq!(self.control.plugged(), 2 * block);
        self.pages.take();
        assert_eq!(call(1, REGION.start + block, 1), 0);
        let released = self.pages.take();
        assert_eq!(released, [Range { start: REGION.start + block, size: block }]);
    }
}
