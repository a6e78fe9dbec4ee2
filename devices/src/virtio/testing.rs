//! Runs a device's handlers together with the host events they wait for.

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
