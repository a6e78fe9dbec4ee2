use super::*;
use crate::virtio::testing::{RecordedPages, ready, settle};
use machine::bus::Range;
use machine::clock::Clock;
use std::sync::Mutex;
use virtio::testing::{Buffer, Completion, Driver, Layout};

const RAM: u64 = 64 << 20;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
const HINTS: u16 = 3;
const REPORTS: u16 = 4;

fn options() -> BalloonOptions {
    BalloonOptions {
        size: 16 << 20,
        ram: RAM,
        deflate_on_oom: true,
        free_page_reporting: true,
        statistics_interval: Duration::ZERO,
    }
}

fn balloon() -> Box<dyn VirtioDevice> {
    Box::new(Balloon::new(options(), Arc::new(RecordedPages::new(RAM))).unwrap())
}

virtio::conformance!(conformance, balloon);

/// A driven balloon, its control, and what it released.
fn rig(options: BalloonOptions, layout: Layout) -> (Driver, BalloonControl, Arc<RecordedPages>) {
    let pages = Arc::new(RecordedPages::new(RAM));
    let balloon = Balloon::new(options, pages.clone()).unwrap();
    let control = balloon.control();
    (Driver::new(Box::new(balloon), layout), control, pages)
}

fn numbers(pages: impl IntoIterator<Item = u32>) -> Vec<u8> {
    pages.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn config(driver: &mut Driver) -> [u32; 4] {
    let mut bytes = [0; 16];
    driver.read_config(0, &mut bytes);
    std::array::from_fn(|n| u32::from_le_bytes(bytes[4 * n..4 * n + 4].try_into().unwrap()))
}

/// One request of a chunk of free pages, as Linux makes it.
fn free_pages(driver: &mut Driver, queue: u16, ranges: &[(u64, u32)]) -> Completion {
    let buffers: Vec<_> =
        ranges.iter().map(|&(address, len)| Buffer { address, len, writable: true }).collect();
    driver.submit(queue, &buffers).unwrap();
    driver.kick(queue);
    driver.run();
    driver.completion(queue).expect("the device answers")
}

#[test]
fn inflated_pages_are_released_in_runs() {
    for layout in Layout::all() {
        let (mut driver, _, pages) = rig(options(), layout);
        let list = numbers((16..32).chain((40..48).rev()).chain([7]));
        driver.call(INFLATE, &[&list], &[]);
        let released = pages.take();
        let range = |first: u64, count: u64| Range { start: first << 12, size: count << 12 };
        assert_eq!(released, [range(16, 16), range(40, 8), range(7, 1)]);
        driver.call(DEFLATE, &[&list], &[]);
        assert_eq!(pages.take(), [], "the guest takes pages by touching them");
        let counters = driver.function.device().inspect();
        assert_eq!(counters["inflated_bytes"], 25 * 4096);
        assert_eq!(counters["deflated_bytes"], 25 * 4096);
        assert_eq!(counters["released_bytes"], 25 * 4096);
    }
}

#[test]
fn pages_that_are_not_ram_are_left_alone_and_counted() {
    let (mut driver, _, pages) = rig(options(), Layout::SPLIT);
    let beyond = (RAM >> 12) as u32;
    driver.call(INFLATE, &[&numbers([beyond, u32::MAX, beyond - 1])], &[]);
    assert_eq!(pages.released(), 4096);
    assert_eq!(driver.function.device().inspect()["refused_pages"], 2);
}

#[test]
fn a_long_list_is_done_in_bounded_steps_and_survives_a_pause() {
    let (mut driver, _, pages) = rig(options(), Layout::SPLIT);
    let list = numbers(0..16 * 256 + 300);
    driver.request(INFLATE, &[&list], &[]).unwrap();
    assert_eq!(driver.tasks[0].handler.run(0), virtio::device::Progress::More);
    assert_eq!(driver.completion(INFLATE), None);
    assert_eq!(pages.released(), 16 * 256 * 4096);
    assert!(driver.stop());
    driver.start();
    driver.run();
    assert!(driver.completion(INFLATE).is_some());
    assert_eq!(pages.released(), (16 * 256 + 16 * 256 + 300) * 4096, "the list was begun anew");
}

#[test]
fn a_resize_reaches_the_driver_and_its_answer_the_host() {
    let (mut driver, control, _) = rig(options(), Layout::SPLIT);
    assert_eq!(config(&mut driver)[0], 4096);
    let before = driver.config_interrupts();
    control.resize(8 << 20);
    assert_eq!(driver.config_interrupts(), before + 1);
    assert_eq!((config(&mut driver)[0], control.size()), (2048, 8 << 20));
    driver.write_config(4, &2000_u32.to_le_bytes());
    assert_eq!((control.actual(), config(&mut driver)[1]), (2000 * 4096, 2000));
    control.resize(u64::MAX);
    assert_eq!(control.size(), RAM, "all of the memory at most");
    driver.reset();
    assert_eq!((control.size(), control.actual()), (RAM, 0), "the host's wish outlives the driver");
}

#[test]
fn statistics_come_when_asked_for() {
    for layout in Layout::all() {
        let (mut driver, control, _) = rig(options(), layout);
        let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        let first = [entry(4, 1000), entry(5, 2000), entry(99, 1)].concat();
        driver.request(STATISTICS, &[&first], &[]).unwrap();
        driver.kick(STATISTICS);
        settle(&mut driver);
        assert_eq!(driver.completion(STATISTICS), None, "the buffer is kept until new ones are wanted");
        let known = control.statistics();
        assert_eq!((known.updates, known.get("free_memory"), known.get("oom_kill")), (1, Some(1000), None));
        control.request_statistics();
        assert!(ready(&driver));
        settle(&mut driver);
        assert!(driver.completion(STATISTICS).is_some(), "the driver is asked");
        driver.request(STATISTICS, &[&entry(4, 900)], &[]).unwrap();
        driver.kick(STATISTICS);
        settle(&mut driver);
        let known = control.statistics();
        assert_eq!(
            (known.updates, known.get("free_memory"), known.get("total_memory")),
            (2, Some(900), None)
        );
    }
}

#[test]
fn statistics_come_by_themselves_at_an_interval() {
    let options = BalloonOptions { statistics_interval: Duration::from_secs(5), ..options() };
    let (mut driver, control, _) = rig(options, Layout::SPLIT);
    for round in 1..4 {
        driver.request(STATISTICS, &[&[0; 10]], &[]).unwrap();
        driver.run();
        assert_eq!(control.statistics().updates, round);
        if round > 1 {
            assert_eq!(driver.completion(STATISTICS), None, "not before its time");
            driver.clock.advance(Duration::from_secs(5));
            driver.run();
        }
        assert!(driver.completion(STATISTICS).is_some());
    }
    assert_eq!(driver.run(), virtio::worker::Rest::Until(driver.clock.monotonic_ns() + 5_000_000_000));
    let latency = driver.latency(STATISTICS);
    assert_eq!(
        (latency.count, latency.max_ns),
        (3, 0),
        "the buffer waits for the next look, not for the device"
    );
}

#[test]
fn a_kept_statistics_buffer_survives_a_pause() {
    let (mut driver, control, _) = rig(options(), Layout::PACKED);
    driver.request(STATISTICS, &[&[0; 10]], &[]).unwrap();
    driver.run();
    driver.stop();
    driver.start();
    control.request_statistics();
    settle(&mut driver);
    assert!(driver.completion(STATISTICS).is_some());
}

#[test]
fn reported_pages_are_released_unless_their_contents_matter() {
    for layout in Layout::all() {
        let (mut driver, _, pages) = rig(options(), layout);
        free_pages(&mut driver, REPORTS, &[(20 << 20, 2 << 20), (40 << 20, 4 << 20)]);
        let range = |start: u64, size: u64| Range { start: start << 20, size: size << 20 };
        assert_eq!(pages.take(), [range(20, 2), range(40, 4)]);
        driver.write_config(12, &0xaa_u32.to_le_bytes());
        free_pages(&mut driver, REPORTS, &[(20 << 20, 2 << 20)]);
        assert_eq!(pages.take(), [], "the driver checks free pages for its poison");
        assert_eq!(driver.function.device().inspect()["reported_bytes"], 8 << 20);
    }
}

#[test]
fn a_large_report_is_released_in_pieces() {
    let (mut driver, _, pages) = rig(options(), Layout::SPLIT);
    free_pages(&mut driver, REPORTS, &[(0, RAM as u32)]);
    assert_eq!(pages.take().len(), 2);
    assert_eq!(pages.released(), RAM);
}

#[test]
fn hints_are_told_only_for_the_command_that_holds() {
    for layout in Layout::all() {
        let (mut driver, control, pages) = rig(options(), layout);
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        let command = |driver: &mut Driver, number: u32| {
            driver.call(HINTS, &[&number.to_le_bytes()], &[]);
        };
        free_pages(&mut driver, HINTS, &[(20 << 20, 4 << 20)]);
        control.begin_hints(Arc::new(move |range| sink.lock().unwrap().push(range)));
        let number = config(&mut driver)[2];
        assert!(number > 1);
        free_pages(&mut driver, HINTS, &[(20 << 20, 4 << 20)]);
        assert!(told.lock().unwrap().is_empty(), "the driver has not taken the command up");
        command(&mut driver, number);
        free_pages(&mut driver, HINTS, &[(24 << 20, 4 << 20)]);
        // A pause in between changes nothing.
        driver.stop();
        driver.start();
        free_pages(&mut driver, HINTS, &[(32 << 20, 4 << 20)]);
        assert!(!control.hints_complete());
        command(&mut driver, hint::STOP);
        assert!(control.hints_complete());
        let range = |start: u64| Range { start: start << 20, size: 4 << 20 };
        assert_eq!(*told.lock().unwrap(), [range(24), range(32)]);
        control.end_hints();
        assert_eq!(config(&mut driver)[2], hint::DONE);
        command(&mut driver, number);
        free_pages(&mut driver, HINTS, &[(40 << 20, 4 << 20)]);
        assert_eq!(told.lock().unwrap().len(), 2, "it is over");
        assert_eq!(pages.take(), [], "hinted pages may be in use again");
    }
}

#[test]
fn queues_are_found_by_number_or_by_count() {
    let with = feature::STATS_VQ | feature::REPORTING;
    // Linux, which did not want hints: the reports are in the next queue.
    assert_eq!(Roles::new(with, &[0, 1, 2, 3]).role_names(), ["Inflate", "Deflate", "Statistics", "Reports"]);
    // A driver to the letter.
    let roles = Roles::new(with, &[0, 1, 2, 4]);
    assert_eq!(roles.role_names(), ["Inflate", "Deflate", "Statistics", "Reports"]);
    assert_eq!(roles.index_of("Reports"), Some(4));
}

#[test]
fn features_are_those_asked_for() {
    let plain = BalloonOptions { deflate_on_oom: false, free_page_reporting: false, ..options() };
    let pages = Arc::new(RecordedPages::new(RAM));
    let balloon = Balloon::new(plain, pages).unwrap();
    assert_eq!(balloon.features(), 1 << 1 | 1 << 3 | 1 << 4);
    assert_eq!(balloon.queue_sizes().len(), 4);
    let (mut driver, ..) = rig(options(), Layout::SPLIT);
    assert_eq!(driver.offered_features() & 0x3f, 0b11_1110);
}

#[test]
fn a_balloon_that_is_gone_answers_what_its_driver_waits_for_and_keeps_the_statistics_buffer() {
    use virtio::chain::Chain;
    use virtio::stand_in::Request;
    let (refuse, chain) = (balloon().refusal(), Chain::new());
    let answered = |features| {
        let ask = |queue| refuse(&Request { queue, queues: 5, features, chain: &chain });
        (0..5).map(|queue| ask(queue).is_some()).collect::<Vec<_>>()
    };
    assert_eq!(answered(feature::STATS_VQ), [true, true, false, true, true]);
    assert_eq!(answered(0), [true; 5]);
}
