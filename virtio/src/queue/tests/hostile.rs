//! Drivers that misbehave, one way at a time and at random.

use super::*;

proptest! {
    #[test]
    fn no_ring_contents_upset_a_queue(
        bytes in prop::collection::vec(any::<u8>(), 0x400), packed: bool, event_idx: bool, available: u16
    ) {
        let mut pair = Pair::new(8, features(packed, event_idx));
        pair.memory.write_slice(&bytes, GuestAddress(RING)).unwrap();
        if !packed {
            let index = GuestAddress(pair.driver.state().driver_area + 2);
            pair.memory.write_obj(available % 12, index).unwrap();
        }
        let mut popped = 0;
        while let Ok(true) = pair.pop() {
            popped += 1;
            prop_assert!(pair.chain.readable_len() + pair.chain.writable_len() <= 1 << 32);
            if popped % 2 == 0 {
                pair.device.push(pair.chain.token(), 1);
                pair.device.notify();
            }
            prop_assert!(pair.device.in_flight() <= 8);
            if popped > 100 {
                break;
            }
        }
    }
}

/// A name, the descriptors, and whether an error is the one they cause.
type Case = (&'static str, &'static [(u64, u32, u16)], fn(QueueError) -> bool);

#[test]
fn malformed_chains_break_the_queue() {
    for layout in layouts() {
        let cases: &[Case] = &[
            ("past RAM", &[(RAM as u64, 1, 0)], |e| matches!(e, QueueError::Buffer { .. })),
            ("end past RAM", &[(RAM as u64 - 1, 2, WRITE)], |e| matches!(e, QueueError::Buffer { .. })),
            ("wrapping", &[(u64::MAX - 1, 16, 0)], |e| matches!(e, QueueError::Buffer { .. })),
            ("huge", &[(DATA, u32::MAX, WRITE)], |e| matches!(e, QueueError::Buffer { .. })),
            ("readable last", &[(DATA, 1, WRITE), (DATA, 1, 0)], |e| e == QueueError::ReadableAfterWritable),
            ("empty table", &[(TABLES, 0, INDIRECT)], |e| matches!(e, QueueError::IndirectTable { .. })),
            ("odd table", &[(TABLES, 24, INDIRECT)], |e| matches!(e, QueueError::IndirectTable { .. })),
            ("table past RAM", &[(RAM as u64, 16, INDIRECT)], |e| {
                matches!(e, QueueError::IndirectTable { .. })
            }),
            ("table not last", &[(TABLES, 16, INDIRECT), (DATA, 1, 0)], |e| e == QueueError::Indirect),
        ];
        for (name, descriptors, expected) in cases {
            let error = Pair::new(8, layout).pop_raw(descriptors);
            assert!(expected(error), "{name}: {error}");
        }
        // A table in a table.
        let mut pair = Pair::new(8, layout);
        let table: [u64; 2] =
            [TABLES, if layout.contains(Features::RING_PACKED) { 4 << 48 } else { 4 << 32 } | 16];
        pair.memory.write_obj(table, GuestAddress(TABLES)).unwrap();
        assert_eq!(pair.pop_raw(&[(TABLES, 16, INDIRECT)]), QueueError::Indirect);
        // A table without the feature.
        let mut pair = Pair::new(8, layout - Features::INDIRECT_DESC);
        assert_eq!(pair.pop_raw(&[(TABLES, 16, INDIRECT)]), QueueError::Indirect);
    }
}

#[test]
fn a_chain_of_more_than_4_gib_breaks_the_queue() {
    // One region of address space, of which nothing is touched.
    let size = 3 << 30;
    for layout in layouts() {
        let memory = memory(size);
        let mut driver = DriverRing::new(&memory, RING, 8, layout);
        let events = Arc::new(Events::default());
        let mut device = Queue::new(&driver.state(), layout.bits(), memory, events).unwrap();
        let mut chain = Chain::new();
        let half = writable(0x1000_0000, 1 << 31);
        driver.add(&[half, half]).unwrap();
        assert!(device.pop(&mut chain).unwrap());
        assert_eq!(chain.writable_len(), 1 << 32);
        driver.add(&[half, half, writable(0, 1)]).unwrap();
        assert_eq!(device.pop(&mut chain), Err(QueueError::ChainTooLarge));
    }
}

