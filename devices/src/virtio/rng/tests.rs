use super::*;
use crate::virtio::testing::{ready, settle};
use std::collections::HashSet;
use virtio::testing::{Driver, Layout};

fn rng() -> Box<dyn VirtioDevice> {
    Box::new(Rng::open(Path::new("/dev/urandom")).unwrap())
}

virtio::conformance!(conformance, rng);

#[test]
fn fills_buffers_with_bytes_that_differ() {
    for layout in Layout::all() {
        let mut driver = Driver::new(rng(), layout);
        let mut seen = HashSet::new();
        for _ in 0..50 {
            let answer = driver.call(0, &[], &[8, 24]);
            assert_eq!(answer.written, 32);
            assert!(seen.insert(answer.data), "the same 32 bytes twice");
        }
    }
}

#[test]
fn a_run_and_a_buffer_are_bounded() {
    let mut driver = Driver::new(rng(), Layout::SPLIT);
    for _ in 0..BUDGET + 1 {
        driver.request(0, &[], &[0x10000]).unwrap();
    }
    assert_eq!(driver.tasks[0].handler.run(0), Progress::More);
    let mut done = 0;
    while let Some(answer) = driver.completion(0) {
        assert_eq!(answer.written as usize, PER_BUFFER);
        done += 1;
    }
    assert_eq!(done, BUDGET);
}

#[test]
fn an_empty_source_is_waited_for_without_blocking_and_its_end_is_survived() {
    let (reader, mut writer) = io::pipe().unwrap();
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let rng = Rng::open(Path::new(&path)).unwrap();
    drop(reader);
    let mut driver = Driver::new(Box::new(rng), Layout::SPLIT);
    driver.request(0, &[], &[16]).unwrap();
    settle(&mut driver);
    assert_eq!(driver.completion(0), None);
    assert!(!ready(&driver), "it sleeps until the source has something");
    io::Write::write_all(&mut writer, b"dice").unwrap();
    assert!(ready(&driver));
    settle(&mut driver);
    let answer = driver.completion(0).unwrap();
    assert_eq!((answer.written, &answer.data[..4]), (4, &b"dice"[..]));
    drop(writer);
    assert_eq!(driver.call(0, &[], &[16]).written, 16, "from the kernel");
}

#[test]
fn a_buffer_without_room_breaks_the_queue_and_a_reset_mends_it() {
    let mut driver = Driver::new(rng(), Layout::SPLIT);
    driver.request(0, &[b"12345678"], &[]).unwrap();
    driver.run();
    assert!(!driver.function.is_live(), "the driver is told that the device needs a reset");
    driver.initialize(Layout::SPLIT, u64::MAX);
    assert_eq!(driver.call(0, &[], &[8]).written, 8);
}
