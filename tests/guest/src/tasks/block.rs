//! `blk-randread`, `blk-randwrite`, `blk-seqread`, `blk-seqwrite`: closed loops at a fixed depth.
//!
//! One processor polls all queues. A completed request is given back at once with its next sector; when a queue has
//! been drained, what was given back is published and the doorbell rung only if the device asks for it.

use super::block_verify::{check_pattern, fill_pattern};
use super::{Context, Failure, Outcome};
use crate::command_line::Task;
use crate::random::Random;
use crate::virtio::block::{Header, PARTS, SECTOR, feature, request, result};
use crate::virtio::ring::{Buffer, Ring};
use crate::virtio::{self, Device, Doorbell, Kind};
use crate::{clock, cpu, memory, report};

/// Most queues that are driven.
const QUEUES: usize = 16;
/// Silence after which the device counts as stuck, in milliseconds.
const PATIENCE: u64 = 10_000;

/// How features are chosen for any block task.
pub fn wanted_features(task: &Task) -> Result<(u64, u64), Failure> {
    let mut required = 0;
    let mut wanted = 0;
    for (key, bit, default) in [
        ("packed", virtio::feature::PACKED, false),
        ("event_idx", virtio::feature::EVENT_IDX, true),
        ("indirect", virtio::feature::INDIRECT, false),
    ] {
        if task.switch(key, default)? {
            // What was asked for must be there; what is only the default need not.
            match task.text(key) {
                Some(_) => required |= bit,
                None => wanted |= bit,
            }
        }
    }
    Ok((required, wanted))
}

struct Queue {
    ring: Ring,
    doorbell: Doorbell,
    headers: *mut Header,
    statuses: *mut u8,
    data: u64,
}

struct Load {
    write: bool,
    sequential: bool,
    check: bool,
    salt: u64,
    block: u64,
    blocks: u64,
    depth: u64,
    next: u64,
    random: Random,
}

impl Load {
    /// The block that the next request is for.
    fn choose(&mut self) -> u64 {
        if self.sequential {
            let block = self.next;
            self.next = if block + 1 == self.blocks { 0 } else { block + 1 };
            block
        } else {
            self.random.below(self.blocks)
        }
    }
}

impl Queue {
    fn make(
        device: &Device,
        index: u16,
        size: u16,
        features: u64,
        indirect: bool,
        load: &Load,
    ) -> Result<Queue, Failure> {
        let ring = device.make_queue(index, size, PARTS, features, indirect)?;
        if u64::from(ring.slots()) < load.depth {
            return Err(Failure::BadValue("qd"));
        }
        Ok(Queue {
            ring,
            doorbell: device.doorbell(index),
            headers: memory::take(16 * load.depth, 4096).cast(),
            statuses: memory::take(load.depth, 64),
            data: memory::take(load.block * load.depth, 4096) as u64,
        })
    }

    fn buffer(&self, slot: u16, load: &Load) -> u64 {
        self.data + u64::from(slot) * load.block
    }

    /// Gives the device the next request of the load in `slot`.
    fn submit(&mut self, slot: u16, load: &mut Load) {
        let sector = load.choose() * (load.block / SECTOR);
        let buffer = self.buffer(slot, load);
        if load.write && load.check {
            fill_pattern(buffer, load.block, sector, load.salt);
        }
        let kind = if load.write { request::WRITE } else { request::READ };
        let header = self.headers.wrapping_add(usize::from(slot));
        let status = self.statuses.wrapping_add(usize::from(slot));
        // SAFETY: the slot is below the depth, and the device has completed its last request.
        unsafe {
            header.write_volatile(Header { kind, reserved: 0, sector });
            status.write_volatile(result::NONE);
        }
        let data = Buffer { address: buffer, length: load.block as u32, writable: !load.write };
        self.ring.add(slot, &[Buffer::readable(header as u64, 16), data, Buffer::writable(status as u64, 1)]);
    }

    /// Whether the completed request in `slot` did what it should.
    fn correct(&self, slot: u16, load: &Load) -> bool {
        let index = usize::from(slot);
        // SAFETY: the slot is below the depth, and the device is done with it.
        let (status, sector) =
            unsafe { (self.statuses.add(index).read_volatile(), (*self.headers.add(index)).sector) };
        let checked = load.check && !load.write;
        status == result::OK
            && (!checked || check_pattern(self.buffer(slot, load), load.block, sector, load.salt).is_ok())
    }
}

