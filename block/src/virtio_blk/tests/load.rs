//! How much is begun at once, and what a pause leaves to be begun anew.

use super::*;

const MIB: u64 = 1 << 20;

fn held() -> (Rig, Arc<crate::image::testing::Held>) {
    let image = HeldImage::new(64 << 30);
    let held = Arc::clone(&image.held);
    (Rig::new(Arc::new(image), options(), layouts()[2]), held)
}

/// Ends what is in flight, again and again, until the handler has nothing more to do.
fn finish(rig: &mut Rig, held: &crate::image::testing::Held) -> usize {
    let mut operations = 0;
    loop {
        if held.waiting().is_empty()
            && rig.run_once() == Progress::Idle
            && !rig.arm()
            && held.waiting().is_empty()
        {
            return operations;
        }
        operations += held.waiting().len();
        held.release(0);
        rig.run_once();
    }
}

#[test]
fn long_transfers_are_made_in_pieces() {
    for (kind, word) in [(IN, "read"), (OUT, "write")] {
        let (mut rig, held) = held();
        rig.submit_long(kind, 2048, 3 << 20, 3);
        let mut offsets = Vec::new();
        rig.run_once();
        while let [words] = &held.waiting()[..] {
            let mut words = words.split(' ').map(str::to_owned);
            assert_eq!(words.next().unwrap(), word);
            offsets.push(words.next().unwrap().parse::<u64>().unwrap() / MIB);
            held.release(0);
            rig.run_once();
        }
        assert_eq!(offsets, [1, 5, 9]);
        let answer = rig.answers().remove(0);
        assert_eq!((answer.status, answer.written), (OK, if kind == IN { 9 << 20 | 1 } else { 1 }));
        assert_eq!(rig.counter("read_bytes") + rig.counter("write_bytes"), 9 * MIB);
    }
}

#[test]
fn pieces_are_the_right_parts_of_the_file_and_of_memory() {
    let file = TempFile::new(0);
    let contents = pattern(9 << 20, 1);
    fs::write(file.path(), &contents).unwrap();
    for engine in ENGINES {
        let mut rig = Rig::new(image(&file, engine), options(), layouts()[1]);
        // The last 3 MiB are what is left in memory, and what is then written three times.
        rig.submit_long(IN, 0, 3 << 20, 3);
        rig.finish();
        rig.submit_long(OUT, 0, 3 << 20, 3);
        rig.finish();
        let answers = rig.answers();
        assert_eq!((answers[0].status, answers[1].status), (OK, OK));
        let written = fs::read(file.path()).unwrap();
        assert!(written.chunks(3 << 20).all(|third| third == &contents[6 << 20..]), "{engine:?}");
        fs::write(file.path(), &contents).unwrap();
    }
}

#[test]
fn what_is_begun_at_once_is_limited_by_its_bytes() {
    let (mut rig, held) = held();
    for _ in 0..5 {
        rig.submit_long(IN, 0, 1 << 20, 100);
    }
    rig.submit(&Wanted::new(FLUSH_KIND, 0));
    while rig.run_once() == Progress::More {}
    assert_eq!(held.waiting().len(), 2, "of 100 MiB each, and with a third there would be more than 256");
    assert!(!rig.has_work() && !rig.arm(), "waiting for them is not polling");
    assert!(!rig.quiesce());
    while !held.waiting().is_empty() {
        held.release(0);
        rig.quiesce();
    }
    assert_eq!((rig.answers().len(), rig.in_flight()), (2, 4));
    assert_eq!(finish(&mut rig, &held), 3 * 25 + 1);
    assert_eq!(rig.answers().len(), 4);
}

/// Room that comes at the end of a run is seen, though no event comes any more.
#[test]
fn a_request_that_waited_for_others_is_begun_when_they_are_over() {
    let (mut rig, held) = held();
    for _ in 0..3 {
        rig.submit_long(IN, 0, 1 << 20, 100);
    }
    while rig.run_once() == Progress::More {}
    for _ in 0..25 {
        held.release(0);
        // As at the end of a run.
        assert!(!rig.quiesce() || rig.has_work());
    }
    assert!(rig.has_work() && rig.arm());
}

