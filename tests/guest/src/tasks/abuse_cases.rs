//! The bad things that `ring-abuse` does, those to registers in `abuse_registers.rs`. Each function does one and returns; `abuse.rs` judges what is left.
//!
//! A case ends with a check only where the specification says what the guest must then see.

use super::Outcome;
use super::abuse::{Case, RING, Stage};
use super::abuse_registers::{
    NOWHERE, command_bits, config_access, config_window, features_not_offered, move_bar, msix_garbage,
    msix_vector_oob, own_registers, reset_in_flight, status_out_of_order,
};
use crate::clock::Deadline;
use crate::cpu;
use crate::random::Random;
use crate::virtio::ring::flag::{INDIRECT, NEXT, WRITE};
use crate::virtio::ring::{Layout, Ring};
use crate::virtio::{feature, status};

const LOCAL_APIC: u64 = 0xfee0_0000;
const PACKED: u64 = feature::PACKED;
const PACKED_INDIRECT: u64 = feature::PACKED | feature::INDIRECT;

const fn case(name: &'static str, features: u64, run: fn(&mut Stage) -> Outcome) -> Case {
    Case { name, features, run }
}

/// Every case. Adding one is a function or closure, and its line here.
pub const CASES: &[Case] = &[
    // Chains in the descriptor table.
    case("desc-loop", 0, |s| chain(s, &[(s.header, 16, NEXT, 1), (s.buffer, 512, NEXT | WRITE, 0)])),
    case("desc-self", 0, |s| chain(s, &[(s.header, 16, NEXT, 0)])),
    case("desc-oob-addr", 0, |s| data(s, NOWHERE, 512)),
    case("desc-wrap-addr", 0, |s| data(s, u64::MAX - 255, 4096)),
    case("desc-across-ram-end", 0, |s| data(s, s.ram_end - 256, 512)),
    case("desc-in-mmio", 0, |s| data(s, own_registers(s), 512)),
    case("zero-len", 0, |s| data(s, s.buffer, 0)),
    case("huge-len", 0, |s| data(s, s.buffer, u32::MAX)),
    case("huge-len-aligned", 0, |s| data(s, s.buffer, 0xffff_fe00)),
    case("unaligned-len", 0, |s| data(s, s.buffer, 100)),
    case("header-oob", 0, |s| request(s, (NOWHERE, 16, 0), (s.status, 1, WRITE))),
    case("header-short", 0, |s| request(s, (s.header, 8, 0), (s.status, 1, WRITE))),
    case("header-empty", 0, |s| request(s, (s.header, 0, 0), (s.status, 1, WRITE))),
    case("header-writable", 0, |s| request(s, (s.header, 16, WRITE), (s.status, 1, WRITE))),
    case("status-oob", 0, |s| request(s, (s.header, 16, 0), (NOWHERE, 1, WRITE))),
    case("status-empty", 0, |s| request(s, (s.header, 16, 0), (s.status, 0, WRITE))),
    case("status-readable", 0, |s| request(s, (s.header, 16, 0), (s.status, 1, 0))),
    case("one-descriptor", 0, |s| chain(s, &[(s.header, 16, 0, 0)])),
    case("read-after-write", 0, |s| {
        chain(s, &[(s.header, 16, NEXT, 1), (s.status, 1, NEXT | WRITE, 2), (s.buffer, 512, 0, 0)])
    }),
    case("next-oob", 0, |s| chain(s, &[(s.header, 16, NEXT, 0xffff)])),
    case("next-size", 0, |s| chain(s, &[(s.header, 16, NEXT, RING)])),
    case("unknown-flags", 0, |s| {
        chain(s, &[(s.header, 16, NEXT | 0xfff0, 1), (s.status, 1, WRITE | 0x8000, 0)])
    }),
    case("indirect-not-agreed", 0, |s| chain(s, &[(s.table, 48, INDIRECT, 0)])),
    // Indirect tables.
    case("indirect-in-indirect", feature::INDIRECT, |s| {
        let table = s.table;
        table_entry(s, 0, table, 48, INDIRECT, 0);
        chain(s, &[(table, 48, INDIRECT, 0)])
    }),
    case("indirect-huge", feature::INDIRECT, |s| {
        good_table(s);
        chain(s, &[(s.table, 0xffff_fff0, INDIRECT, 0)])
    }),
    case("indirect-misaligned-len", feature::INDIRECT, |s| {
        good_table(s);
        chain(s, &[(s.table, 41, INDIRECT, 0)])
    }),
    case("indirect-empty", feature::INDIRECT, |s| chain(s, &[(s.table, 0, INDIRECT, 0)])),
    case("indirect-oob", feature::INDIRECT, |s| chain(s, &[(NOWHERE, 48, INDIRECT, 0)])),
    case("indirect-wrap", feature::INDIRECT, |s| chain(s, &[(u64::MAX - 15, 48, INDIRECT, 0)])),
    case("indirect-and-next", feature::INDIRECT, |s| {
        good_table(s);
        chain(s, &[(s.table, 48, INDIRECT | NEXT, 1), (s.status, 1, WRITE, 0)])
    }),
    case("indirect-loop", feature::INDIRECT, |s| {
        table_entry(s, 0, s.header, 16, NEXT, 1);
        table_entry(s, 1, s.buffer, 512, NEXT | WRITE, 0);
        chain(s, &[(s.table, 32, INDIRECT, 0)])
    }),
    case("indirect-next-oob", feature::INDIRECT, |s| {
        table_entry(s, 0, s.header, 16, NEXT, 0xffff);
        chain(s, &[(s.table, 48, INDIRECT, 0)])
    }),
    case("indirect-long", feature::INDIRECT, |s| {
        // As many entries as the page holds: far more than the ring is long.
        for index in 0..255 {
            table_entry(s, index, s.buffer, 16, NEXT | if index == 0 { 0 } else { WRITE }, index as u16 + 1);
        }
        table_entry(s, 255, s.status, 1, WRITE, 0);
        chain(s, &[(s.table, 4096, INDIRECT, 0)])
    }),
    // The available ring.
    case("head-oob", 0, |s| offer(s, 0xffff)),
    case("head-size", 0, |s| offer(s, RING)),
    case("head-twice", 0, |s| {
        s.add_good(0);
        offer(s, 0)
    }),
    case("avail-jump", 0, |s| jump(s, 0x8000)),
    case("avail-jump-size", 0, |s| jump(s, RING + 1)),
    case("avail-back", 0, |s| jump(s, 0xffff)),
    // Where queues are.
    case("queue-in-mmio", 0, |s| place_all(s, own_registers)),
    case("queue-oob", 0, |s| place_all(s, |_| NOWHERE)),
    case("queue-wrap", 0, |s| place_all(s, |_| !0xfff)),
    case("queue-across-ram-end", 0, |s| place_all(s, |s| s.ram_end - 16)),
    case("queue-misaligned", 0, |s| place_all(s, |s| s.table + 1)),
    case("queue-size-zero", 0, |s| place_size(s, 0)),
    case("queue-size-odd", 0, |s| place_size(s, 7)),
    case("queue-size-over", 0, |s| place_size(s, s.device.queue_maximum(0).saturating_mul(2).max(2))),
    case("queue-size-huge", 0, |s| place_size(s, 0xffff)),
    case("queue-select-oob", 0, |s| {
        let layout = s.ring.layout();
        for queue in [0x1ff, 0x7fff, 0xffff] {
            s.device.place_queue(queue, &layout);
            s.device.enable_queue(queue);
            s.device.doorbell(queue).ring();
            let maximum = s.device.queue_maximum(queue);
            s.check("a queue that does not exist has size 0", maximum == 0);
        }
        Ok(())
    }),
    case("queue-moved-while-enabled", 0, |s| {
        let layout = Layout { descriptors: NOWHERE, driver: NOWHERE, device: NOWHERE, ..s.ring.layout() };
        s.device.place_queue(0, &layout);
        s.add_good(0);
        s.kick();
        Ok(())
    }),
    // Doorbells.
    case("doorbell-disabled-queue", 0, |s| {
        s.device.negotiate(0, 0)?;
        s.device.start();
        (0..8).for_each(|_| s.doorbell.ring());
        Ok(())
    }),
    case("doorbell-before-driver-ok", 0, |s| {
        let features = s.features;
        s.device.negotiate(features, 0)?;
        s.device.place_queue(0, &s.ring.layout());
        s.device.enable_queue(0);
        s.add_good(0);
        s.kick();
        Ok(())
    }),
    case("doorbell-after-reset", 0, |s| {
        s.device.reset()?;
        s.add_good(0);
        s.kick();
        Ok(())
    }),
    case("doorbell-oob", 0, |s| {
        [1u16, 0x100, 0x7fff, 0xffff].iter().for_each(|&queue| s.doorbell.ring_with(queue));
        Ok(())
    }),
    case("doorbell-storm", 0, |s| {
        (0..500).for_each(|_| s.doorbell.ring());
        Ok(())
    }),
    // Interrupts.
    case("msix-vector-oob", 0, msix_vector_oob),
    case("msix-garbage", 0, msix_garbage),
    // The state machine.
    case("reset-in-flight", 0, reset_in_flight),
    case("status-out-of-order", 0, status_out_of_order),
    case("features-not-offered", 0, features_not_offered),
    case("features-none", 0, |s| {
        s.device.reset()?;
        s.device.set_status(status::ACKNOWLEDGE | status::DRIVER);
        s.device.set_features(0);
        s.device.start();
        s.add_good(0);
        s.kick();
        Ok(())
    }),
    case("failed-status", 0, |s| {
        s.device.set_status(s.device.status() | status::FAILED);
        s.add_good(0);
        s.kick();
        Ok(())
    }),
    case("config-access", 0, config_access),
    // BARs and configuration space.
    case("bar-onto-ram", 0, |s| move_bar(s, |s| Some(s.table))),
    case("bar-onto-bar", 0, |s| move_bar(s, |s| s.other?.areas()[0].map(|area| area.address & !0xfff))),
    case("bar-onto-apic", 0, |s| move_bar(s, |_| Some(LOCAL_APIC))),
    case("bar-at-top", 0, |s| move_bar(s, |_| Some(u64::MAX))),
    case("bar-at-zero", 0, |s| move_bar(s, |_| Some(0))),
    case("decoding-off", 0, |s| command_bits(s, 2)),
    case("mastering-off", 0, |s| command_bits(s, 4)),
    case("config-window", 0, config_window),
    // Requests that are well formed and yet nonsense.
    case("blk-bad-type", 0, |s| typed(s, 0xffff_ffff, 0)),
    case("blk-sector-past-end", 0, |s| typed(s, 0, u64::MAX / 512)),
    case("blk-sector-wrap", 0, |s| typed(s, 0, u64::MAX)),
    case("blk-write-sector-wrap", 0, |s| {
        cpu::write32(s.header, 1);
        cpu::write64(s.header + 8, u64::MAX);
        chain(s, &[(s.header, 16, NEXT, 1), (s.buffer, 512, NEXT, 2), (s.status, 1, WRITE, 0)])
    }),
    case("blk-discard-garbage", 0, |s| range(s, 11)),
    case("blk-zeroes-garbage", 0, |s| range(s, 13)),
    case("blk-id-short", 0, |s| {
        cpu::write32(s.header, 8);
        data(s, s.buffer, 3)
    }),
    // Packed rings.
    case("packed-desc-loop", PACKED, |s| put(s, 0, &[(s.buffer, 16, NEXT); RING as usize])),
    case("packed-half-chain", PACKED, |s| put(s, 0, &[(s.header, 16, NEXT), (s.buffer, 512, NEXT | WRITE)])),
    case("packed-one-descriptor", PACKED, |s| put(s, 0, &[(s.header, 16, 0)])),
    case("packed-oob-addr", PACKED, |s| packed_data(s, NOWHERE, 512)),
    case("packed-wrap-addr", PACKED, |s| packed_data(s, u64::MAX - 255, 4096)),
    case("packed-zero-len", PACKED, |s| packed_data(s, s.buffer, 0)),
    case("packed-huge-len", PACKED, |s| packed_data(s, s.buffer, u32::MAX)),
    case("packed-id-oob", PACKED, |s| {
        put(s, 0xffff, &[(s.header, 16, NEXT), (s.buffer, 512, NEXT | WRITE), (s.status, 1, WRITE)])
    }),
    case("packed-swapped-directions", PACKED, |s| {
        put(s, 0, &[(s.header, 16, NEXT | WRITE), (s.status, 1, 0)])
    }),
    case("packed-indirect-in-indirect", PACKED_INDIRECT, |s| {
        packed_table_entry(s, 0, s.table, 48, INDIRECT);
        put(s, 0, &[(s.table, 48, INDIRECT)])
    }),
    case("packed-indirect-huge", PACKED_INDIRECT, |s| put(s, 0, &[(s.table, 0xffff_fff0, INDIRECT)])),
    case("packed-indirect-misaligned-len", PACKED_INDIRECT, |s| put(s, 0, &[(s.table, 41, INDIRECT)])),
    case("packed-indirect-empty", PACKED_INDIRECT, |s| put(s, 0, &[(s.table, 0, INDIRECT)])),
    case("packed-indirect-oob", PACKED_INDIRECT, |s| put(s, 0, &[(NOWHERE, 48, INDIRECT)])),
    case("packed-indirect-and-next", PACKED_INDIRECT, |s| {
        put(s, 0, &[(s.table, 48, INDIRECT | NEXT), (s.status, 1, WRITE)])
    }),
    case("packed-flags-garbage", PACKED, |s| {
        let mut random = Random::new(7);
        let chain =
            [(); 8].map(|()| (s.buffer + random.below(2048), random.next() as u32, random.next() as u16));
        put(s, random.next() as u16, &chain)
    }),
    case("packed-events-garbage", PACKED | feature::EVENT_IDX, |s| {
        for (position, flags) in [(0x7fff, 2), (0xffff, 2), (RING, 2), (0, 3), (0xffff, 0xffff)] {
            s.packed().set_events(position, flags);
            s.add_good(0);
            s.kick();
            Deadline::after(100).wait(|| s.ring.take().is_some());
        }
        Ok(())
    }),
    case("packed-queue-in-mmio", PACKED, |s| place_all(s, own_registers)),
    case("packed-queue-oob", PACKED, |s| place_all(s, |_| NOWHERE)),
    case("packed-queue-misaligned", PACKED, |s| place_all(s, |s| s.table + 1)),
    case("packed-queue-size-zero", PACKED, |s| place_size(s, 0)),
    case("packed-queue-size-odd", PACKED, |s| place_size(s, 7)),
    case("packed-reset-in-flight", PACKED, reset_in_flight),
];