#[test]
fn a_split_chain_cannot_loop_or_leave_its_table() {
    let write = |pair: &Pair, base: u64, index: u64, flags: u64, next: u64| {
        let raw = [DATA, 1 | flags << 32 | next << 48];
        pair.memory.write_obj(raw, GuestAddress(base + index * 16)).unwrap();
    };
    let layout = features(false, true);
    // The descriptors of a new ring are handed out from 0.
    let mut pair = Pair::new(8, layout);
    pair.driver.add(&[readable(DATA, 1), readable(DATA, 1)]).unwrap();
    let base = pair.driver.state().descriptor_area;
    for index in 0..8 {
        write(&pair, base, index, NEXT.into(), (index + 1) % 8);
    }
    assert_eq!(pair.pop(), Err(QueueError::ChainTooLong));

    let mut pair = Pair::new(8, layout);
    pair.driver.add(&[readable(DATA, 1)]).unwrap();
    for index in 0..8 {
        write(&pair, base, index, NEXT.into(), 8);
    }
    assert_eq!(pair.pop(), Err(QueueError::DescriptorIndex { index: 8, len: 8 }));

    let mut pair = Pair::new(8, layout);
    write(&pair, TABLES, 0, NEXT.into(), 1);
    write(&pair, TABLES, 1, NEXT.into(), 0);
    assert_eq!(pair.pop_raw(&[(TABLES, 32, INDIRECT)]), QueueError::ChainTooLong);

    let mut pair = Pair::new(8, layout);
    write(&pair, TABLES, 0, NEXT.into(), 2);
    assert_eq!(pair.pop_raw(&[(TABLES, 32, INDIRECT)]), QueueError::DescriptorIndex { index: 2, len: 2 });

    let mut pair = Pair::new(8, layout);
    pair.driver.add(&[readable(DATA, 1)]).unwrap();
    pair.memory.write_obj(8_u16, GuestAddress(pair.driver.state().driver_area + 4)).unwrap();
    assert_eq!(pair.pop(), Err(QueueError::DescriptorIndex { index: 8, len: 8 }));
}

#[test]
fn a_split_available_index_cannot_jump() {
    for (to, ok) in [(8, true), (9, false), (0xffff, false)] {
        let mut pair = Pair::new(8, features(false, false));
        pair.memory.write_obj(to, GuestAddress(pair.driver.state().driver_area + 2)).unwrap();
        let expected = if ok { Ok(true) } else { Err(QueueError::AvailableIndex { from: 0, to, size: 8 }) };
        assert_eq!(pair.pop(), expected);
    }
}

#[test]
fn a_driver_cannot_have_more_in_flight_than_fits() {
    // It names the same descriptor again and again.
    let mut pair = Pair::new(4, features(false, false));
    let index = GuestAddress(pair.driver.state().driver_area + 2);
    for i in 1..=4_u16 {
        pair.memory.write_obj(i, index).unwrap();
        assert!(pair.pop().unwrap());
    }
    pair.memory.write_obj(5_u16, index).unwrap();
    assert_eq!(pair.pop(), Err(QueueError::InFlight));

    // It makes slots available again before they were used.
    let mut pair = Pair::new(4, features(true, false));
    for turn in [1_u16 << 7, 1 << 15] {
        for slot in 0..4 {
            let at = GuestAddress(pair.driver.state().descriptor_area + slot * 16 + 14);
            pair.memory.write_obj(turn, at).unwrap();
            let expected = if turn == 1 << 7 { Ok(true) } else { Err(QueueError::InFlight) };
            assert_eq!(pair.pop(), expected);
            if expected.is_err() {
                return;
            }
        }
    }
}

#[test]
fn a_packed_chain_cannot_be_longer_than_its_ring() {
    let mut pair = Pair::new(4, features(true, false));
    for slot in 0..4 {
        let at = GuestAddress(pair.driver.state().descriptor_area + slot * 16 + 14);
        pair.memory.write_obj(NEXT | 1 << 7, at).unwrap();
    }
    assert_eq!(pair.pop(), Err(QueueError::ChainTooLong));
    let mut pair = Pair::new(4, features(true, false));
    pair.driver.add_raw(&[(TABLES, 16 * 1025, INDIRECT)]);
    assert_eq!(pair.pop(), Err(QueueError::ChainTooLong));
}

#[test]
fn rings_must_lie_aligned_in_ram() {
    let memory = memory(RAM);
    let queue = |state: QueueState, packed| {
        let bits = features(packed, true).bits();
        Queue::new(&state, bits, memory.clone(), Arc::new(Events::default())).err()
    };
    for packed in [false, true] {
        let good = QueueState::new(8, 0x1000, 0x2000, 0x3000, packed);
        assert_eq!(queue(good, packed), None);
        assert_eq!(queue(QueueState { size: 0, ..good }, packed), Some(QueueError::Size(0)));
        assert_eq!(queue(QueueState { size: 0x8001, ..good }, packed), Some(QueueError::Size(0x8001)));
        assert_eq!(queue(QueueState { size: 6, ..good }, packed).is_some(), !packed);
        let end = RAM as u64;
        for bad in [
            QueueState { descriptor_area: 0x1008, ..good },
            QueueState { descriptor_area: end - 0x70, ..good },
            QueueState { descriptor_area: u64::MAX - 15, ..good },
            QueueState { driver_area: 0x2001, ..good },
            QueueState { driver_area: end - 2, ..good },
            QueueState { device_area: 0x3002, ..good },
            QueueState { device_area: end, ..good },
        ] {
            assert!(matches!(queue(bad, packed), Some(QueueError::Ring { .. })), "{bad:x?}");
        }
    }
}
