//! The transport as its driver sees it, with the plainest device behind it.

mod odd;
mod timing;

use super::common::register::*;
use super::layout::{COMMON_SIZE, DEVICE, MSIX_TABLE, SHARED_MEMORY_BAR, structure};
use super::*;
use crate::testing::{Driver, DriverRing, Echo, Layout};
use machine::inspect::{Inspect, Value, json};
use machine::memory::{Bytes, GuestAddress};
use machine::state::{Saved, SavedState, StateError};
use pci::bar::BarKind;
use pci::function::Function;
use pci::msix::NO_VECTOR;

crate::conformance!(echo, || Box::new(Echo::new()));
crate::conformance!(echo_with_single_handler, || Box::new(Echo::with_single_handler()));

fn attached() -> Driver {
    Driver::attach(Box::new(Echo::new()))
}

fn ready(layout: Layout) -> Driver {
    Driver::new(Box::new(Echo::new()), layout)
}

/// Walks the capability list as a driver does, by configuration space alone: type, id, BAR, offset, length, and where it is.
fn structures(driver: &mut Driver) -> Vec<(u8, u8, u8, u64, u64, u16)> {
    let mut read = |at: u16, len: usize| {
        let mut data = [0; 4];
        driver.function.config_read(at, &mut data[..len]);
        u64::from(u32::from_le_bytes(data))
    };
    let mut found = Vec::new();
    let mut at = read(0x34, 1) as u16;
    while at != 0 {
        if read(at, 1) == 9 {
            let kind = read(at + 3, 1) as u8;
            assert!(read(at + 2, 1) >= 16);
            let high =
                if kind == structure::SHARED_MEMORY { (read(at + 16, 4), read(at + 20, 4)) } else { (0, 0) };
            let offset = read(at + 8, 4) | high.0 << 32;
            let len = read(at + 12, 4) | high.1 << 32;
            found.push((kind, read(at + 5, 1) as u8, read(at + 4, 1) as u8, offset, len, at));
        }
        at = read(at + 1, 1) as u16;
    }
    found
}

#[test]
fn a_driver_finds_the_structures() {
    let mut driver = attached();
    assert_eq!(driver.function.config().dword(0), 0x106f_1af4);
    let mut found: Vec<_> =
        structures(&mut driver).into_iter().map(|(kind, _, bar, at, len, _)| (kind, bar, at, len)).collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            (structure::COMMON, 0, 0, 64),
            (structure::NOTIFY, 0, 0x3000, 8),
            (structure::ISR, 0, 0x1000, 1),
            (structure::DEVICE, 0, 0x2000, 0x1000),
            (structure::PCI, 0, 0, 0),
        ]
    );
    let bars: Vec<_> = driver.function.config().bars().map(|bar| (bar.number, bar.kind, bar.size)).collect();
    assert_eq!(bars, [(0, BarKind::Memory64 { prefetchable: false }, 0x1_0000)]);
    assert_eq!(
        driver.function.config().msix().unwrap().vectors(),
        3,
        "one for each queue, one for the configuration"
    );
}

#[test]
fn requests_are_answered_in_every_layout() {
    for layout in Layout::all() {
        let mut driver = ready(layout);
        for i in 0..300_u32 {
            let queue = (i % 2) as u16;
            let before = driver.interrupts(queue);
            let completion = driver.call(queue, &[&i.to_le_bytes(), &[7; 3]], &[2, 5]);
            assert_eq!(completion.written, 7);
            assert_eq!(completion.data[..4], i.to_le_bytes());
            assert_eq!(completion.data[4..], [7; 3]);
            assert_eq!(driver.interrupts(queue), before + 1, "{layout:?}");
        }
    }
}

#[test]
fn only_offered_features_are_accepted() {
    let offered = attached().offered_features();
    let version_1 = Features::VERSION_1.bits();
    for (features, agreed) in [
        (offered, true),
        (version_1, true),
        (0, false),
        (offered & !version_1, false),
        (offered | 1 << 63, false),
        (offered | 2, false),
        (offered | Features::IN_ORDER.bits(), false),
    ] {
        let mut driver = attached();
        driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
        driver.accept_features(features);
        driver.set_status(status::FEATURES_OK);
        assert_eq!(driver.status() & status::FEATURES_OK != 0, agreed, "{features:#x}");
        driver.accept_features(version_1);
        driver.write_common(DRIVER_FEATURE_SELECT, 4, 0);
        let still = if agreed { features & 0xffff_ffff } else { 0 };
        assert_eq!(driver.read_common(DRIVER_FEATURE, 4), still, "agreed features are fixed");
        if !agreed {
            driver.set_status(status::DRIVER_OK);
            assert_ne!(driver.status() & status::DEVICE_NEEDS_RESET, 0);
            assert!(!driver.function.is_running());
        }
    }
}