/// Writes descriptors (address, length, flags, next) from index 0 on and offers the first.
fn chain(stage: &mut Stage, descriptors: &[(u64, u32, u16, u16)]) -> Outcome {
    for (&(address, length, flags, next), index) in descriptors.iter().zip(0..) {
        stage.split().set_descriptor(index, address, length, flags, next);
    }
    offer(stage, 0)
}

/// A read whose data part is as given.
fn data(stage: &mut Stage, address: u64, length: u32) -> Outcome {
    let (header, status) = (stage.header, stage.status);
    chain(stage, &[(header, 16, NEXT, 1), (address, length, NEXT | WRITE, 2), (status, 1, WRITE, 0)])
}

/// A read whose header and status parts (address, length, flags) are as given.
fn request(stage: &mut Stage, header: (u64, u32, u16), end: (u64, u32, u16)) -> Outcome {
    let buffer = stage.buffer;
    chain(
        stage,
        &[(header.0, header.1, header.2 | NEXT, 1), (buffer, 512, NEXT | WRITE, 2), (end.0, end.1, end.2, 0)],
    )
}

fn typed(stage: &mut Stage, kind: u32, sector: u64) -> Outcome {
    cpu::write32(stage.header, kind);
    cpu::write64(stage.header + 8, sector);
    data(stage, stage.buffer, 512)
}

