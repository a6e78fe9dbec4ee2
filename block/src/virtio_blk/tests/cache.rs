//! What is stable when, and the cache mode.

use super::*;
use crate::virtio_blk::cache::Cache;

#[test]
fn writes_are_stable_unless_the_driver_may_flush_and_wants_a_cache() {
    let write = || Wanted::new(OUT, 0).data(&[1; 512]);
    let zeroes = || Wanted::new(WRITE_ZEROES_KIND, 0).data(&range(0, 1, 1));
    for (accepted, write_back, stable) in [
        (FLUSH | CONFIG_WCE, true, false),
        (FLUSH | CONFIG_WCE, false, true),
        (FLUSH, true, false),
        (CONFIG_WCE, true, true),
        (0, true, true),
    ] {
        let image = HeldImage::new(1 << 20);
        let held = Arc::clone(&image.held);
        let mut rig = Rig::accepting(Arc::new(image), options(), layouts()[0], accepted);
        rig.device().config_write(32, &[u8::from(write_back)]);
        rig.submit(&write());
        rig.submit(&zeroes());
        rig.run_once();
        let expected = [format!("write 0 stable={stable}"), format!("zero 0+512 unmap=true stable={stable}")];
        let waiting = held.waiting().into_iter().filter(|words| words != "flush").collect::<Vec<_>>();
        assert_eq!(waiting, expected);
    }
}

#[test]
fn turning_the_cache_off_leaves_nothing_in_it() {
    let image = HeldImage::new(1 << 20);
    let held = Arc::clone(&image.held);
    let mut rig = Rig::new(Arc::new(image), options(), layouts()[0]);
    let mode = |rig: &mut Rig| {
        let mut mode = [0];
        rig.device().config_read(32, &mut mode);
        mode[0]
    };
    assert_eq!(mode(&mut rig), 1);
    rig.submit(&Wanted::new(OUT, 0).data(&[1; 512]));
    rig.run_once();
    rig.device().config_write(32, &[0]);
    assert_eq!((mode(&mut rig), held.waiting().len()), (0, 1), "the CPU does not wait for the storage");
    rig.run_once();
    assert_eq!(held.waiting(), ["write 0 stable=false", "flush"]);

    // The write under way was started without stability in mind, and is made stable before it is answered.
    held.release(0);
    rig.run_once();
    assert!(rig.answers().is_empty());
    assert_eq!(held.waiting(), ["flush"]);
    held.release(0);
    rig.run_once();
    assert_eq!(rig.answers()[0].status, OK);

    rig.device().config_write(32, &[1]);
    rig.run_once();
    assert_eq!((mode(&mut rig), held.waiting().len()), (1, 0));
    rig.device().config_write(32, &[0]);
    assert!(!rig.quiesce(), "a worker that stops does it first");
    held.release(0);
    assert!(rig.quiesce());
    assert_eq!(mode(&mut rig), 0);
    rig.reset();
    assert_eq!(mode(&mut rig), 1, "a reset restores the default");
}

