use super::*;
use crate::virtio::testing::Bench;
use std::collections::HashSet;
use virtio::testing::Buffer;

fn buffer(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

#[test]
fn fills_buffers_with_bytes_that_differ() {
    let mut rng = Rng::open(Path::new("/dev/urandom")).unwrap();
    let mut bench = Bench::start(&mut rng, &[0], 0);
    let mut seen = HashSet::new();
    for _ in 0..50 {
        bench.ring(0).add(&[buffer(0x8000, 8), buffer(0x9000, 24)]).unwrap();
        bench.run();
        let used = bench.ring(0).take_used().unwrap();
        assert_eq!(used.written, 32);
        assert!(seen.insert((bench.read(0x8000, 8), bench.read(0x9000, 24))), "the same 32 bytes twice");
    }
}

#[test]
fn a_run_and_a_buffer_are_bounded() {
    let mut rng = Rng::open(Path::new("/dev/urandom")).unwrap();
    let mut bench = Bench::start(&mut rng, &[0], 0);
    for _ in 0..BUDGET + 1 {
        bench.ring(0).add(&[buffer(0x10000, 0x10000)]).unwrap();
    }
    assert_eq!(bench.run_once(), Progress::More);
    let mut done = 0;
    while let Some(used) = bench.ring(0).take_used() {
        assert_eq!(used.written as usize, PER_BUFFER);
        done += 1;
    }
    assert_eq!(done, BUDGET);
}

#[test]
fn an_empty_source_is_waited_for_without_blocking_and_its_end_is_survived() {
    let (reader, mut writer) = io::pipe().unwrap();
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let mut rng = Rng::open(Path::new(&path)).unwrap();
    drop(reader);
    let mut bench = Bench::start(&mut rng, &[0], 0);
    bench.ring(0).add(&[buffer(0x8000, 16)]).unwrap();
    bench.run();
    assert_eq!(bench.ring(0).take_used(), None);
    assert!(!bench.ready(), "it sleeps until the source has something");
    io::Write::write_all(&mut writer, b"dice").unwrap();
    assert!(bench.ready());
    bench.run();
    assert_eq!(bench.ring(0).take_used().unwrap().written, 4);
    assert_eq!(bench.read(0x8000, 4), b"dice");
    drop(writer);
    drop(rng);
    bench.ring(0).add(&[buffer(0x8000, 16)]).unwrap();
    bench.run();
    assert_eq!(bench.ring(0).take_used().unwrap().written, 16, "from the kernel");
}

#[test]
fn a_buffer_without_room_breaks_the_queue_and_a_reset_mends_it() {
    let mut rng = Rng::open(Path::new("/dev/urandom")).unwrap();
    let mut bench = Bench::start(&mut rng, &[0], 0);
    bench.ring(0).add(&[Buffer { address: 0x8000, len: 8, writable: false }]).unwrap();
    bench.run();
    assert!(bench.is_broken());
    bench.stop();
    rng.reset();
    let mut bench = Bench::start(&mut rng, &[0], 0);
    bench.ring(0).add(&[buffer(0x8000, 8)]).unwrap();
    bench.run();
    assert_eq!(bench.ring(0).take_used().unwrap().written, 8);
}
