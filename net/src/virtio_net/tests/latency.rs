//! How long frames are said to take.

use super::*;
use crate::link::SocketLink;
use std::io;
use std::os::fd::RawFd;
use virtio::chain::Segment;

/// What a frame takes the link, in nanoseconds.
const FRAME: u64 = 1000;

/// A link that takes its time.
struct SlowLink {
    link: SocketLink,
    clock: Arc<ManualClock>,
}

impl SlowLink {
    fn passed(&self, result: io::Result<usize>) -> io::Result<usize> {
        if result.is_ok() {
            self.clock.advance(Duration::from_nanos(FRAME));
        }
        result
    }
}

impl Link for SlowLink {
    unsafe fn receive(&self, into: &[Segment]) -> io::Result<usize> {
        // SAFETY: passed on from the caller.
        self.passed(unsafe { self.link.receive(into) })
    }

    unsafe fn send(&self, from: &[Segment]) -> io::Result<usize> {
        // SAFETY: passed on from the caller.
        self.passed(unsafe { self.link.send(from) })
    }

    fn descriptor(&self) -> RawFd {
        self.link.descriptor()
    }

    fn offloads(&self) -> Features {
        self.link.offloads()
    }

    fn set_offloads(&self, offloads: Features) -> io::Result<()> {
        self.link.set_offloads(offloads)
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        self.link.set_enabled(enabled)
    }
}

fn bench(features: Features) -> Bench {
    let clock = Arc::new(ManualClock::default());
    let (link, network) = SocketLink::pair().unwrap();
    let link = Arc::new(SlowLink { link, clock: clock.clone() });
    let limit = RateLimiter::unlimited(clock.clone());
    let net = Net::new(config(), vec![link], limit.clone(), limit).unwrap();
    let mut driver = Driver::attach_with(clock, Box::new(net));
    driver.initialize(Layout::SPLIT, features.bits());
    driver.run();
    Bench { driver, links: Vec::new(), networks: vec![File::from(network)] }
}

/// How many frames of a queue were timed, and how long the shortest and the longest took.
fn told(bench: &Bench, queue: u16) -> (u64, u64, u64) {
    let latency = bench.driver.latency(queue);
    (latency.count, latency.min_ns, latency.max_ns)
}

#[test]
fn frames_that_are_sent_count_from_when_their_batch_is_taken() {
    let mut bench = bench(Features::all());
    for batch in [3, 1] {
        for _ in 0..batch {
            bench.driver.request(TX, &[&packet(64, 0)], &[]).unwrap();
        }
        bench.driver.clock.advance(Duration::from_secs(1));
        bench.driver.kick(TX);
        bench.driver.run();
    }
    assert_eq!(told(&bench, TX), (4, FRAME, 3 * FRAME));
    assert_eq!(told(&bench, RX), (0, 0, 0));
}

#[test]
fn a_frame_that_a_full_link_has_no_room_for_counts_from_when_it_is_tried_again() {
    let mut bench = bench(Features::all());
    let mut sent = 0;
    // Each fills one turn of the queue, as long as there is room.
    while told(&bench, TX).0 == sent {
        bench.driver.request(TX, &[&packet(1400, 0)], &[]).unwrap();
        bench.driver.kick(TX);
        bench.driver.run();
        if bench.driver.completion(TX).is_none() {
            break;
        }
        sent += 1;
    }
    assert_eq!(told(&bench, TX), (sent, FRAME, FRAME));
    bench.driver.clock.advance(Duration::from_secs(1));
    while bench.sent().is_some() {}
    bench.driver.run();
    assert_eq!(told(&bench, TX), (sent + 1, FRAME, FRAME));
}

#[test]
fn buffers_count_from_when_their_frames_are_read_and_not_while_they_wait() {
    // Frames in one buffer or several, of which those that are not needed are held for the next.
    for features in [Features::all(), Features::all() - Features::MRG_RXBUF - Features::GUEST_LARGE] {
        let mut bench = bench(features);
        for _ in 0..6 {
            bench.offer(1600);
        }
        bench.driver.run();
        assert_eq!(told(&bench, RX), (0, 0, 0), "there was no frame");
        for batch in [2, 1] {
            bench.driver.clock.advance(Duration::from_secs(1));
            (0..batch).for_each(|seed| drop(bench.inject(100, seed)));
            bench.driver.run();
        }
        assert_eq!(told(&bench, RX), (3, FRAME, 2 * FRAME));
        // Going back to the ring and being taken from it again is nothing that was asked for.
        bench.driver.stop();
        bench.driver.start();
        bench.driver.clock.advance(Duration::from_secs(1));
        bench.inject(100, 9);
        bench.driver.run();
        assert_eq!(told(&bench, RX), (4, FRAME, 2 * FRAME));
    }
}