#[test]
fn the_platform_must_translate_if_asked_to() {
    let memory = crate::testing::memory(1 << 20);
    let capabilities = Capabilities {
        memory,
        msi: Arc::new(machine::interrupt::recording::Sources::default()),
        intx: None,
        clock: Arc::new(machine::clock::ManualClock::default()),
    };
    let options =
        Options { access_platform: true, notification_data: true, packed: false, ..Options::default() };
    let mut function = VirtioPci::new(Box::new(Echo::new()), options, capabilities).unwrap();
    let offered = Features::from_bits_retain(function.offered_features());
    assert!(offered.contains(Features::ACCESS_PLATFORM | Features::NOTIFICATION_DATA));
    assert!(!offered.contains(Features::RING_PACKED));
    for (features, agreed) in
        [(Features::VERSION_1, false), (Features::VERSION_1 | Features::ACCESS_PLATFORM, true)]
    {
        function.bar_write(0, DRIVER_FEATURE_SELECT, &1_u32.to_le_bytes());
        function.bar_write(0, DRIVER_FEATURE, &((features.bits() >> 32) as u32).to_le_bytes());
        function.bar_write(0, DEVICE_STATUS, &[status::FEATURES_OK]);
        let mut read = [0];
        function.bar_read(0, DEVICE_STATUS, &mut read);
        assert_eq!(read[0] & status::FEATURES_OK != 0, agreed);
    }
}

#[test]
fn queue_registers_hold_what_is_valid() {
    let mut driver = attached();
    assert_eq!(driver.read_common(NUM_QUEUES, 2), 2);
    for (queue, size) in [(0, 64), (1, 16), (2, 0), (0xffff, 0)] {
        driver.write_common(QUEUE_SELECT, 2, queue);
        assert_eq!(driver.read_common(QUEUE_SIZE, 2), size);
        driver.write_common(QUEUE_SIZE, 2, 8);
        driver.write_common(QUEUE_SIZE, 2, 65);
        driver.write_common(QUEUE_SIZE, 2, 0);
        let there = size != 0;
        assert_eq!(driver.read_common(QUEUE_SIZE, 2), if there { 8 } else { 0 });
        // Vectors that exist, and one that does not.
        driver.write_common(QUEUE_MSIX_VECTOR, 2, 2);
        assert_eq!(driver.read_common(QUEUE_MSIX_VECTOR, 2), if there { 2 } else { NO_VECTOR.into() });
        driver.write_common(QUEUE_MSIX_VECTOR, 2, 3);
        assert_eq!(driver.read_common(QUEUE_MSIX_VECTOR, 2), u64::from(NO_VECTOR));
        driver.write_common(QUEUE_DRIVER, 8, 0x1122_3344_5566_7788);
        driver.write_common(QUEUE_DRIVER + 4, 4, 0x99);
        assert_eq!(driver.read_common(QUEUE_DRIVER, 8), if there { 0x99_5566_7788 } else { 0 });
        assert_eq!(driver.read_common(QUEUE_DRIVER + 4, 4), if there { 0x99 } else { 0 });
        assert_eq!(driver.read_common(QUEUE_NOTIFY_OFF, 2), if there { queue } else { 0 });
        driver.write_common(QUEUE_ENABLE, 2, 1);
        assert_eq!(driver.read_common(QUEUE_ENABLE, 2), u64::from(there));
        driver.write_common(QUEUE_DRIVER, 8, 0);
        assert_eq!(
            driver.read_common(QUEUE_DRIVER, 4),
            if there { 0x5566_7788 } else { 0 },
            "fixed once enabled"
        );
    }
    // Writes of the wrong size do nothing; reads of any size see bytes.
    driver.write_common(QUEUE_SELECT, 1, 0);
    assert_eq!(driver.read_common(QUEUE_SELECT, 2), 0xffff);
    let mut all = [0; COMMON_SIZE as usize];
    for (at, part) in (0..).step_by(8).zip(all.chunks_mut(8)) {
        driver.read(at, part);
    }
    assert_eq!(all[NUM_QUEUES as usize], 2);
}