/// A driver that turned the cache off does not look at the mode again, and sends no flush (Linux).
#[test]
fn what_could_not_be_made_stable_when_the_cache_was_turned_off_fails_writes_until_it_is() {
    let image = HeldImage::new(1 << 20);
    let held = Arc::clone(&image.held);
    let mut rig = Rig::new(Arc::new(image), options(), layouts()[0]);
    rig.device().config_write(32, &[0]);
    rig.run_once();
    held.release(libc::EIO);
    rig.run_once();
    let mut mode = [0xff];
    rig.device().config_read(32, &mut mode);
    assert_eq!(mode, [0], "the mode is the driver's choice");
    assert_eq!(rig.counter("io_errors"), 1);

    let write = Wanted::new(OUT, 0).data(&[1; 512]);
    let zeroes = Wanted::new(WRITE_ZEROES_KIND, 0).data(&range(0, 1, 0));
    for (wanted, words) in [(&write, "write 0 stable=true"), (&zeroes, "zero 0+512 unmap=false stable=true")]
    {
        rig.submit(wanted);
        rig.run_once();
        assert_eq!(held.waiting(), [words]);
        held.release(0);
        rig.run_once();
        assert_eq!(held.waiting(), ["flush"], "stable by itself, but not what came before");
        held.release(libc::EIO);
        rig.run_once();
        assert_eq!(rig.answers()[0].status, IOERR);
    }
    let saved = rig.device().save().unwrap();

    rig.submit(&write);
    for _ in 0..2 {
        rig.run_once();
        held.release(0);
    }
    rig.run_once();
    assert_eq!(rig.answers()[0].status, OK, "all is stable now");
    for wanted in [&write, &zeroes] {
        rig.submit(wanted);
        rig.run_once();
        held.release(0);
        rig.run_once();
        assert_eq!((rig.answers()[0].status, held.waiting().len()), (OK, 0), "without a flush");
    }

    // Neither a pause nor a reset to write-through mode forgets it.
    rig.quiesce();
    rig.device().restore(&saved).unwrap();
    rig.run_once();
    assert_eq!(held.waiting(), ["flush"]);
    held.release(0);
    rig.run_once();
    assert_ne!(rig.device().save().unwrap(), saved);
}

#[test]
fn a_reset_that_turns_the_cache_off_settles_it() {
    let image = HeldImage::new(1 << 20);
    let held = Arc::clone(&image.held);
    let options = BlockOptions { write_back: false, ..options() };
    let mut rig = Rig::new(Arc::new(image), options, layouts()[0]);
    rig.device().config_write(32, &[1]);
    rig.reset();
    rig.run_once();
    assert_eq!(held.waiting(), ["flush"]);
    held.release(0);
    rig.run_once();
}

/// A flush says nothing of what was written, and left in the cache, after it began.
#[test]
fn an_old_flush_does_not_settle_what_came_later() {
    let cache = Cache::new(true);
    let ring = || {};
    cache.set(false, ring);
    let old = cache.flush_begins();
    cache.set(true, ring);
    cache.set(false, ring);
    assert!(cache.take_to_settle() && !cache.take_to_settle(), "one queue does it");
    cache.flushed(old);
    assert!(cache.unsettled());
    cache.flushed(cache.flush_begins());
    assert!(!cache.unsettled());
}

/// The flush takes one of the places for requests, so there may be one more request than places.
#[test]
fn a_request_without_a_place_waits_for_one_without_polling() {
    for layout in layouts() {
        let image = HeldImage::new(1 << 20);
        let held = Arc::clone(&image.held);
        let mut rig = Rig::new(Arc::new(image), options(), layout);
        rig.device().config_write(32, &[0]);
        for _ in 0..16 {
            rig.submit(&Wanted::new(IN, 0).room(512).indirect());
        }
        assert_eq!(rig.run_once(), Progress::Idle);
        assert_eq!(held.waiting().len(), 16, "the flush and all but one of the requests");
        assert!(!rig.has_work() && !rig.arm(), "waiting for a place is not polling");
        held.release(0);
        assert!(rig.has_work());
        rig.run_once();
        held.release(0);
        rig.run_once();
        assert_eq!(rig.answers().len(), 16);
    }
}

/// All places become free at the end of a run, and then no event comes any more.
#[test]
fn the_cache_is_settled_when_places_become_free_at_last() {
    for quiesces in [false, true] {
        let image = HeldImage::new(1 << 20);
        let held = Arc::clone(&image.held);
        let mut rig = Rig::new(Arc::new(image), options(), layouts()[0]);
        for _ in 0..16 {
            rig.submit(&Wanted::new(IN, 0).room(512).indirect());
        }
        rig.run_once();
        rig.device().config_write(32, &[0]);
        held.release_at_kick();
        if quiesces {
            assert!(!rig.quiesce());
        } else {
            rig.run_once();
        }
        assert_eq!(rig.answers().len(), 16);
        assert_eq!(held.waiting(), ["flush"]);
    }
}
