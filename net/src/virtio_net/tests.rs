//! The device behind its transport, with a socket for a network.

mod control;
mod latency;

use super::*;
use crate::link::SocketLink;
use machine::clock::{Clock, ManualClock};
use machine::inspect::Value;
use proptest::prelude::*;
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;
use virtio::rate_limit::Limit;
use virtio::testing::Buffer;
use virtio::testing::driver::{Completion, Driver, Layout};
use virtio::worker::Rest;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const HEADER: usize = header::SIZE;
const RX: u16 = 0;
const TX: u16 = 1;

fn config() -> NetConfig {
    NetConfig {
        mac: MacAddress::new(MAC).unwrap(),
        mtu: 1500,
        queue_size: 64,
        offload_csum: true,
        offload_tso: true,
        offload_ufo: true,
    }
}

/// A device, a driver for it, and the other ends of its links.
struct Bench {
    driver: Driver,
    links: Vec<Arc<SocketLink>>,
    networks: Vec<File>,
}

/// A device of `pairs` queue pairs, its links, and their other ends.
fn device(pairs: usize, limit: &RateLimiter) -> (Net, Vec<Arc<SocketLink>>, Vec<File>) {
    let (links, networks): (Vec<_>, Vec<_>) = (0..pairs)
        .map(|_| SocketLink::pair().unwrap())
        .map(|(link, network)| (Arc::new(link), File::from(network)))
        .unzip();
    let ends = links.iter().map(|link| Arc::clone(link) as Arc<dyn Link>).collect();
    (Net::new(config(), ends, limit.clone(), limit.clone()).unwrap(), links, networks)
}

impl Bench {
    fn new(pairs: usize, layout: Layout, features: Features) -> Self {
        let clock = Arc::new(ManualClock::default());
        Self::limited(pairs, layout, features, &RateLimiter::unlimited(clock.clone()), clock)
    }

    fn limited(
        pairs: usize,
        layout: Layout,
        features: Features,
        limit: &RateLimiter,
        clock: Arc<ManualClock>,
    ) -> Self {
        let (net, links, networks) = device(pairs, limit);
        let mut driver = Driver::attach_with(clock, Box::new(net));
        driver.initialize(layout, features.bits());
        driver.run();
        Self { driver, links, networks }
    }

    fn usual() -> Self {
        Self::new(1, Layout::SPLIT, Features::all())
    }

    /// The host sends a packet of `length` bytes after its header.
    fn inject(&mut self, length: usize, seed: u8) -> Vec<u8> {
        let packet = packet(length, seed);
        assert_eq!(self.networks[0].write(&packet).unwrap(), packet.len());
        packet
    }

    /// The next packet the host receives.
    fn sent(&mut self) -> Option<Vec<u8>> {
        let mut data = vec![0; 70_000];
        let length = self.networks[0].read(&mut data).ok()?;
        data.truncate(length);
        Some(data)
    }

    fn offer(&mut self, size: u32) {
        self.driver.request(RX, &[], &[size]).expect("there is room");
        self.driver.kick(RX);
    }

    /// The next packet the driver received, and how many buffers it took.
    fn received(&mut self) -> Option<(Vec<u8>, u16)> {
        let first = self.driver.completion(RX)?;
        let mut packet = written(&first);
        let buffers = u16::from_le_bytes([packet[10], packet[11]]);
        for _ in 1..buffers {
            packet.extend(written(&self.driver.completion(RX).expect("all buffers of a packet")));
        }
        packet[10..12].fill(0);
        Some((packet, buffers))
    }

    fn command(&mut self, command: &[u8]) -> u8 {
        let queue = self.networks.len() as u16 * 2;
        let Completion { written, data, .. } = self.driver.call(queue, &[command], &[1]);
        assert_eq!(written, 1);
        data[0]
    }

