//! What the driver asks for on the control queue, and what the device tells it of the link.

use super::*;

#[test]
fn commands_change_what_they_name() {
    let mut bench = Bench::new(3, Layout::SPLIT, Features::all());
    assert_eq!(bench.command(&[1, 1, 0x52, 0x54, 0, 9, 9, 9]), 0);
    let mut mac = [0; 6];
    bench.driver.read_config(0, &mut mac);
    assert_eq!(mac, [0x52, 0x54, 0, 9, 9, 9]);

    assert_eq!(bench.command(&[0, 0, 1]), 0, "promiscuous");
    assert_eq!(bench.command(&[0, 4, 1]), 0, "no unicast");
    assert_eq!(bench.driver.function.device().inspect()["receive_mode"], 0x11);
    let table = [1, 0, 1, 0, 0, 0, 0x52, 0x54, 0, 1, 2, 4, 0, 0, 0, 0];
    assert_eq!(bench.command(&table), 0);

    assert!(!bench.links[1].is_enabled());
    assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
    assert_eq!(bench.links.iter().map(|link| link.is_enabled()).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(bench.command(&[4, 0, 1, 0]), 0);
    assert!(!bench.links[1].is_enabled());

    let mut offloads = vec![5, 0];
    offloads.extend_from_slice(&(Features::GUEST_CSUM | Features::GUEST_TSO6).bits().to_le_bytes());
    assert_eq!(bench.command(&offloads), 0);
    assert_eq!(bench.links[0].current_offloads(), Features::GUEST_CSUM | Features::GUEST_TSO6);

    bench.driver.reset();
    bench.driver.read_config(0, &mut mac);
    assert_eq!(mac, MAC, "what a driver sets ends with it");
}

#[test]
fn commands_that_make_no_sense_are_refused() {
    let mut bench = Bench::new(3, Layout::PACKED, Features::all() - Features::GUEST_TSO4);
    let tso4 = Features::GUEST_TSO4.bits().to_le_bytes();
    let offloads = [&[5, 0][..], &tso4].concat();
    for bad in [
        &[0][..],
        &[0, 0],
        &[0, 6, 1],
        &[1, 1, 0x52, 0x54, 0, 9, 9],
        &[1, 1, 1, 0, 0, 0, 0, 1],
        &[1, 1, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0xff, 0xff, 0xff, 0xff],
        &[1, 0, 2, 0, 0, 0, 1, 2, 3, 4, 5, 6],
        &[2, 0, 1, 0],
        &[3, 1],
        &[4, 0, 0, 0],
        &[4, 0, 4, 0],
        &[4, 0, 1],
        &[5, 0, 1],
        &offloads,
        &[0xff, 0xff, 0],
    ] {
        assert_eq!(bench.command(bad), 1, "{bad:x?}");
    }
    // No room for an answer, and nothing but that.
    bench.driver.call(6, &[&[1, 1]], &[]);
    assert_eq!(bench.driver.call(6, &[], &[1]).data, [1]);
    assert_eq!(bench.command(&[0, 1, 1]), 0, "the queue works on");
}

#[test]
fn commands_need_their_features() {
    let without = Features::CTRL_MAC_ADDR
        | Features::CTRL_RX
        | Features::CTRL_RX_EXTRA
        | Features::CTRL_GUEST_OFFLOADS
        | Features::GUEST_ANNOUNCE
        | Features::MQ;
    let mut bench = Bench::new(1, Layout::SPLIT, Features::all() - without);
    for command in [
        &[0, 0, 1][..],
        &[0, 2, 1],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[1, 1, 0x52, 0, 0, 0, 0, 1],
        &[3, 0],
        &[4, 0, 1, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(bench.command(command), 1, "{command:x?}");
    }
}

#[test]
fn without_multiqueue_the_control_queue_follows_the_first_pair() {
    let mut bench = Bench::new(3, Layout::SPLIT, Features::all() - Features::MQ);
    let names: Vec<_> = bench.driver.tasks.iter().map(|task| task.name.clone()).collect();
    assert_eq!(names, ["rx0", "tx0", "ctrl"]);
    let answer = bench.driver.call(2, &[&[0, 0, 1]], &[1]);
    assert_eq!(answer.data, [0]);
}

#[test]
fn queue_pairs_receive_from_when_the_driver_uses_them() {
    let mut bench = Bench::new(2, Layout::SPLIT, Features::all());
    bench.driver.request(2, &[], &[1600]).unwrap();
    bench.driver.kick(2);
    bench.networks[1].write_all(&packet(100, 5)).unwrap();
    bench.driver.run();
    assert_eq!(bench.driver.completion(2), None);
    assert!(!bench.is_woken(), "an unused pair keeps nobody awake");
    bench.driver.request(4, &[&[4, 0, 2, 0]], &[1]).unwrap();
    bench.driver.kick(4);
    bench.driver.run();
    // The command woke the pair.
    if bench.is_woken() {
        bench.driver.run();
    }
    let completion = bench.driver.completion(2).expect("the packet");
    assert_eq!(completion.written, 112);
}

/// The host says so of a pair that was not in use for a moment, when reading and using it crossed.
#[test]
fn a_pair_whose_link_was_detached_is_tried_again_when_it_is_used_again() {
    let mut bench = Bench::new(2, Layout::SPLIT, Features::all());
    assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
    bench.driver.run();
    bench.links[1].fail_receiving(libc::EBADFD);
    bench.driver.request(2, &[], &[1600]).unwrap();
    bench.driver.kick(2);
    bench.networks[1].write_all(&packet(100, 5)).unwrap();
    bench.driver.run();
    assert!(!bench.is_woken(), "it keeps nobody awake");
    assert_eq!(bench.counter("receive", 1, "link_errors"), 1);
    bench.links[1].fail_receiving(0);
    for pairs in [1, 2] {
        assert_eq!(bench.command(&[4, 0, pairs, 0]), 0);
    }
    bench.driver.run();
    assert_eq!(bench.driver.completion(2).expect("the packet").written, 112);
}

/// Each change of a pair takes a lock of the whole host.
#[test]
fn how_often_a_driver_changes_the_hosts_link_is_limited() {
    let clock = Arc::new(ManualClock::default());
    let limit = RateLimiter::unlimited(clock.clone());
    let mut bench = Bench::limited(3, Layout::SPLIT, Features::all(), &limit, clock.clone());
    let toggle = |bench: &mut Bench| {
        // What changes nothing is free.
        [3, 3, 3, 1].map(|pairs| bench.command(&[4, 0, pairs, 0])) == [0; 4]
    };
    let most = (0..1000).take_while(|_| toggle(&mut bench)).count();
    assert_eq!(most, 256, "of four changes each");
    let mut offloads = [5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(bench.command(&offloads), 1);
    bench.driver.reset();
    bench.driver.initialize(Layout::SPLIT, Features::all().bits());
    assert_eq!(bench.command(&[4, 0, 3, 0]), 1, "nor by resetting the device");
    assert_eq!(bench.command(&[0, 0, 1]), 0, "the rest goes on");
    clock.advance(Duration::from_secs(1));
    assert_eq!(bench.command(&[4, 0, 3, 0]), 0);
    offloads[2] = 1 << 1;
    assert_eq!(bench.command(&offloads), 0);
}

#[test]
fn a_cable_pulled_is_told_and_loses_packets_both_ways() {
    let limit = RateLimiter::unlimited(Arc::new(ManualClock::default()));
    let (net, _links, mut networks) = device(1, &limit);
    let handle = net.handle();
    let mut driver = Driver::new(Box::new(net), Layout::SPLIT);
    handle.set_link_up(true);
    assert_eq!(driver.config_interrupts(), 0, "no change");
    handle.set_link_up(false);
    assert_eq!(driver.config_interrupts(), 1);
    let mut status = [0; 2];
    driver.read_config(6, &mut status);
    assert_eq!(status, [0, 0]);
    driver.request(RX, &[], &[1600]).unwrap();
    driver.kick(RX);
    networks[0].write_all(&packet(100, 1)).unwrap();
    driver.call(TX, &[&packet(100, 2)], &[]);
    assert_eq!(driver.completion(RX), None);
    assert!(networks[0].read(&mut [0; 200]).is_err(), "nothing came");
    handle.set_link_up(true);
    driver.read_config(6, &mut status);
    assert_eq!(status, [1, 0]);
    networks[0].write_all(&packet(100, 3)).unwrap();
    driver.run();
    assert_eq!(written(&driver.completion(RX).unwrap())[HEADER..], packet(100, 3)[HEADER..]);
}

#[test]
fn the_driver_is_asked_to_announce_until_it_acknowledges() {
    let limit = RateLimiter::unlimited(Arc::new(ManualClock::default()));
    let (net, _links, _networks) = device(1, &limit);
    let handle = net.handle();
    let mut driver = Driver::new(Box::new(net), Layout::SPLIT);
    handle.announce();
    assert_eq!(driver.config_interrupts(), 1);
    let mut status = [0; 2];
    driver.read_config(6, &mut status);
    assert_eq!(status, [3, 0]);
    assert_eq!(driver.call(2, &[&[3, 0]], &[1]).data, [0]);
    driver.read_config(6, &mut status);
    assert_eq!(status, [1, 0]);
    assert_eq!(driver.config_interrupts(), 2);
}