/// Runs the load that the task's name says. Keys are described in README.md.
pub fn run(context: &Context, task: &Task) -> Outcome {
    let device = virtio::find(context.line, Kind::Block, task.number("dev", 0)?)?;
    let (required, wanted) = wanted_features(task)?;
    let queues = task.number("queues", 1)?;
    if !(1..=QUEUES as u64).contains(&queues) {
        return Err(Failure::BadValue("queues"));
    }
    let many = if queues > 1 { feature::QUEUES } else { 0 };
    // Without FLUSH a device has to make each write stable before it completes it (5.2.6.2).
    let features = device.negotiate(required | many, wanted | feature::FLUSH)?;
    let outcome = run_on(&device, features, queues as u16, task);
    // The device must not write into memory that the next task uses.
    device.reset()?;
    outcome
}

fn run_on(device: &Device, features: u64, queue_count: u16, task: &Task) -> Outcome {
    let mut load = Load {
        write: task.name.ends_with("write"),
        sequential: task.name.starts_with("blk-seq"),
        check: task.switch("check", false)?,
        salt: task.number("salt", 0)?,
        block: task.number("bs", 4096)?,
        blocks: 0,
        depth: task.number("qd", 32)?,
        next: 0,
        random: Random::new(task.number("seed", 1)?),
    };
    if load.block == 0 || !load.block.is_multiple_of(SECTOR) || load.block > 16 << 20 {
        return Err(Failure::BadValue("bs"));
    }
    let bytes = (device.config64(0) * SECTOR).min(task.number("size", u64::MAX)?);
    load.blocks = bytes / load.block;
    if load.blocks == 0 || !(1..=1024).contains(&load.depth) {
        return Err(Failure::BadValue(if load.blocks == 0 { "size" } else { "qd" }));
    }
    let indirect = features & virtio::feature::INDIRECT != 0;
    let size = task.number("ring", 256)?.clamp(4, 32768) as u16;
    let mut queues: [Option<Queue>; QUEUES] = [const { None }; QUEUES];
    for index in 0..queue_count {
        queues[usize::from(index)] = Some(Queue::make(device, index, size, features, indirect, &load)?);
    }
    device.start();
    let duration = clock::cycles(task.number("secs", 2)?.saturating_mul(1000));
    let limit = task.number("n", u64::MAX)?;
    let patience = clock::cycles(PATIENCE);

    let (mut ops, mut kicks, mut errors, mut in_flight) = (0u64, 0u64, 0u64, 0u64);
    let begun = cpu::tsc();
    for queue in queues.iter_mut().flatten() {
        for slot in 0..load.depth as u16 {
            queue.submit(slot, &mut load);
            in_flight += 1;
        }
        if queue.ring.publish() {
            queue.doorbell.ring();
            kicks += 1;
        }
    }
    let (mut now, mut last_progress) = (begun, begun);
    let mut ending = false;
    let mut end = 0;
    while in_flight > 0 {
        for queue in queues.iter_mut().flatten() {
            let mut drained = 0;
            while let Some((slot, _)) = queue.ring.take() {
                if u64::from(slot) >= load.depth {
                    return Err(Failure::Device("completed a chain that it was not given"));
                }
                drained += 1;
                errors += u64::from(!queue.correct(slot, &load));
                if !ending {
                    queue.submit(slot, &mut load);
                }
            }
            if drained == 0 {
                continue;
            }
            ops += drained;
            last_progress = now;
            if ending {
                in_flight -= drained;
            } else if queue.ring.publish() {
                queue.doorbell.ring();
                kicks += 1;
            }
        }
        now = cpu::tsc();
        if !ending && (now - begun >= duration || ops >= limit) {
            ending = true;
        }
        if now.saturating_sub(last_progress) > patience {
            return Err(Failure::Timeout("completion of a block request"));
        }
        end = now;
    }
    let cycles = (end - begun).max(1);
    let ns = clock::nanoseconds(cycles).max(1);
    let moved = ops * load.block;
    report!(
        "{} ops={ops} bytes={moved} ns={ns} iops={} mb_per_s={} ns_per_op={} kicks={kicks} errors={errors} cycles={cycles} \
         qd={} bs={} queues={queue_count} packed={} event_idx={} indirect={}",
        task.name,
        (u128::from(ops) * 1_000_000_000 / u128::from(ns)) as u64,
        (u128::from(moved) * 1000 / u128::from(ns)) as u64,
        ns / ops.max(1),
        load.depth,
        load.block,
        u8::from(features & virtio::feature::PACKED != 0),
        u8::from(features & virtio::feature::EVENT_IDX != 0),
        u8::from(indirect)
    );
    if errors > 0 { Err(Failure::Checks(errors)) } else { Ok(()) }
}