    fn counter(&self, direction: &str, pair: usize, name: &str) -> u64 {
        self.driver.function.device().inspect()[direction][pair][name].as_u64().unwrap()
    }

    /// Whether the worker would run a handler now.
    fn is_woken(&self) -> bool {
        let sources = self.driver.tasks.iter().flat_map(|task| task.handler.event_sources());
        let mut polled: Vec<_> =
            sources.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
        // SAFETY: the array is as long as it is said to be.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 0) > 0 }
    }
}

fn written(completion: &Completion) -> Vec<u8> {
    completion.data[..completion.written as usize].to_vec()
}

/// A packet with an empty header, of `length` bytes after it.
fn packet(length: usize, seed: u8) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet.extend((0..length).map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed)));
    packet
}

virtio::conformance!(conformance, || {
    let limit = RateLimiter::unlimited(Arc::new(ManualClock::default()));
    let (net, links, networks) = device(3, &limit);
    // The network stays for the length of the test.
    std::mem::forget((links, networks));
    Box::new(net)
});

#[test]
fn the_configuration_tells_what_the_device_is() {
    let mut bench = Bench::new(3, Layout::SPLIT, Features::all());
    let mut space = [0; 12];
    bench.driver.read_config(0, &mut space);
    assert_eq!(space[..6], MAC);
    assert_eq!(space[6..], [1, 0, 3, 0, 0xdc, 0x05], "status, pairs, MTU");
    let offered = Features::from_bits_retain(bench.driver.offered_features());
    assert!(offered.contains(Features::MQ | Features::HOST_USO | Features::GUEST_USO4 | Features::MRG_RXBUF));
    assert_eq!(bench.links[0].current_offloads(), Features::GUEST_OFFLOADS);
    bench.driver.reset();
    assert_eq!(bench.links[0].current_offloads(), Features::empty(), "until a driver takes them");
}

#[test]
fn offloads_that_are_off_or_that_the_link_lacks_are_not_offered() {
    let limit = RateLimiter::unlimited(Arc::new(ManualClock::default()));
    let (mut net, ..) = device(1, &limit);
    net.config.offload_tso = false;
    net.config.offload_ufo = false;
    let offered = Features::from_bits_retain(net.features());
    assert!(offered.contains(Features::CSUM | Features::GUEST_CSUM));
    let segmentation = Features::GUEST_LARGE | Features::HOST_TSO4 | Features::HOST_UFO | Features::HOST_USO;
    assert!(!offered.intersects(segmentation | Features::MQ));
    let tcp = Features::HOST_TSO4 | Features::HOST_TSO6 | Features::GUEST_TSO4 | Features::GUEST_TSO6;
    let udp = Features::HOST_UFO | Features::HOST_USO | Features::GUEST_UFO | Features::GUEST_USO4;
    for (of_tcp, of_udp, there, missing) in [(true, false, tcp, udp), (false, true, udp, tcp)] {
        (net.config.offload_tso, net.config.offload_ufo) = (of_tcp, of_udp);
        let offered = Features::from_bits_retain(net.features());
        assert!(offered.contains(there) && !offered.intersects(missing), "{offered:?}");
    }
    net.config.offload_csum = false;
    net.config.offload_tso = true;
    let offered = Features::from_bits_retain(net.features());
    assert!(!offered.intersects(segmentation | Features::CSUM | Features::GUEST_CSUM), "they need checksums");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn received_packets_are_spread_over_buffers_of_any_size(
        layout in 0..8_usize,
        buffers in prop::collection::vec(12..700_u32, 40..60),
        packets in prop::collection::vec(14..1500_usize, 1..12),
    ) {
        let mut bench = Bench::new(1, Layout::all().nth(layout).unwrap(), Features::all());
        for &size in &buffers {
            bench.offer(size);
        }
        let mut left: u64 = buffers.iter().map(|&size| u64::from(size)).sum();
        for (seed, &length) in packets.iter().enumerate() {
            if left < 2 * 1512 {
                break;
            }
            let packet = bench.inject(length, seed as u8);
            bench.driver.run();
            let (received, count) = bench.received().expect("the packet");
            prop_assert!(received == packet, "a packet arrives as it was sent");
            prop_assert!(count > 0);
            // What the buffers used have no room left for is lost, at most one buffer's for each packet.
            left -= packet.len() as u64 + 700;
        }
        prop_assert_eq!(bench.counter("receive", 0, "dropped"), 0);
    }

    #[test]
    fn sent_packets_may_be_split_anywhere(
        layout in 0..8_usize,
        lengths in prop::collection::vec(1..400_usize, 1..20),
    ) {
        let mut bench = Bench::new(1, Layout::all().nth(layout).unwrap(), Features::all());
        let total = lengths.iter().sum::<usize>().max(HEADER + 14);
        let packet = packet(total - HEADER, 3);
        let mut rest = &packet[..];
        let mut parts = Vec::new();
        for &length in &lengths {
            let (part, after) = rest.split_at(length.min(rest.len()));
            parts.push(part);
            rest = after;
        }
        parts.push(rest);
        parts.retain(|part| !part.is_empty());
        let completion = bench.driver.call(TX, &parts, &[]);
        prop_assert_eq!(completion.written, 0);
        prop_assert_eq!(bench.sent(), Some(packet));
    }
}

