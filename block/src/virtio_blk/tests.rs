//! The device, driven as a guest would: through rings in guest memory.

mod cache;
mod load;
mod model;
mod rig;
mod transport;
mod zeroes;

use super::config::{CONFIG_WCE, DISCARD, MQ, SEG_MAX, WRITE_ZEROES};
use super::*;
use crate::engine::EngineKind;
use crate::image::testing::{HeldImage, TempFile};
use crate::image::{OpenOptions, open};
use machine::clock::{Clock, ManualClock};
use rig::{Rig, Wanted};
use std::fs;
use std::time::Duration;
use virtio::device::Progress;
use virtio::features::Features;
use virtio::rate_limit::Limit;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_KIND: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD_KIND: u32 = 11;
const WRITE_ZEROES_KIND: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Threads];

/// Ring layouts to test with.
fn layouts() -> [Features; 4] {
    let plain = Features::VERSION_1 | Features::INDIRECT_DESC;
    [
        plain,
        plain | Features::EVENT_IDX,
        plain | Features::RING_PACKED,
        plain | Features::RING_PACKED | Features::EVENT_IDX,
    ]
}

fn options() -> BlockOptions {
    BlockOptions { queue_size: 16, serial: "serial-0042".into(), ..BlockOptions::default() }
}

fn image(file: &TempFile, engine: EngineKind) -> Arc<dyn Image> {
    open(&OpenOptions { path: file.path().into(), engine, ..OpenOptions::default() }).unwrap()
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251 + seed * 31 + 1) as u8).collect()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn data_goes_to_the_file_and_back() {
    for engine in ENGINES {
        for layout in layouts() {
            let file = TempFile::new(1 << 20);
            let mut rig = Rig::new(image(&file, engine), options(), layout);
            // Several at a time, around the ring more than once.
            for round in 0..10_u64 {
                let write = |i: u64| {
                    Wanted::new(OUT, (round * 5 + i) * 8).data(&pattern(4096, (round * 5 + i) as usize))
                };
                let answers = rig.requests((0..5).map(write).collect());
                assert!(
                    answers.iter().all(|answer| (answer.status, answer.written) == (OK, 1)),
                    "{answers:?}"
                );
            }
            assert_eq!(rig.request(Wanted::new(FLUSH_KIND, 0)).status, OK);
            let bytes = fs::read(file.path()).unwrap();
            for i in 0..50 {
                assert!(bytes[i * 4096..][..4096] == pattern(4096, i), "block {i} {engine:?} {layout:?}");
            }
            let answers = rig.requests((0..5).map(|i| Wanted::new(IN, 3 + i * 8).room(4096)).collect());
            for (i, answer) in answers.iter().enumerate() {
                assert_eq!((answer.status, answer.written), (OK, 4097));
                assert!(answer.data == bytes[3 * 512 + i * 4096..][..4096]);
            }
            assert!(rig.interrupts() > 0);
        }
    }
}

#[test]
fn large_indirect_requests_work() {
    for engine in ENGINES {
        let file = TempFile::new(1 << 20);
        let mut rig = Rig::new(image(&file, engine), options(), layouts()[1]);
        let data = pattern(512 << 10, 3);
        let cuts = vec![16, 512, 1, 511, 100_000, 4096];
        let write = Wanted::new(OUT, 16).data(&data).cut(cuts.clone(), vec![]).indirect();
        assert_eq!(rig.request(write).status, OK);
        let read = Wanted::new(IN, 16).room(data.len() as u32).cut(vec![], cuts).indirect();
        let answer = rig.request(read);
        assert_eq!(answer.status, OK);
        assert!(answer.data == data);
    }
}