#[test]
fn a_queue_that_cannot_be_needs_a_reset() {
    type Spoil = fn(&mut Driver);
    let cases: [(&str, Spoil); 5] = [
        ("descriptors not in RAM", |d| d.write_common(QUEUE_DESC, 8, 1 << 40)),
        ("driver area not in RAM", |d| d.write_common(QUEUE_DRIVER, 8, u64::MAX - 1)),
        ("device area misaligned", |d| d.write_common(QUEUE_DEVICE, 8, 0x2002)),
        ("size not a power of two", |d| d.write_common(QUEUE_SIZE, 2, 24)),
        ("descriptors misaligned", |d| d.write_common(QUEUE_DESC, 8, 0x1008)),
    ];
    for (name, spoil) in cases {
        let mut driver = attached();
        driver.negotiate(Layout::SPLIT, u64::MAX);
        driver.write_common(QUEUE_SELECT, 2, 0);
        driver.write_common(QUEUE_DESC, 8, 0x1000);
        driver.write_common(QUEUE_DRIVER, 8, 0x2000);
        driver.write_common(QUEUE_DEVICE, 8, 0x3000);
        spoil(&mut driver);
        driver.write_common(QUEUE_ENABLE, 2, 1);
        let before = driver.config_interrupts();
        driver.set_status(status::DRIVER_OK);
        assert_ne!(driver.status() & status::DEVICE_NEEDS_RESET, 0, "{name}");
        assert_eq!(driver.config_interrupts(), before + 1, "{name}");
        assert!(!driver.function.is_running(), "{name}");
        driver.initialize(Layout::SPLIT, u64::MAX);
        assert_eq!(driver.call(0, &[b"x"], &[1]).data, b"x", "it works after a reset: {name}");
    }
}

#[test]
fn a_broken_ring_needs_a_reset_and_spares_the_other_queue() {
    for layout in [Layout::SPLIT, Layout::PACKED] {
        let mut driver = ready(layout);
        driver.ring(0).add_raw(&[(u64::MAX - 4, 100, 0)]).unwrap();
        driver.kick(0);
        driver.run();
        assert_ne!(driver.status() & status::DEVICE_NEEDS_RESET, 0);
        assert_eq!(driver.config_interrupts(), 1);
        assert_eq!(driver.call(1, &[b"x"], &[1]).data, b"x");
        driver.run();
        assert_eq!(driver.config_interrupts(), 1, "it is told once");
        driver.initialize(layout, u64::MAX);
        assert_eq!(driver.call(0, &[b"y"], &[1]).data, b"y");
    }
}

/// A kernel that starts another one clears the bit, and expects that nothing writes to memory any more.
#[test]
fn a_function_that_may_not_access_memory_leaves_it_alone_and_goes_on_later() {
    use pci::config::command::{BUS_MASTER, MEMORY};
    for layout in [Layout::SPLIT, Layout::PACKED] {
        let mut driver = ready(layout);
        assert_eq!(driver.call(0, &[b"before"], &[6]).data, b"before");
        // With the window as it was, and with one that goes and comes.
        for without in [MEMORY, 0] {
            driver.write_command(without);
            assert!(!driver.function.is_running());
            let id = driver.request(0, &[b"during"], &[6]).unwrap();
            driver.kick(0);
            driver.run();
            assert_eq!(driver.completion(0), None);
            driver.write_command(MEMORY | BUS_MASTER);
            driver.run();
            let completion = driver.completion(0).expect("it goes on where it was");
            assert_eq!((completion.id, &completion.data[..]), (id, &b"during"[..]));
        }
        assert_eq!(driver.status() & status::DEVICE_NEEDS_RESET, 0);

        driver.reset();
        driver.negotiate(layout, u64::MAX);
        driver.write_command(MEMORY);
        driver.enable_queue(0);
        driver.set_status(status::DRIVER_OK);
        assert!(!driver.function.is_running(), "a driver that is ready does not make up for it");
        driver.write_command(MEMORY | BUS_MASTER);
        assert_eq!(driver.call(0, &[b"after"], &[5]).data, b"after");
    }
}

#[test]
fn a_reset_waits_for_the_handlers() {
    let mut driver = ready(Layout::SPLIT);
    // As a CPU sees it before the machine thread has acted.
    let change = driver.function.bar_write(0, DEVICE_STATUS, &[0]);
    assert_eq!(change, Some(DeviceChange::Stop));
    assert_ne!(driver.status(), 0);
    assert_eq!(driver.function.bar_write(0, DEVICE_STATUS, &[0]), None, "asked for once");
    driver.write_common(QUEUE_SELECT, 2, 1);
    assert_eq!(driver.read_common(QUEUE_SELECT, 2), 1, "nothing can be set up meanwhile");
    assert!(driver.function.start().unwrap().is_empty(), "nor started");
    assert!(!driver.stop());
    assert_eq!(driver.status(), 0);
    // A driver that resets before the handlers were taken.
    driver.negotiate(Layout::SPLIT, u64::MAX);
    driver.enable_queue(0);
    let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    assert_eq!(driver.function.bar_write(0, DEVICE_STATUS, &[ok]), Some(DeviceChange::Start));
    assert_eq!(driver.function.bar_write(0, DEVICE_STATUS, &[0]), None);
    driver.start();
    assert!(driver.tasks.is_empty());
    assert!(!driver.function.is_running());
}