#[test]
fn a_request_beyond_the_limit_is_alone_and_begun_anew_after_a_pause() {
    let write = |rig: &mut Rig| rig.submit_long(OUT, 0, 4 << 20, 126);
    let zeroes = |rig: &mut Rig| {
        let ranges = (0..8).flat_map(|i| range(i << 18, 1 << 18, 0)).collect::<Vec<_>>();
        rig.submit(&Wanted::new(WRITE_ZEROES_KIND, 0).data(&ranges));
    };
    let submits: [fn(&mut Rig); 2] = [write, zeroes];
    for (submit, parts) in submits.into_iter().zip([126, 8 * 16]) {
        let (mut rig, held) = held();
        rig.submit(&Wanted::new(IN, 0).room(512));
        submit(&mut rig);
        rig.submit(&Wanted::new(FLUSH_KIND, 0));
        rig.run_once();
        assert_eq!(held.waiting(), ["read 0"]);
        held.release(0);
        while rig.run_once() == Progress::More {}
        let first = held.waiting();
        assert_eq!(first.len(), 1);
        assert!(!rig.has_work() && !rig.arm());
        held.release(0);
        rig.run_once();
        assert_ne!(held.waiting(), first, "the next part");

        assert!(!rig.quiesce());
        held.release(0);
        assert!(rig.quiesce(), "the rest is not waited for");
        assert_eq!((rig.answers().len(), rig.in_flight()), (1, 2));
        rig.run_once();
        assert_eq!(held.waiting(), first, "from its start");
        assert_eq!(finish(&mut rig, &held), parts + 1);
        let answers = rig.answers();
        assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [OK, OK]);
    }
}

#[test]
fn a_discard_ends_early_when_the_machine_pauses() {
    let (mut rig, held) = held();
    let ranges = (0..64).flat_map(|i| range(i * 8, 8, 0)).collect::<Vec<_>>();
    rig.submit(&Wanted::new(DISCARD_KIND, 0).data(&ranges));
    rig.run_once();
    assert!(!rig.quiesce());
    held.release(0);
    assert!(rig.quiesce());
    assert_eq!(rig.answers()[0].status, OK, "it is a hint");
    assert_eq!(rig.counter("discard_bytes"), 4096);
}

#[test]
fn ranges_that_grow_while_they_are_zeroed_are_refused() {
    let (mut rig, held) = held();
    let ranges = |sectors: u32| (0..4).flat_map(|i| range(i << 18, sectors, 0)).collect::<Vec<_>>();
    rig.submit(&Wanted::new(WRITE_ZEROES_KIND, 0).data(&ranges(8)));
    rig.run_once();
    rig.overwrite_ranges(0, &ranges(1 << 18));
    held.release(0);
    rig.run_once();
    assert_eq!(rig.answers()[0].status, IOERR);
    assert!(held.waiting().is_empty());
}

#[test]
fn a_run_ends_when_it_has_begun_enough() {
    let (mut rig, held) = held();
    for _ in 0..16 {
        rig.submit_long(IN, 0, 1 << 20, 4);
    }
    assert_eq!(rig.run_once(), Progress::More);
    assert_eq!(rig.run_once(), Progress::Idle);
    assert_eq!(held.waiting().len(), 16);
    held.release(0);
    rig.run_once();
    assert_eq!(rig.answers().len(), 16);
}

#[test]
fn a_request_that_is_begun_anew_pays_the_rate_limit_once() {
    let clock = Arc::new(ManualClock::default());
    let limit = |size| Limit { size, refill_time: Duration::from_secs(1), one_time_burst: 0 };
    let limiter = RateLimiter::new(Some(limit(504 << 20)), Some(limit(1)), clock);
    let options = BlockOptions { limiter: Some(limiter), ..options() };
    let image = HeldImage::new(64 << 30);
    let held = Arc::clone(&image.held);
    let mut rig = Rig::new(Arc::new(image), options, layouts()[2]);
    rig.submit_long(OUT, 0, 4 << 20, 126);
    for _ in 0..3 {
        while rig.run_once() == Progress::More {}
        assert_eq!(held.waiting(), ["write 0 stable=false"], "it need not wait");
        assert!(!rig.quiesce());
        held.release(0);
        assert!(rig.quiesce());
    }
    rig.submit(&Wanted::new(IN, 0).room(512));
    finish_throttled(&mut rig, &held);
    assert_eq!((rig.answers().len(), rig.in_flight()), (1, 1), "what was done is paid for");
}

/// Ends what is in flight, again and again, until what is left waits for the rate limit.
fn finish_throttled(rig: &mut Rig, held: &crate::image::testing::Held) {
    while !matches!(rig.run_once(), Progress::Until(_)) {
        held.release(0);
    }
}