/// A discard or write-zeroes request whose ranges are of all ones.
fn range(stage: &mut Stage, kind: u32) -> Outcome {
    cpu::write32(stage.header, kind);
    (0..512).step_by(8).for_each(|offset| cpu::write64(stage.buffer + offset, u64::MAX));
    let (header, buffer, status) = (stage.header, stage.buffer, stage.status);
    chain(stage, &[(header, 16, NEXT, 1), (buffer, 512, NEXT, 2), (status, 1, WRITE, 0)])
}

fn offer(stage: &mut Stage, head: u16) -> Outcome {
    stage.split().offer(head);
    stage.kick();
    Ok(())
}

fn jump(stage: &mut Stage, distance: u16) -> Outcome {
    stage.add_good(0);
    stage.split().jump(distance);
    stage.kick();
    Ok(())
}

fn table_entry(stage: &Stage, index: u64, address: u64, length: u32, flags: u16, next: u16) {
    let at = stage.table + 16 * index;
    cpu::write64(at, address);
    cpu::write32(at + 8, length);
    cpu::write16(at + 12, flags);
    cpu::write16(at + 14, next);
}

fn packed_table_entry(stage: &Stage, index: u64, address: u64, length: u32, flags: u16) {
    table_entry(stage, index, address, length, 0, flags);
}

