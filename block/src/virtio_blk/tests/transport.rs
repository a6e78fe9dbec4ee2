//! The device behind its transport: what every virtio device must do, and several queues at once.

use super::*;
use virtio::testing::driver::{Completion, Driver, Layout};

/// A disk whose image lives as long as it is open.
fn disk(queues: u16) -> Box<dyn VirtioDevice> {
    let file = TempFile::new(1 << 20);
    let options = BlockOptions { queues, ..options() };
    Box::new(Block::new(image(&file, EngineKind::Auto), options).unwrap())
}

virtio::conformance!(conformance_with_one_queue, || disk(1));
virtio::conformance!(conformance_with_four_queues, || disk(4));

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&u64::from(kind).to_le_bytes()[..], &sector.to_le_bytes()].concat()
}

#[test]
fn queues_work_side_by_side() {
    for layout in Layout::all() {
        let mut driver = Driver::new(disk(4), layout);
        for queue in 0..4_u16 {
            let data = pattern(4096, queue.into());
            driver.request(queue, &[&header(OUT, u64::from(queue) * 8), &data], &[1]).unwrap();
            driver.kick(queue);
        }
        driver.run_to_the_end();
        for queue in 0..4 {
            assert_eq!(answer(&mut driver, queue).data, [OK]);
        }
        // Each reads what another has written.
        for queue in 0..4_u16 {
            driver.request(3 - queue, &[&header(IN, u64::from(queue) * 8)], &[4096, 1]).unwrap();
            driver.kick(3 - queue);
        }
        driver.run_to_the_end();
        for queue in 0..4_u16 {
            let answer = answer(&mut driver, 3 - queue);
            assert_eq!(answer.written, 4097);
            assert!(
                answer.data[..4096] == pattern(4096, queue.into()) && answer.data[4096] == OK,
                "{layout:?}"
            );
        }
    }
}

/// Each by what it is, which the queue does not know.
#[test]
fn a_disk_times_its_requests_itself() {
    use machine::metrics::{Figure, Reading};
    let mut driver = Driver::new(disk(1), Layout::SPLIT);
    driver.request(0, &[&header(IN, 0)], &[4096, 1]).unwrap();
    driver.kick(0);
    driver.run_to_the_end();
    assert_eq!(answer(&mut driver, 0).written, 4097);
    assert!(driver.function.queue_counters()[0].latency.is_none());
    let timed = |readings: Vec<Reading>| {
        let latencies = readings.into_iter().map(|reading| match reading.figure {
            Figure::Latency(latency) => latency.count,
            Figure::Total(_) | Figure::Level(_) => 0,
        });
        latencies.sum::<u64>()
    };
    assert_eq!(timed(driver.function.queue_counters()[0].readings()), 0);
    assert_eq!(timed(driver.function.device().queue_readings(0)), 1);
}

/// Waits for the next answer of a queue.
fn answer(driver: &mut Driver, queue: u16) -> Completion {
    loop {
        match driver.completion(queue) {
            Some(answer) => return answer,
            None => driver.wait(),
        }
    }
}