#[test]
fn without_mergeable_buffers_a_packet_has_one_and_a_small_one_waits_for_a_small_packet() {
    let mut bench = Bench::new(1, Layout::SPLIT, Features::all() - Features::MRG_RXBUF);
    bench.offer(100);
    bench.offer(2000);
    bench.inject(500, 1);
    let small = bench.inject(80, 2);
    let large = bench.inject(900, 3);
    bench.driver.run();
    assert_eq!(bench.received(), Some((small, 1)));
    assert_eq!(bench.received(), Some((large, 1)));
    assert_eq!(bench.received(), None);
    assert_eq!(bench.counter("receive", 0, "dropped"), 1, "the one too large");
}

#[test]
fn packets_wait_in_the_link_for_buffers_and_keep_nobody_awake() {
    let mut bench = Bench::usual();
    let first = bench.inject(100, 1);
    let second = bench.inject(200, 2);
    bench.driver.run();
    assert!(!bench.is_woken(), "without buffers, a packet is no reason to run");
    for _ in 0..2 {
        bench.offer(1600);
    }
    bench.driver.run();
    assert_eq!(bench.received().unwrap().0, first);
    assert_eq!(bench.received().unwrap().0, second);
    bench.offer(1600);
    bench.driver.run();
    assert!(!bench.is_woken());
    let third = bench.inject(300, 3);
    assert!(bench.is_woken(), "with buffers, it is");
    bench.driver.wait();
    assert_eq!(bench.received().unwrap().0, third);
}

#[test]
fn a_packet_cut_short_and_buffers_too_small_for_a_header_are_counted() {
    let mut bench = Bench::usual();
    for size in [11, 1600, 5, 1600] {
        bench.offer(size);
    }
    // Not a whole frame.
    bench.networks[0].write_all(&[0; 20]).unwrap();
    let good = bench.inject(60, 1);
    let next = bench.inject(61, 2);
    bench.driver.run();
    let unused = bench.driver.completion(RX).unwrap();
    assert_eq!((unused.written, unused.data.len()), (0, 11));
    assert_eq!(bench.received().unwrap().0, good);
    let unused = bench.driver.completion(RX).unwrap();
    assert_eq!((unused.written, unused.data.len()), (0, 5));
    assert_eq!(bench.received().unwrap().0, next);
    assert_eq!(bench.counter("receive", 0, "malformed"), 3);
    assert_eq!(bench.counter("receive", 0, "packets"), 2);
    assert_eq!(bench.counter("receive", 0, "bytes"), 121);
}