#[test]
fn a_request_of_too_many_segments_fails_and_takes_no_memory() {
    let file = TempFile::new(1 << 20);
    for layout in layouts() {
        let mut rig = Rig::new(image(&file, EngineKind::Auto), options(), layout);
        let pieces = |count: usize| vec![512; count];
        let data = pattern(900 * 512, 1);
        // Each of the queue's places at once, both ways.
        for _ in 0..3 {
            let read = Wanted::new(IN, 0).room(900 * 512).cut(vec![], pieces(900)).indirect();
            let write =
                Wanted::new(OUT, 0).data(&data).cut([vec![16], pieces(900)].concat(), vec![]).indirect();
            let wanted = [read, write].into_iter().cycle().take(16).collect();
            for answer in rig.requests(wanted) {
                assert_eq!((answer.status, answer.written), (IOERR, 0), "{layout:?}");
            }
        }
        let room = rig.inspect()["room_for_segments"].as_u64().unwrap();
        assert!((1..=16 * 2 * 256).contains(&room), "{room} segments");
        assert_eq!(rig.counter("refused"), 48);
        // As many as the driver is told of, each split in two.
        let data = pattern(126 * 1024, 2);
        let write = Wanted::new(OUT, 0).data(&data).cut([vec![16], pieces(252)].concat(), vec![]).indirect();
        assert_eq!(rig.request(write).status, OK);
        assert!(fs::read(file.path()).unwrap().starts_with(&data));
    }
}

#[test]
fn the_serial_number_is_told_as_far_as_there_is_room() {
    let file = TempFile::new(512);
    let mut rig = Rig::new(image(&file, EngineKind::Auto), options(), layouts()[0]);
    let answer = rig.request(Wanted::new(GET_ID, 0).room(20));
    assert_eq!((answer.status, answer.written), (OK, 21));
    assert_eq!(answer.data, b"serial-0042\0\0\0\0\0\0\0\0\0");
    assert_eq!(rig.request(Wanted::new(GET_ID, 0).room(6)).data, b"serial");
    assert_eq!(rig.request(Wanted::new(GET_ID, 0)).status, OK);
    let answer = rig.request(Wanted::new(GET_ID, 0).room(64));
    assert_eq!((answer.status, &answer.data[20..]), (OK, &[0xaa; 44][..]));
}

#[test]
fn requests_that_make_no_sense_are_refused_and_harm_nothing() {
    let size = 64 << 10;
    let file = TempFile::new(0);
    let contents = pattern(size, 0);
    fs::write(file.path(), &contents).unwrap();
    for layout in layouts() {
        let mut rig = Rig::new(image(&file, EngineKind::Auto), options(), layout);
        let last = size as u64 / 512;
        let data = pattern(512, 9);
        let zero = WRITE_ZEROES_KIND;
        let cases = [
            ("read past the end", Wanted::new(IN, last).room(512), IOERR),
            ("read across the end", Wanted::new(IN, last - 1).room(1024), IOERR),
            ("read at a wrapping sector", Wanted::new(IN, u64::MAX).room(512), IOERR),
            ("read at a sector that wraps as bytes", Wanted::new(IN, 1 << 55).room(512), IOERR),
            ("read at a sector that wraps with the length", Wanted::new(IN, (1 << 55) - 1).room(1024), IOERR),
            ("read of a part of a sector", Wanted::new(IN, 0).room(511), IOERR),
            ("write past the end", Wanted::new(OUT, last).data(&data), IOERR),
            ("write of a part of a sector", Wanted::new(OUT, 0).data(&data[..100]), IOERR),
            ("no complete header", Wanted::raw(&[0; 15]).room(512), IOERR),
            ("no header", Wanted::raw(&[]).room(512), IOERR),
            ("unknown kind", Wanted::new(2, 0).room(512), UNSUPP),
            ("unknown kind", Wanted::new(u32::MAX, 0), UNSUPP),
            ("secure erase", Wanted::new(14, 0).data(&range(0, 1, 0)), UNSUPP),
            ("discard without a range", Wanted::new(DISCARD_KIND, 0), IOERR),
            ("discard of half a range", Wanted::new(DISCARD_KIND, 0).data(&range(0, 1, 0)[..8]), IOERR),
            ("discard past the end", Wanted::new(DISCARD_KIND, 0).data(&range(last, 1, 0)), IOERR),
            ("discard of too much", Wanted::new(DISCARD_KIND, 0).data(&range(0, u32::MAX, 0)), IOERR),
            ("discard with unmap", Wanted::new(DISCARD_KIND, 0).data(&range(0, 1, 1)), UNSUPP),
            ("zeroes with unknown flags", Wanted::new(zero, 0).data(&range(0, 1, 2)), UNSUPP),
            ("zeroes past the end", Wanted::new(zero, 0).data(&range(u64::MAX, 1, 0)), IOERR),
            (
                "a bad range after a good one",
                { Wanted::new(zero, 0).data(&[range(0, 1, 0), range(last, 1, 0)].concat()) },
                IOERR,
            ),
            ("too many ranges", Wanted::new(zero, 0).data(&range(0, 1, 0).repeat(65)), IOERR),
        ];
        for (case, wanted, status) in cases {
            let room = wanted.room_len();
            let answer = rig.request(wanted);
            assert_eq!(answer.status, status, "{case} {layout:?}");
            assert!(answer.data.iter().all(|byte| *byte == 0xaa) && answer.data.len() == room, "{case}");
        }
        assert!(fs::read(file.path()).unwrap() == contents);
        assert_eq!(rig.counter("refused"), 22);
        // Nothing to do is no mistake.
        for wanted in
            [Wanted::new(IN, 0), Wanted::new(OUT, last), Wanted::new(zero, 0).data(&range(last, 0, 0))]
        {
            assert_eq!(rig.request(wanted).status, OK);
        }
        assert!(!rig.is_broken());
        assert_eq!(rig.request(Wanted::new(IN, last - 1).room(512)).data, contents[size - 512..]);
    }
}