fn good_table(stage: &Stage) {
    table_entry(stage, 0, stage.header, 16, NEXT, 1);
    table_entry(stage, 1, stage.buffer, 512, NEXT | WRITE, 2);
    table_entry(stage, 2, stage.status, 1, WRITE, 0);
}

fn put(stage: &mut Stage, id: u16, chain: &[(u64, u32, u16)]) -> Outcome {
    stage.packed().put(id, chain);
    stage.kick();
    Ok(())
}

fn packed_data(stage: &mut Stage, address: u64, length: u32) -> Outcome {
    let (header, status) = (stage.header, stage.status);
    put(stage, 0, &[(header, 16, NEXT), (address, length, NEXT | WRITE), (status, 1, WRITE)])
}

/// Brings the queue up again three times, with one of its areas at a time where `choose` says, and kicks it.
fn place_all(stage: &mut Stage, choose: fn(&Stage) -> u64) -> Outcome {
    let bad = choose(stage);
    for area in 0..3 {
        let mut layout = stage.ring.layout();
        *[&mut layout.descriptors, &mut layout.driver, &mut layout.device][area] = bad;
        place(stage, &layout)?;
    }
    Ok(())
}

fn place_size(stage: &mut Stage, size: u16) -> Outcome {
    let layout = Layout { size, ..stage.ring.layout() };
    place(stage, &layout)
}

fn place(stage: &mut Stage, layout: &Layout) -> Outcome {
    let features = stage.features;
    stage.device.negotiate(features, 0)?;
    stage.device.place_queue(0, layout);
    stage.device.enable_queue(0);
    stage.device.start();
    if let Ring::Split(ring) = &mut stage.ring {
        ring.offer(0);
    } else {
        stage.add_good(0);
    }
    stage.kick();
    Deadline::after(20).wait(|| stage.device.status() & status::NEEDS_RESET != 0);
    Ok(())
}