#[test]
fn a_buffer_of_too_many_segments_is_given_back() {
    // 1024 descriptors, in an indirect table as large as any.
    let mut bench = Bench::usual();
    let base = bench.driver.allocate(4096);
    let tiny: Vec<_> = (0..1024).map(|at| Buffer { address: base + at, len: 1, writable: true }).collect();
    bench.driver.submit(RX, &tiny).unwrap();
    bench.offer(1600);
    let packet = bench.inject(600, 1);
    bench.driver.run();
    assert_eq!(bench.driver.completion(RX).unwrap().written, 0);
    assert_eq!(bench.received().unwrap().0, packet);
    let mut parts: Vec<_> = tiny.iter().map(|buffer| Buffer { writable: false, ..*buffer }).collect();
    parts[0].len = 12;
    bench.driver.submit(TX, &parts).unwrap();
    bench.driver.kick(TX);
    bench.driver.run();
    assert!(bench.driver.completion(TX).is_some());
}

#[test]
fn hostile_packets_are_counted_and_the_next_one_goes_out() {
    let mut bench = Bench::new(1, Layout::PACKED, Features::all() - Features::HOST_UFO);
    let mut unknown = packet(100, 0);
    unknown[1] = 2;
    let mut not_negotiated = packet(100, 0);
    (not_negotiated[1], not_negotiated[4]) = (3, 100);
    let huge = vec![0; 70_000];
    for bad in [&[][..], &[0; 11], &[0; 12], &[0; 25], &huge, &unknown, &not_negotiated] {
        let parts: &[&[u8]] = if bad.is_empty() { &[] } else { &[bad] };
        // A packet of nothing but room for an answer.
        let completion = bench.driver.call(TX, parts, &[4]);
        assert_eq!(completion.written, 0);
    }
    assert_eq!(bench.counter("transmit", 0, "malformed"), 7);
    assert_eq!(bench.sent(), None);
    let mut good = packet(60, 9);
    (good[0], good[10]) = (0xff, 0xff);
    bench.driver.call(TX, &[&good], &[]);
    (good[0], good[10]) = (1, 0);
    assert_eq!(bench.sent(), Some(good), "with a header that was put right");
}

#[test]
fn a_full_link_makes_packets_wait_in_order_and_none_is_lost() {
    let mut bench = Bench::usual();
    let mut next = 0;
    let mut expected = 0;
    for _ in 0..2000 {
        while bench.driver.request(TX, &[&packet(1400, next)], &[]).is_some() {
            next = next.wrapping_add(1);
        }
        bench.driver.kick(TX);
        bench.driver.run();
        while bench.driver.completion(TX).is_some() {}
        if bench.driver.ring(TX).in_flight() > 32 {
            break;
        }
    }
    assert!(bench.driver.ring(TX).in_flight() > 32, "the link is full");
    assert!(!bench.is_woken(), "a full link keeps nobody awake");
    // The host reads on.
    while bench.driver.ring(TX).in_flight() > 0 {
        let packet = bench.sent().expect("a packet");
        assert_eq!(packet, super::tests::packet(1400, expected));
        expected = expected.wrapping_add(1);
        if bench.is_woken() {
            bench.driver.run();
        }
        while bench.driver.completion(TX).is_some() {}
    }
    while let Some(packet) = bench.sent() {
        assert_eq!(packet, super::tests::packet(1400, expected));
        expected = expected.wrapping_add(1);
    }
    assert_eq!(expected, next);
    assert_eq!(bench.counter("transmit", 0, "dropped"), 0);
}

