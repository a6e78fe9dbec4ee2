//! Taps of the host. Needs `/dev/net/tun` and the capability `CAP_NET_ADMIN`.

use machine::clock::ManualClock;
use net::features::Features;
use net::link::{Ipv4Setting, Link, Tap, TapConfig, TapError};
use net::virtio_net::{Net, NetConfig};
use std::io::Read;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use virtio::chain::Segment;
use virtio::rate_limit::RateLimiter;
use virtio::testing::driver::{Driver, Layout};

fn sys(tap: &Tap, file: &str) -> String {
    let path = format!("/sys/class/net/{}/{file}", tap.name());
    let mut text = String::new();
    std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}")).read_to_string(&mut text).unwrap();
    text.trim().to_owned()
}

fn open(config: TapConfig) -> Tap {
    Tap::open(config).unwrap_or_else(|error| panic!("this test needs taps: {error}"))
}

/// Receives a packet, waiting for it.
fn receive(link: &dyn Link, buffer: &mut [u8]) -> usize {
    let segments = [Segment::new(buffer.as_mut_ptr(), buffer.len())];
    let mut poll = libc::pollfd { fd: link.descriptor(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, and a buffer that lives through the call.
    unsafe {
        assert_eq!(libc::poll(&mut poll, 1, 10_000), 1, "a packet arrives");
        link.receive(&segments).unwrap()
    }
}

#[test]
fn a_tap_is_made_set_up_and_carries_packets_both_ways() {
    let address = Ipv4Addr::new(10, 231, 77, 1);
    let tap = open(TapConfig {
        pairs: 1,
        mtu: Some(1400),
        host_mac: Some("52:54:00:77:77:77".parse().unwrap()),
        address: Some(Ipv4Setting { address, mask: Ipv4Addr::new(255, 255, 255, 0) }),
        ..TapConfig::default()
    });
    assert!(tap.name().starts_with("vmtap"), "{}", tap.name());
    assert_eq!(tap.mtu(), 1400);
    assert_eq!(sys(&tap, "mtu"), "1400");
    assert_eq!(sys(&tap, "address"), "52:54:00:77:77:77");
    let flags = u32::from_str_radix(sys(&tap, "flags").strip_prefix("0x").unwrap(), 16).unwrap();
    assert_eq!(flags & 1, 1, "it is up");

    let links = tap.links();
    let link = &*links[0];
    assert!(link.offloads().contains(Features::GUEST_CSUM | Features::GUEST_TSO4 | Features::GUEST_TSO6));
    link.set_offloads(link.offloads()).unwrap();
    link.set_offloads(Features::GUEST_USO4).unwrap();

    // A datagram to an address of the network: the host asks for its MAC address first (ARP).
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.send_to(b"hello", (Ipv4Addr::new(10, 231, 77, 2), 9)).unwrap();
    let mut buffer = [0; 2048];
    let question = loop {
        let length = receive(link, &mut buffer);
        if buffer[12 + 12..12 + 14] == [8, 6] {
            break &buffer[12..length];
        }
    };
    assert_eq!(&question[14 + 24..14 + 28], &[10, 231, 77, 2]);

    // Answers, and gets the datagram.
    let mut answer = vec![0; 12];
    answer.extend_from_slice(&question[6..12]);
    answer.extend_from_slice(&[0x52, 0x54, 0, 1, 2, 3, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    answer.extend_from_slice(&[0x52, 0x54, 0, 1, 2, 3, 10, 231, 77, 2]);
    answer.extend_from_slice(&question[6..12]);
    answer.extend_from_slice(&[10, 231, 77, 1]);
    // SAFETY: the buffer lives through the call.
    unsafe { link.send(&[Segment::new(answer.as_mut_ptr(), answer.len())]) }.unwrap();
    loop {
        let length = receive(link, &mut buffer);
        if buffer[..length].ends_with(b"hello") {
            break;
        }
    }
}

#[test]
fn an_existing_tap_is_opened_by_name_while_free_and_by_file() {
    let name = format!("vt{}", std::process::id());
    let named = |pairs| TapConfig { name: Some(name.clone()), pairs, ..TapConfig::default() };
    let single = open(named(1));
    assert!(matches!(Tap::open(named(1)), Err(TapError::Busy { .. })));
    assert!(matches!(Tap::open(named(2)), Err(TapError::SingleQueue { .. })));

    // By a copy of its file, which is how a manager passes it.
    // SAFETY: a copy of an open descriptor, owned from here on.
    let copy: OwnedFd = unsafe { std::os::fd::BorrowedFd::borrow_raw(single.links()[0].descriptor()) }
        .try_clone_to_owned()
        .unwrap();
    drop(single);
    let adopted = open(TapConfig { files: vec![copy], ..TapConfig::default() });
    assert_eq!(adopted.name(), name);
    drop(adopted);

    let several = open(named(3));
    assert_eq!(several.links().len(), 3);
    for link in several.links() {
        link.set_enabled(false).unwrap();
        link.set_enabled(false).unwrap();
        link.set_enabled(true).unwrap();
        link.set_enabled(true).unwrap();
    }
    // A queue pair more, of a tap that is open for several.
    drop(open(named(1)));
}

/// A device on a tap of two queue pairs, one of which the driver takes into use and out again: the kernel disconnects
/// an unused pair, on which nothing may be waited for then.
#[test]
fn a_device_uses_the_queue_pairs_its_driver_asks_for() {
    let address = Ipv4Addr::new(10, 231, 78, 1);
    let mask = Ipv4Addr::new(255, 255, 255, 0);
    let tap =
        open(TapConfig { pairs: 2, address: Some(Ipv4Setting { address, mask }), ..TapConfig::default() });
    let config = NetConfig {
        mac: "52:54:00:78:78:78".parse().unwrap(),
        mtu: tap.mtu(),
        queue_size: 64,
        offload_csum: true,
        offload_tso: true,
        offload_ufo: true,
    };
    let unlimited = RateLimiter::unlimited(Arc::new(ManualClock::default()));
    let net = Net::new(config, tap.links(), unlimited.clone(), unlimited).unwrap();
    let handle = net.handle();
    let mut driver = Driver::new(Box::new(net), Layout::PACKED);
    for queue in [0, 2] {
        for _ in 0..60 {
            driver.request(queue, &[], &[2048]).unwrap();
        }
        driver.kick(queue);
    }
    let socket = UdpSocket::bind((address, 0)).unwrap();
    for pairs in [2, 1, 2, 1] {
        assert_eq!(driver.call(4, &[&[4, 0, pairs, 0]], &[1]).data, [0]);
        socket.send_to(b"hello", (Ipv4Addr::new(10, 231, 78, 2), 9)).unwrap();
        driver.run();
        for task in &driver.tasks {
            let failed = &task.handler.inspect()["link_failed"];
            assert!(failed.is_null() || failed == false, "{}", task.handler.inspect());
        }
    }
    // At least the host's question for the other's address (ARP) came, by either pair.
    let mut received = 0;
    loop {
        for queue in [0, 2] {
            while let Some(completion) = driver.completion(queue) {
                assert!(completion.written >= 12 + 14);
                received += 1;
            }
        }
        if received > 0 {
            break;
        }
        driver.wait();
    }
    // The guest's own packets go out, and those that ask for the impossible are refused by one of the two.
    let mut packet = vec![0; 12 + 60];
    packet[12..24].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x78, 0x78, 0x78]);
    driver.call(1, &[&packet], &[]);
    (packet[0], packet[6], packet[8]) = (1, 0xff, 0xff);
    driver.call(1, &[&packet], &[]);
    let counters = driver.function.device().inspect()["transmit"][0].clone();
    assert_eq!(
        (counters["packets"].as_u64(), counters["link_errors"].as_u64()),
        (Some(1), Some(1)),
        "{counters}"
    );
    assert!(handle.is_link_up());
    driver.reset();
}
