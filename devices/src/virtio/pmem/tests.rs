use super::*;
use std::sync::{Condvar, Mutex};
use virtio::testing::{Driver, Layout};

const REGION: Range = Range { start: 0x40_0000_0000, size: 64 << 20 };

/// Flushes when told to, and as told.
#[derive(Default)]
struct Disk {
    state: Mutex<(usize, Vec<bool>)>,
    changed: Condvar,
}

impl Disk {
    /// Lets the next flush end.
    fn allow(&self, success: bool) {
        self.state.lock().unwrap().1.push(success);
        self.changed.notify_all();
    }

    fn wait_for(&self, flushes: usize) {
        let _state = self.changed.wait_while(self.state.lock().unwrap(), |state| state.0 < flushes).unwrap();
    }
}

impl Flush for Disk {
    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.1.is_empty()).unwrap();
        if state.1.remove(0) { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

fn pmem() -> Box<dyn VirtioDevice> {
    Box::new(Pmem::new(REGION, None, || {}))
}

virtio::conformance!(conformance, pmem);

fn ask(driver: &mut Driver) {
    driver.request(0, &[&FLUSH.to_le_bytes()], &[4]).unwrap();
    driver.kick(0);
    driver.run();
}

fn answers(driver: &mut Driver) -> Vec<u32> {
    std::iter::from_fn(|| driver.completion(0))
        .map(|completion| u32::from_le_bytes(completion.data.try_into().unwrap()))
        .collect()
}

#[test]
fn requests_share_the_flush_that_begins_after_them() {
    for layout in Layout::all() {
        let disk = Arc::new(Disk::default());
        let device = Pmem::new(REGION, Some(disk.clone()), || {});
        let mut driver = Driver::new(Box::new(device), layout);
        ask(&mut driver);
        disk.wait_for(1);
        ask(&mut driver);
        ask(&mut driver);
        assert_eq!(answers(&mut driver), [0_u32; 0], "nothing is stable yet");
        disk.allow(true);
        driver.wait();
        assert_eq!(answers(&mut driver), [DONE], "the others came after that flush began");
        disk.wait_for(2);
        disk.allow(false);
        driver.wait();
        assert_eq!(answers(&mut driver), [FAILED, FAILED], "the guest learns of a failure");
        ask(&mut driver);
        disk.allow(true);
        driver.stop();
        assert_eq!(answers(&mut driver), [DONE], "a flush under way is completed before a pause");
        assert_eq!(disk.state.lock().unwrap().0, 3);
    }
}

#[test]
fn without_a_file_to_keep_a_flush_is_done_at_once() {
    let mut driver = Driver::new(pmem(), Layout::PACKED);
    let mut config = [0; 16];
    driver.read_config(0, &mut config);
    assert_eq!(config[..8], REGION.start.to_le_bytes());
    assert_eq!(config[8..], REGION.size.to_le_bytes());
    assert_eq!(driver.call(0, &[&FLUSH.to_le_bytes()], &[4]).data, DONE.to_le_bytes());
    assert_eq!(driver.call(0, &[&9_u32.to_le_bytes()], &[4]).data, FAILED.to_le_bytes());
    driver.request(0, &[&[0; 3]], &[4]).unwrap();
    driver.kick(0);
    driver.run();
    assert_ne!(driver.status() & virtio::pci_transport::status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn a_state_of_other_memory_is_refused() {
    let state = pmem().save().unwrap();
    let elsewhere = Range { start: REGION.start + (1 << 30), ..REGION };
    assert!(Pmem::new(elsewhere, None, || {}).restore(&state).is_err());
}
