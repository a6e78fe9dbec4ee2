//! What devices' tests share: running handlers together with the host events they wait for, and host pages that take
//! note of what is done to them.

use machine::bus::Range;
use machine::memory::HostPages;
use std::io;
use std::sync::{Mutex, MutexGuard};
use virtio::testing::Driver;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Whether an event source would wake the worker now.
pub(crate) fn ready(driver: &Driver) -> bool {
    let epoll = Epoll::new().unwrap();
    for fd in driver.tasks.iter().flat_map(|task| task.handler.event_sources()) {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).unwrap();
    }
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() > 0
}

/// Runs as a worker does: until nothing is to be done, events included.
pub(crate) fn settle(driver: &mut Driver) {
    driver.run();
    let mut patience = 10_000;
    while ready(driver) {
        driver.run();
        patience -= 1;
        assert!(patience > 0, "a handler does not take what wakes it");
    }
}

/// Host pages behind RAM from address 0, which only note what is asked of them.
pub(crate) struct RecordedPages {
    ram: u64,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    released: Vec<Range>,
    released_bytes: u64,
    populated: Vec<Range>,
    exhausted: bool,
}

impl RecordedPages {
    pub(crate) fn new(ram: u64) -> Self {
        Self { ram, log: Mutex::default() }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// What was released since this was last asked.
    pub(crate) fn take(&self) -> Vec<Range> {
        std::mem::take(&mut self.log().released)
    }

    /// How much was released, of all.
    pub(crate) fn released(&self) -> u64 {
        self.log().released_bytes
    }

    /// What was taken from the host, of all.
    pub(crate) fn populated(&self) -> Vec<Range> {
        self.log().populated.clone()
    }

    /// Whether the host has no pages left.
    pub(crate) fn exhaust(&self, exhausted: bool) {
        self.log().exhausted = exhausted;
    }
}

impl HostPages for RecordedPages {
    fn release(&self, range: Range) -> io::Result<u64> {
        let size = range.start.saturating_add(range.size).min(self.ram).saturating_sub(range.start);
        if size > 0 {
            let mut log = self.log();
            log.released.push(Range { start: range.start, size });
            log.released_bytes += size;
        }
        Ok(size)
    }

    fn populate(&self, range: Range) -> io::Result<()> {
        let mut log = self.log();
        if log.exhausted {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        log.populated.push(range);
        Ok(())
    }
}
