//! Zeroing, which normally transfers nothing and may have to write it all.

use super::*;

/// The most that a range may have.
const WHOLE: u32 = 1 << 18;

fn held(queues: u16) -> (Rig, Arc<crate::image::testing::Held>) {
    let image = HeldImage::new(64 << 30);
    let held = Arc::clone(&image.held);
    let block = Block::new(Arc::new(image), BlockOptions { queues, ..options() }).unwrap();
    (Rig::of(block, layouts()[3], FLUSH | CONFIG_WCE | MQ | WRITE_ZEROES, queues), held)
}

fn zeroes(sector: u64, sectors: u32) -> Wanted {
    Wanted::new(WRITE_ZEROES_KIND, 0).data(&range(sector, sectors, 0))
}

fn read() -> Wanted {
    Wanted::new(IN, 0).room(512)
}

/// A piece of a range that starts at the disk's first byte, in words.
fn piece(index: u64, stable: bool) -> String {
    format!("zero {}+{} unmap=false stable={stable}", index * (8 << 20), 8 << 20)
}

#[test]
fn a_range_is_zeroed_in_pieces_beside_other_requests_however_many_queues_there_are() {
    for queues in [1, 4, 16] {
        let (mut rig, held) = held(queues);
        rig.submit(&read());
        rig.submit(&zeroes(0, WHOLE));
        rig.submit(&read());
        rig.run_once();
        assert_eq!(held.waiting(), ["read 0", &piece(0, false), "read 0"], "{queues} queues");
        for index in 1..16 {
            held.release(0);
            rig.run_once();
            assert_eq!(held.waiting(), [piece(index, false)]);
        }
        held.release(0);
        rig.run_once();
        assert_eq!(rig.answers().len(), 3);
        assert_eq!((rig.counter("write_zeroes"), rig.counter("write_zeroes_bytes")), (1, 128 << 20));
    }
}

#[test]
fn the_last_piece_of_a_range_is_what_is_left_and_the_next_range_follows() {
    let (mut rig, held) = held(1);
    let ranges = [range(8, (8 << 11) + 3, 1), range(0, 1, 0)].concat();
    rig.submit(&Wanted::new(WRITE_ZEROES_KIND, 0).data(&ranges));
    for (offset, length, unmap) in [(4096, 8 << 20, true), (4096 + (8 << 20), 3 * 512, true), (0, 512, false)]
    {
        rig.run_once();
        assert_eq!(held.waiting(), [format!("zero {offset}+{length} unmap={unmap} stable=false")]);
        held.release(0);
    }
    rig.run_once();
    assert_eq!(rig.answers()[0].status, OK);
}

#[test]
fn what_is_zeroed_at_once_is_limited_by_its_bytes() {
    for (queues, at_once) in [(1, 4), (4, 1), (16, 1)] {
        let (mut rig, held) = held(queues);
        for _ in 0..6 {
            rig.submit(&zeroes(0, WHOLE));
        }
        while rig.run_once() == Progress::More {}
        assert_eq!(held.waiting().len(), at_once, "{queues} queues");
        assert!(!rig.has_work() && !rig.arm(), "waiting for them is not polling");
    }
}

/// A pause puts back what was taken last, after a piece of it, and so on.
#[test]
fn a_pause_does_not_wait_for_the_rest_of_what_is_zeroed() {
    for count in [1, 3] {
        let (mut rig, held) = held(1);
        rig.submit(&read());
        for _ in 0..count {
            rig.submit(&zeroes(0, WHOLE));
        }
        while rig.run_once() == Progress::More {}
        while !rig.quiesce() {
            assert!(!held.waiting().contains(&piece(count as u64, false)));
            held.release(0);
        }
        assert_eq!((rig.answers().len(), rig.in_flight()), (1, count));
        while rig.run_once() == Progress::More {}
        assert_eq!(held.waiting(), vec![piece(0, false); count], "from their start");
        for _ in 0..16 {
            held.release(0);
            rig.run_once();
        }
        assert_eq!(rig.answers().len(), count);
    }
}

#[test]
fn a_pause_waits_for_what_was_taken_before_something_that_was_answered() {
    for layout in layouts() {
        let image = HeldImage::new(64 << 30);
        let held = Arc::clone(&image.held);
        let mut rig = Rig::new(Arc::new(image), options(), layout);
        rig.submit(&zeroes(0, WHOLE));
        rig.submit(&read());
        rig.run_once();
        let mut pieces = 0;
        while !rig.quiesce() {
            pieces += 1;
            held.release(0);
        }
        assert_eq!((pieces, rig.answers().len(), rig.in_flight()), (16, 2, 0));
    }
}

#[test]
fn zeroes_of_several_parts_are_made_stable_together() {
    let several = [range(0, 1, 0), range(8, 1, 0)].concat();
    let several = Wanted::new(WRITE_ZEROES_KIND, 0).data(&several);
    for (wanted, parts) in [(zeroes(0, WHOLE), 16), (several, 2)] {
        let (mut rig, held) = held(1);
        rig.device().config_write(32, &[0]);
        rig.run_once();
        held.release(0);
        rig.run_once();
        rig.submit(&wanted);
        for _ in 0..parts {
            rig.run_once();
            assert!(held.waiting()[0].ends_with("stable=false"), "{:?}", held.waiting());
            // It was asked for before.
            rig.device().config_write(32, &[1]);
            held.release(0);
        }
        rig.run_once();
        assert_eq!(held.waiting(), ["flush"]);
        assert!(rig.answers().is_empty());
        held.release(0);
        rig.run_once();
        assert_eq!((rig.answers()[0].status, held.waiting().len()), (OK, 0));
    }
}

#[test]
fn pieces_are_the_right_parts_of_the_file() {
    for engine in ENGINES {
        for unmap in [0, 1] {
            let file = TempFile::new(0);
            let mut contents = pattern(20 << 20, 1);
            fs::write(file.path(), &contents).unwrap();
            let mut rig = Rig::new(image(&file, engine), options(), layouts()[1]);
            let sectors = (17 << 11) + 1;
            let wanted = Wanted::new(WRITE_ZEROES_KIND, 0).data(&range(3, sectors, unmap));
            assert_eq!(rig.request(wanted).status, OK);
            contents[3 * 512..][..sectors as usize * 512].fill(0);
            assert!(fs::read(file.path()).unwrap() == contents, "{engine:?}");
        }
    }
}