#[test]
fn a_queue_is_reset_alone() {
    for layout in [Layout::SPLIT, Layout::PACKED] {
        for single in [false, true] {
            let echo = if single { Echo::with_single_handler() } else { Echo::new() };
            let mut driver = Driver::new(Box::new(echo), layout);
            for i in 0..100_u8 {
                driver.call((i & 1).into(), &[&[i]], &[1]);
            }
            driver.request(1, &[b"pending"], &[7]).unwrap();
            driver.write_common(QUEUE_SELECT, 2, 0);
            driver.write_common(QUEUE_RESET, 2, 1);
            assert_eq!(driver.read_common(QUEUE_RESET, 2), 0);
            assert_eq!(driver.read_common(QUEUE_ENABLE, 2), 0);
            driver.run();
            assert_eq!(
                driver.completion(1).unwrap().data,
                b"pending",
                "the other queue goes on where it was"
            );
            driver.enable_queue(0);
            assert_eq!(driver.call(0, &[b"again"], &[5]).data, b"again");
            assert_eq!(driver.call(1, &[b"still"], &[5]).data, b"still");
            // Both reset, one after the other, and one back.
            for queue in 0..2 {
                driver.write_common(QUEUE_SELECT, 2, queue);
                driver.write_common(QUEUE_RESET, 2, 1);
            }
            driver.enable_queue(1);
            assert_eq!(driver.call(1, &[b"back"], &[4]).data, b"back");
            assert_eq!(driver.status() & status::DEVICE_NEEDS_RESET, 0);
        }
    }
}

#[test]
fn a_paused_device_goes_on_where_it_was() {
    for layout in Layout::all() {
        let mut driver = ready(layout);
        driver.write_config(0, &[3]);
        driver.initialize(layout, u64::MAX);
        driver.write_config(0, &[3]);
        for _ in 0..5 {
            assert!(driver.stop(), "it is to run again");
            driver.start();
            for i in 0..50_u8 {
                driver.call((i & 1).into(), &[&[i]], &[1]);
            }
        }
        let id = driver.request(0, &[b"a"], &[1]).unwrap();
        driver.stop();
        let state = driver.function.save().unwrap();
        // The same machine state in another process: other objects, the same memory.
        let capabilities = Capabilities {
            memory: driver.memory.clone(),
            msi: driver.vectors.clone(),
            intx: None,
            clock: driver.clock.clone(),
        };
        driver.function = VirtioPci::new(Box::new(Echo::new()), Options::default(), capabilities).unwrap();
        driver.function.restore(&state).unwrap();
        driver.start();
        driver.run();
        let completion = driver.completion(0).unwrap();
        assert_eq!((completion.id, completion.data), (id, vec![b'a' + 3]));
    }
}

#[test]
fn the_pin_stands_in_for_vectors() {
    let mut driver = ready(Layout::SPLIT);
    // Disable MSI-X: bit 15 of its message control.
    let mut at = driver.function.config().word(0x34) & 0xff;
    while driver.function.config().word(at) & 0xff != 0x11 {
        at = driver.function.config().word(at) >> 8;
    }
    driver.function.config_write(at + 2, &0_u16.to_le_bytes());
    let asserted = |driver: &Driver| driver.function.config().intx().unwrap().asserted();
    assert!(!asserted(&driver));
    driver.call(0, &[b"x"], &[1]);
    assert!(asserted(&driver));
    assert_eq!(driver.take_isr(), 1);
    assert!(!asserted(&driver));
    assert_eq!(driver.take_isr(), 0);
    driver.function.config_change().notify();
    driver.call(1, &[b"x"], &[1]);
    assert_eq!(driver.take_isr(), 3);
    driver.call(1, &[b"x"], &[1]);
    driver.reset();
    assert!(!asserted(&driver), "a reset releases the pin");
    driver.function.config_change().notify();
    assert!(!asserted(&driver), "nobody is there to be told");
}

#[test]
fn a_configuration_change_is_told_and_counted() {
    let mut driver = ready(Layout::SPLIT);
    let before = driver.read_common(CONFIG_GENERATION, 1);
    driver.function.config_change().notify();
    assert_ne!(driver.read_common(CONFIG_GENERATION, 1), before);
    assert_eq!(driver.config_interrupts(), 1);
}

