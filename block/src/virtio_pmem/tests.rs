use super::*;
use crate::image::Image;
use crate::image::testing::HeldImage;
use virtio::testing::{Driver, Layout};

const REGION: Range = Range { start: 0x40_0000_0000, size: 64 << 20 };

impl Flush for HeldImage {
    fn stream(&self) -> Result<Box<dyn Stream>, EngineError> {
        Image::stream(self, 1)
    }
}

fn pmem() -> Box<dyn VirtioDevice> {
    Box::new(Pmem::new(REGION, None))
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
        let file = HeldImage::new(REGION.size);
        let held = Arc::clone(&file.held);
        let mut driver = Driver::new(Box::new(Pmem::new(REGION, Some(Arc::new(file)))), layout);
        ask(&mut driver);
        assert_eq!(held.waiting(), ["flush"]);
        ask(&mut driver);
        ask(&mut driver);
        assert_eq!(answers(&mut driver), [0_u32; 0], "nothing is stable yet");
        held.release(0);
        driver.wait();
        assert_eq!(answers(&mut driver), [DONE], "the others came after that flush began");
        assert_eq!(held.waiting(), ["flush"]);
        held.release(libc::ENOSPC);
        driver.wait();
        assert_eq!(answers(&mut driver), [FAILED, FAILED], "the guest learns of a failure");
        ask(&mut driver);
        held.release(0);
        driver.stop();
        assert_eq!(answers(&mut driver), [DONE], "a flush under way is completed before a pause");
        assert_eq!(held.waiting(), [""; 0]);
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
    assert!(Pmem::new(elsewhere, None).restore(&state).is_err());
}
