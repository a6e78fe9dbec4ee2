//! `virtio_balloon`: the balloon, with everything it offers.

use crate::host_pages::CheckedPages;
use crate::input::Input;
use crate::program::{self, QUEUE_STEPS, Subject};
use devices::virtio::balloon::{Balloon, BalloonControl, BalloonOptions};
use std::sync::Arc;
use std::time::Duration;
use virtio::testing::{Buffer, Completion, Driver};

const RAM: u64 = 64 << 20;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
const HINTS: u16 = 3;

/// All queues of the device.
pub fn virtio_balloon(data: &[u8]) {
    let input = &mut Input::new(data);
    let choice = input.u8();
    let pages = Arc::new(CheckedPages::new(0, None));
    let options = BalloonOptions {
        size: u64::from(choice) << 16,
        ram: RAM,
        deflate_on_oom: choice & 1 != 0,
        free_page_reporting: choice & 2 != 0,
        // A driver that keeps its queue to itself is asked as long as the test runs, so there is none.
        statistics_interval: Duration::ZERO,
    };
    let reporting = options.free_page_reporting;
    let balloon = Balloon::new(options, pages.clone()).expect("the host has descriptors");
    let mut host = Host { control: balloon.control(), pages, reporting };
    program::run(Driver::attach(Box::new(balloon)), &mut host, QUEUE_STEPS, None, input);
}

struct Host {
    control: BalloonControl,
    pages: Arc<CheckedPages>,
    reporting: bool,
}

impl Subject for Host {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        let queue = input.below(if self.reporting { 5 } else { 4 });
        match queue {
            INFLATE | DEFLATE => {
                let (first, count) = (u32::from(input.u16()), u32::from(input.u8()));
                let step = u32::from(input.below(3));
                let list: Vec<u8> =
                    (0..count).flat_map(|page| first.wrapping_add(page * step).to_le_bytes()).collect();
                if !list.is_empty() {
                    driver.request(queue, &[&list], &[]);
                }
            }
            STATISTICS => {
                let entries = usize::from(input.u8() & 31) + 1;
                driver.request(
                    queue,
                    &[input.bytes(entries * 10)].map(|b| if b.is_empty() { &[0] } else { b }),
                    &[],
                );
            }
            HINTS if input.flag() => {
                let command = if input.flag() { u32::from(input.below(6)) } else { self.hint_command() };
                driver.request(queue, &[&command.to_le_bytes()], &[]);
            }
            _ => {
                let len = (u32::from(input.u8()) + 1) << 12;
                let address = driver.allocate(len.into());
                driver.submit(queue, &[Buffer { address, len, writable: true }]);
            }
        }
        true
    }

    fn host(&mut self, _driver: &mut Driver, input: &mut Input<'_>) {
        match input.below(6) {
            0 => self.control.resize(u64::from(input.u32()) << 8),
            1 => self.control.request_statistics(),
            2 => self.control.begin_hints(Arc::new(|range| {
                assert!(range.size > 0 && range.last() < RAM, "{range:?} is RAM");
            })),
            3 => self.control.end_hints(),
            4 => self.pages.refuse(input.flag()),
            _ => {
                assert!(self.control.size() <= RAM && self.control.actual() <= RAM);
                std::hint::black_box(self.control.statistics().iter().count());
            }
        }
    }

    fn check(&mut self, _queue: u16, completion: &Completion) {
        assert_eq!(completion.written, 0, "a balloon writes nothing");
    }

    fn answers(&self, queue: u16) -> bool {
        // A buffer for statistics is kept until they are wanted; the other queues belong to features that a driver may leave out.
        queue < STATISTICS
    }

    fn calm(&mut self, _driver: &mut Driver) {
        self.pages.refuse(false);
        self.pages.take();
    }

    fn works(&mut self, driver: &mut Driver) {
        self.pages.take();
        driver.call(INFLATE, &[&[1, 0, 0, 0, 2, 0, 0, 0]], &[]);
        let released = self.pages.take();
        assert!(matches!(released[..], [range] if range.start == 4096 && range.size == 8192), "{released:?}");
        driver.request(STATISTICS, &[&[0; 10]], &[]);
        driver.run();
        assert_eq!(self.control.statistics().updates, 1);
    }
}

impl Host {
    fn hint_command(&self) -> u32 {
        self.control.inspect()["hint_command"].as_u64().unwrap_or(0) as u32
    }
}