#[test]
fn doorbells_have_an_address_each() {
    let mut driver = ready(Layout::SPLIT);
    let bells = driver.function.doorbells(0);
    assert!(driver.function.doorbells(2).is_empty());
    assert_eq!(bells.iter().map(|bell| bell.offset).collect::<Vec<_>>(), [0x3000, 0x3004]);
    assert!(bells.iter().all(|bell| bell.size.is_none() && bell.value.is_none()));
    // As 2 bytes, as notification data, and for queues there are none of.
    driver.write(0x3000, &0_u16.to_le_bytes());
    assert!(bells[0].doorbell.take() && !bells[1].doorbell.take());
    driver.write(0x3004, &(1 | 7_u32 << 16).to_le_bytes());
    assert!(!bells[0].doorbell.take() && bells[1].doorbell.take());
    driver.write(0x3008, &2_u16.to_le_bytes());
    driver.write(0x3ffe, &2_u16.to_le_bytes());
    assert!(!bells[0].doorbell.take() && !bells[1].doorbell.take());
    // A handler is woken by its queues' bells.
    let task = driver.function.doorbells_of(&driver.tasks[1]);
    driver.write(0x3004, &1_u16.to_le_bytes());
    assert!(task.len() == 1 && task[0].take());
}

#[test]
fn configuration_space_has_a_window_on_the_registers() {
    let mut driver = ready(Layout::SPLIT);
    let (.., at) = *structures(&mut driver).iter().find(|found| found.0 == structure::PCI).unwrap();
    let mut access = |bar: u8, offset: u64, len: u32, write: Option<u32>| {
        driver.function.config_write(at + 4, &[bar]);
        driver.function.config_write(at + 8, &(offset as u32).to_le_bytes());
        driver.function.config_write(at + 12, &len.to_le_bytes());
        let mut data = [0; 4];
        match write {
            Some(value) => drop(driver.function.config_write(at + 16, &value.to_le_bytes())),
            None => driver.function.config_read(at + 16, &mut data),
        }
        u32::from_le_bytes(data)
    };
    assert_eq!(access(0, NUM_QUEUES, 2, None), 2);
    access(0, QUEUE_SELECT, 2, Some(1));
    assert_eq!(access(0, QUEUE_SIZE, 2, None), 16);
    access(0, DEVICE, 1, Some(0x55));
    assert_eq!(access(0, DEVICE, 1, None), 0x55);
    access(0, MSIX_TABLE.into(), 4, Some(0x1230));
    assert_eq!(access(0, MSIX_TABLE.into(), 4, None), 0x1230);
    // Lengths, alignments and places that are not allowed are harmless.
    for (bar, offset, len) in
        [(0, 0, 0), (0, 1, 2), (0, 0, 8), (0, 0x1_0000, 4), (0, 0xffff_fffc, 4), (3, 0, 4), (7, 0, 4)]
    {
        access(bar, offset, len, Some(0xffff_ffff));
        access(bar, offset, len, None);
    }
    assert_eq!(access(0, NUM_QUEUES, 2, None), 2);
}

#[test]
fn a_function_level_reset_stops_everything() {
    let mut driver = ready(Layout::SPLIT);
    let mut at = driver.function.config().word(0x34) & 0xff;
    while driver.function.config().word(at) & 0xff != 0x10 {
        at = driver.function.config().word(at) >> 8;
    }
    let change = driver.function.config_write(at + 8, &0x8000_u16.to_le_bytes());
    assert_eq!(change, Some(DeviceChange::Reset));
    driver.apply(change);
    assert_eq!(driver.status(), 0);
    assert!(driver.tasks.is_empty());
    driver.initialize(Layout::SPLIT, u64::MAX);
    assert_eq!(driver.call(0, &[b"x"], &[1]).data, b"x");
}

#[test]
fn memory_that_changed_is_used_from_the_next_start_on() {
    let mut driver = ready(Layout::SPLIT);
    driver.call(0, &[b"x"], &[1]);
    driver.stop();
    let memory = crate::testing::memory(64 << 20);
    // A copy of where the rings are.
    let mut rings = vec![0; 1 << 20];
    driver.memory.read_slice(&mut rings, GuestAddress(0)).unwrap();
    memory.write_slice(&rings, GuestAddress(0)).unwrap();
    driver.function.set_memory(memory);
    driver.start();
    let ring = DriverRing::footprint(64);
    assert!(ring < 1 << 20);
    driver.request(0, &[b"y"], &[1]).unwrap();
    driver.run();
    assert!(driver.completion(0).is_none(), "the device no longer looks where the driver writes");
}