#[test]
fn rates_are_limited_both_ways() {
    let clock = Arc::new(ManualClock::default());
    let bytes = Limit { size: 10_000, refill_time: Duration::from_secs(1), one_time_burst: 0 };
    let limit = RateLimiter::new(Some(bytes), None, clock.clone());
    let mut bench = Bench::limited(1, Layout::SPLIT, Features::all(), &limit, clock.clone());
    for _ in 0..40 {
        bench.driver.request(TX, &[&packet(988, 0)], &[]).unwrap();
    }
    bench.driver.kick(TX);
    assert!(matches!(bench.driver.run(), Rest::Until(_)));
    let count = |bench: &mut Bench| std::iter::from_fn(|| bench.driver.completion(TX)).count();
    assert_eq!(count(&mut bench), 10, "a bucketful at once");
    bench.driver.run_to_the_end();
    assert_eq!(count(&mut bench), 30);
    let seconds = clock.monotonic_ns() as f64 / 1e9;
    assert!((2.9..3.1).contains(&seconds), "{seconds} s for 30 kB");
    while bench.sent().is_some() {}

    let start = clock.monotonic_ns();
    for _ in 0..40 {
        bench.offer(1000);
    }
    for _ in 0..40 {
        bench.inject(988, 0);
    }
    bench.driver.run_to_the_end();
    assert_eq!(std::iter::from_fn(|| bench.received()).count(), 40);
    let seconds = (clock.monotonic_ns() - start) as f64 / 1e9;
    assert!((3.7..4.1).contains(&seconds), "{seconds} s for 40 kB");
}

#[test]
fn a_network_that_is_gone_keeps_nobody_awake() {
    let mut bench = Bench::usual();
    bench.offer(1600);
    bench.driver.run();
    bench.networks.clear();
    assert!(bench.is_woken());
    bench.driver.run();
    assert!(!bench.is_woken());
    assert_eq!(bench.counter("receive", 0, "link_errors"), 1);
    bench.driver.call(TX, &[&packet(100, 0)], &[]);
    assert_eq!(bench.counter("transmit", 0, "link_errors"), 1);
}

#[test]
fn buffers_in_stock_survive_a_pause_and_a_reset() {
    for layout in [Layout::SPLIT, Layout::PACKED] {
        let mut bench = Bench::new(1, layout, Features::all());
        for _ in 0..20 {
            bench.offer(100);
        }
        let before = bench.inject(150, 1);
        bench.driver.run();
        assert_eq!(bench.received().unwrap(), (before, 2));
        assert!(bench.driver.stop());
        bench.driver.start();
        let after = bench.inject(250, 2);
        bench.driver.run();
        assert_eq!(bench.received().unwrap(), (after, 3));

        bench.driver.initialize(layout, u64::MAX);
        bench.offer(1600);
        let fresh = bench.inject(350, 3);
        bench.driver.run();
        assert_eq!(bench.received().unwrap(), (fresh, 1));
    }
}

#[test]
fn interrupts_come_once_for_a_batch() {
    let mut bench = Bench::usual();
    for _ in 0..10 {
        bench.offer(1600);
    }
    bench.driver.run();
    let before = bench.driver.interrupts(RX);
    for seed in 0..10 {
        bench.inject(100, seed);
    }
    bench.driver.run();
    assert_eq!(bench.driver.interrupts(RX) - before, 1);
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let limit = RateLimiter::unlimited(Arc::new(ManualClock::default()));
    let (net, ..) = device(2, &limit);
    let good = net.save().unwrap();
    let (mut other, ..) = device(1, &limit);
    let refused = |net: &mut Net, field: &str, value: Value| {
        let mut state = good.clone();
        state.fields[field] = value;
        net.restore(&state).unwrap_err().to_string()
    };
    assert!(
        refused(&mut other, "active_pairs", 2.into()).contains("uses 2 queue pairs, and this device has 1")
    );
    assert!(refused(&mut other, "active_pairs", 0.into()).contains("0 queue pairs"));
    assert!(refused(&mut other, "offloads", (1 << 20).into()).contains("0x100000"));
    assert!(refused(&mut other, "mac", "01:00:00:00:00:00".into()).contains("multicast"));
    other.restore(&good).unwrap();
}