#[test]
fn a_request_without_a_status_byte_breaks_the_queue_and_nothing_else() {
    for layout in layouts() {
        let file = TempFile::new(4096);
        let mut rig = Rig::new(image(&file, EngineKind::Auto), options(), layout);
        rig.submit(&Wanted::new(FLUSH_KIND, 0).without_status());
        assert_eq!(rig.run_once(), Progress::Idle);
        assert!(rig.is_broken());
        rig.submit(&Wanted::new(FLUSH_KIND, 0));
        assert_eq!(rig.run_once(), Progress::Idle);
        assert!(rig.answers().is_empty());
        assert!(!rig.has_work(), "a worker does not spin on it");
        rig.reset();
        assert_eq!(rig.request(Wanted::new(IN, 0).room(512)).status, OK);
    }
}

#[test]
fn a_read_only_disk_writes_nothing() {
    let file = TempFile::new(4096);
    let path = file.path().into();
    let image = open(&OpenOptions { path, read_only: true, ..OpenOptions::default() }).unwrap();
    let mut rig = Rig::new(image, options(), layouts()[1]);
    assert_eq!(rig.request(Wanted::new(IN, 0).room(512)).status, OK);
    assert_eq!(rig.request(Wanted::new(FLUSH_KIND, 0)).status, OK);
    assert_eq!(rig.request(Wanted::new(OUT, 0).data(&[1; 512])).status, IOERR);
    for kind in [DISCARD_KIND, WRITE_ZEROES_KIND] {
        assert_eq!(rig.request(Wanted::new(kind, 0).data(&range(0, 1, 0))).status, IOERR);
    }
    assert!(fs::read(file.path()).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    for engine in ENGINES {
        let file = TempFile::new(0);
        let mut contents = pattern(1 << 20, 0);
        fs::write(file.path(), &contents).unwrap();
        let mut rig = Rig::new(image(&file, engine), options(), layouts()[3]);
        let ranges = [range(0, 8, 0), range(100, 3, 1), range(1024, 1024, 1)].concat();
        assert_eq!(rig.request(Wanted::new(WRITE_ZEROES_KIND, 0).data(&ranges)).status, OK);
        contents[..4096].fill(0);
        contents[100 * 512..103 * 512].fill(0);
        contents[1024 * 512..].fill(0);
        assert!(fs::read(file.path()).unwrap() == contents);
        let ranges = [range(16, 8, 0), range(32, 8, 0)].concat();
        assert_eq!(rig.request(Wanted::new(DISCARD_KIND, 0).data(&ranges)).status, OK);
        let kept = fs::read(file.path()).unwrap();
        assert!(kept[24 * 512..32 * 512] == contents[24 * 512..32 * 512], "what lies between stays");
        assert_eq!(rig.counter("write_zeroes_bytes"), (8 + 3 + 1024) * 512);
        assert_eq!((rig.counter("discards"), rig.counter("discard_bytes")), (1, 8192));
    }
}

#[test]
fn the_hosts_errors_reach_the_guest_and_the_counters() {
    let image = HeldImage::new(1 << 20);
    let held = Arc::clone(&image.held);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let on_error: OnError =
        Arc::new(move |error| tell.lock().unwrap().push((error.operation.clone(), error.errors)));
    let options = BlockOptions { on_error: Some(on_error), ..options() };
    let mut rig = Rig::new(Arc::new(image), options, layouts()[1]);
    for (errno, status) in [(libc::ENOSPC, IOERR), (libc::EIO, IOERR), (0, OK)] {
        let kinds = [(OUT, vec![0; 512]), (FLUSH_KIND, vec![]), (WRITE_ZEROES_KIND, range(0, 1, 0))];
        for (kind, data) in kinds {
            rig.submit(&Wanted::new(kind, 0).data(&data));
        }
        rig.submit(&Wanted::new(IN, 0).room(512));
        rig.run_once();
        assert_eq!(held.waiting().len(), 4);
        held.release(errno);
        rig.run_once();
        let answers = rig.answers();
        assert_eq!(answers.len(), 4);
        assert!(answers.iter().all(|answer| answer.status == status), "{answers:?}");
    }
    assert_eq!((rig.counter("no_space"), rig.counter("io_errors")), (4, 8));
    // Not each of them: the 1st, 2nd, 4th and 8th.
    let told = told.lock().unwrap();
    assert_eq!(told.iter().map(|(_, errors)| *errors).collect::<Vec<_>>(), [1, 2, 4, 8]);
    assert!(
        told.iter().all(|(operation, _)| ["read", "write", "flush", "write zeroes"].contains(&&**operation)),
        "{told:?}"
    );
    assert_eq!((rig.counter("writes"), rig.counter("reads")), (1, 1));
}

#[test]
fn nothing_is_answered_before_the_host_is_done_and_quiescing_waits_for_it() {
    for layout in layouts() {
        let image = HeldImage::new(1 << 20);
        let held = Arc::clone(&image.held);
        let mut rig = Rig::new(Arc::new(image), options(), layout);
        rig.submit(&Wanted::new(OUT, 0).data(&[1; 512]));
        rig.submit(&Wanted::new(IN, 0).room(512));
        rig.run_once();
        assert!(rig.answers().is_empty());
        rig.submit(&Wanted::new(FLUSH_KIND, 0));
        assert!(!rig.quiesce());
        assert_eq!(
            held.waiting(),
            ["write 0 stable=false", "read 0"].map(String::from),
            "nothing new is started"
        );
        held.release(0);
        assert!(rig.quiesce());
        assert_eq!(rig.answers().len(), 2);
        assert_eq!(rig.in_flight(), 1, "the flush was left to the driver");

        rig.run_once();
        assert_eq!(held.waiting(), ["flush"]);
        held.release(0);
        rig.run_once();
        assert_eq!(rig.answers().len(), 1);
    }
}

#[test]
fn the_rate_limit_holds_and_is_shared() {
    let clock = Arc::new(ManualClock::default());
    let second = |size| Limit { size, refill_time: Duration::from_secs(1), one_time_burst: 0 };
    let limiter = RateLimiter::new(Some(second(8192)), Some(second(4)), clock.clone());
    let options = || BlockOptions { limiter: Some(limiter.clone()), ..options() };
    let files = [TempFile::new(1 << 20), TempFile::new(1 << 20)];
    let mut rigs =
        files.each_ref().map(|file| Rig::new(image(file, EngineKind::Auto), options(), layouts()[3]));
    for rig in &mut rigs {
        for _ in 0..5 {
            rig.submit(&Wanted::new(OUT, 0).data(&[1; 512]));
        }
    }
    let progress = rigs[0].finish();
    assert_eq!(rigs[0].answers().len(), 4);
    assert!(matches!(progress, Progress::Until(_)), "{progress:?}");
    let Progress::Until(until) = rigs[1].run_once() else { panic!("the other disk must wait too") };
    assert!(!rigs[1].has_work() && !rigs[1].arm(), "waiting is not polling");
    assert!(rigs[1].answers().is_empty());
    assert!(rigs[1].quiesce(), "a request that waits is not in flight");

    clock.advance(Duration::from_nanos(until - clock.monotonic_ns()));
    rigs[1].finish();
    assert_eq!(rigs[1].answers().len(), 1);
    clock.advance(Duration::from_secs(10));
    rigs[1].finish();
    assert_eq!(rigs[1].answers().len(), 4);

    // By bytes: one request may overdraw, and the next one waits for it.
    clock.advance(Duration::from_secs(10));
    for _ in 0..2 {
        rigs[0].submit(&Wanted::new(OUT, 0).data(&pattern(16384, 0)));
    }
    rigs[0].finish();
    assert_eq!(rigs[0].answers().len(), 2, "one left over from before, one new");
    assert!(rigs[0].counter("throttled") >= 2);
}

#[test]
fn a_resize_is_told_and_the_new_room_can_be_used() {
    let file = TempFile::new(4096);
    let mut rig = Rig::new(image(&file, EngineKind::Auto), options(), layouts()[0]);
    let capacity = |rig: &mut Rig| {
        let mut capacity = [0; 8];
        rig.device().config_read(0, &mut capacity);
        u64::from_le_bytes(capacity)
    };
    assert_eq!(rig.request(Wanted::new(OUT, 8).data(&[7; 512])).status, IOERR);
    let control = rig.device().control();
    assert!(control.resize(1024).is_err());
    assert_eq!((rig.config_changes(), capacity(&mut rig)), (0, 8));
    control.resize(8192).unwrap();
    assert_eq!((rig.config_changes(), capacity(&mut rig)), (1, 16));
    assert_eq!(rig.request(Wanted::new(OUT, 8).data(&[7; 512])).status, OK);
    assert_eq!(fs::read(file.path()).unwrap()[4096..4608], [7; 512]);
}

#[test]
fn saving_and_restoring_is_identity_and_a_smaller_image_is_refused() {
    let file = TempFile::new(8192);
    let mut block = Block::new(image(&file, EngineKind::Auto), options()).unwrap();
    block.config_write(32, &[0]);
    let saved = block.save().unwrap();
    block.reset();
    assert_ne!(block.save().unwrap(), saved);
    block.restore(&saved).unwrap();
    assert_eq!(block.save().unwrap(), saved);
    drop(block);

    let smaller = TempFile::new(4096);
    let mut block = Block::new(image(&smaller, EngineKind::Auto), options()).unwrap();
    assert!(matches!(block.restore(&saved), Err(StateError::Value { .. })));
    assert!(block.shared.cache.write_back(), "as after a reset");
}

#[test]
fn options_out_of_range_are_refused() {
    let error = |options| Block::new(Arc::new(HeldImage::new(4096)), options).err();
    assert_eq!(error(BlockOptions { queues: 0, ..options() }), Some(BlockError::Queues(0)));
    assert_eq!(error(BlockOptions { queues: 257, ..options() }), Some(BlockError::Queues(257)));
    for queue_size in [0, 2, 100, 2048, u16::MAX] {
        assert_eq!(error(BlockOptions { queue_size, ..options() }), Some(BlockError::QueueSize(queue_size)));
    }
    let serial = "123456789012345678901".to_owned();
    assert_eq!(error(BlockOptions { serial: serial.clone(), ..options() }), Some(BlockError::Serial(serial)));
    assert_eq!(error(BlockOptions { queues: 256, queue_size: 1024, ..options() }), None);
}

#[test]
fn each_queue_that_the_driver_enabled_has_a_handler() {
    let block = Block::new(Arc::new(HeldImage::new(4096)), BlockOptions { queues: 4, ..options() }).unwrap();
    assert_eq!(block.queue_sizes(), [16; 4]);
    let all = SEG_MAX | MQ | FLUSH | CONFIG_WCE | DISCARD | WRITE_ZEROES;
    assert_eq!(block.features() & all, all);
    let mut rig = Rig::of(block, layouts()[0], all, 2);
    assert_eq!(rig.handlers(), 2);
    let result = rig.try_activate(layouts()[0].bits() | MQ, &[1]);
    assert!(matches!(result, Err(ActivateError::QueueMissing(0))));
}

#[test]
fn one_worker_can_wait_for_all_handlers_of_a_disk() {
    let file = TempFile::new(4096);
    for engine in ENGINES {
        let block = Block::new(image(&file, engine), BlockOptions { queues: 4, ..options() }).unwrap();
        let sources = Rig::of(block, layouts()[0], MQ, 4).event_sources().concat();
        let different: std::collections::BTreeSet<_> = sources.iter().collect();
        assert_eq!((different.len(), sources.len()), (5, 5), "one each, and the bell of the cache mode");
    }
}
