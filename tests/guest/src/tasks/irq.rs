//! `irq`: interrupts that really arrive: from this processor, from its timer, and from a virtio device by MSI-X.

use super::{Context, Failure, Outcome};
use crate::clock::Deadline;
use crate::command_line::Task;
use crate::virtio::block::{Block, SECTOR, request};
use crate::virtio::ring::{Buffer, Ring, RingKind};
use crate::virtio::{self, Kind, feature};
use crate::{clock, cpu, interrupts, memory, report};

const SELF_VECTOR: u8 = 0x40;
const TIMER_VECTOR: u8 = 0x41;
const DEVICE_VECTOR: u8 = 0x42;

/// `irq n=100 dev=0 kind=all|self|timer|msix|halt packed=0`.
pub fn run(context: &Context, task: &Task) -> Outcome {
    let kind = task.text("kind").unwrap_or("all");
    let count = task.number("n", 100)?;
    interrupts::enable()?;
    let outcome = run_enabled(context, task, kind, count);
    interrupts::disable();
    outcome
}

fn run_enabled(context: &Context, task: &Task, kind: &str, count: u64) -> Outcome {
    let all = kind == "all";
    if all || kind == "self" {
        measure("self", SELF_VECTOR, count, || {
            interrupts::send_to_self(SELF_VECTOR);
            Ok(())
        })?;
    }
    if all || kind == "timer" {
        measure("timer", TIMER_VECTOR, count, || {
            interrupts::arm_timer(TIMER_VECTOR, 10_000);
            Ok(())
        })?;
    }
    if all || kind == "halt" {
        let before = interrupts::count(TIMER_VECTOR);
        // Halting lets interrupts in. Until then they are kept out: on a busy host the timer may be faster, and nothing would
        // wake the processor any more.
        interrupts::disable();
        for _ in 0..count {
            interrupts::arm_timer(TIMER_VECTOR, 1_000_000);
            cpu::halt();
        }
        cpu::enable_interrupts();
        report!("irq kind=halt n={count} wakes={}", interrupts::count(TIMER_VECTOR) - before);
    }
    if all || kind == "msix" {
        msix(context, task, count)?;
    }
    Ok(())
}

/// Raises an interrupt `count` times, each time waiting until it has been counted.
fn measure(name: &str, vector: u8, count: u64, mut raise: impl FnMut() -> Result<(), Failure>) -> Outcome {
    let mut total = 0;
    for _ in 0..count {
        let before = interrupts::count(vector);
        let begun = cpu::tsc();
        raise()?;
        if !Deadline::after(2000).wait(|| interrupts::count(vector) != before) {
            report!("irq kind={name} missing=1");
            return Err(Failure::Timeout("an interrupt"));
        }
        total += cpu::tsc() - begun;
    }
    report!("irq kind={name} n={count} ns_each={}", clock::nanoseconds(total) / count.max(1));
    Ok(())
}

/// Reads single sectors from a block device and waits for the interrupt of each.
fn msix(context: &Context, task: &Task, count: u64) -> Outcome {
    let device = virtio::find(context.line, Kind::Block, task.number("dev", 0)?)?;
    let msix = device.msix().ok_or(Failure::Unsupported("device has no MSI-X"))?;
    let (address, data) = interrupts::message(msix.requester_id(), interrupts::apic_id(), DEVICE_VECTOR);
    let entry = msix.entries - 1;
    (0..msix.entries).for_each(|each| msix.set(each, 0, 0, true));
    msix.enable(true);
    msix.set(entry, address, data, false);
    let required = if task.switch("packed", false)? { feature::PACKED } else { 0 };
    let features = device.negotiate(required, feature::EVENT_IDX)?;
    let kind = if features & feature::PACKED != 0 { RingKind::Packed } else { RingKind::Split };
    let mut ring = Ring::new(kind, 16, 4, features & feature::EVENT_IDX != 0, false);
    device.place_queue(0, &ring.layout());
    if device.set_queue_vector(0, entry) != entry {
        return Err(Failure::Device("does not take an MSI-X vector that it has"));
    }
    device.enable_queue(0);
    device.start();
    let doorbell = device.doorbell(0);
    let header = memory::take(16, 16) as u64;
    let buffer = memory::take(SECTOR, 512) as u64;
    let status = memory::take(1, 1) as u64;
    cpu::write32(header, request::READ);
    let chain =
        [Buffer::readable(header, 16), Buffer::writable(buffer, SECTOR as u32), Buffer::writable(status, 1)];
    ring.want_interrupt(true);
    let submit = |ring: &mut Ring| {
        ring.add(0, &chain);
        if ring.publish() {
            doorbell.ring();
        }
    };
    // A completion is taken only after its interrupt: taking it tells the device that none is needed any more.
    let mut first = true;
    let outcome = measure("msix", DEVICE_VECTOR, count, || {
        if !first && ring.take().is_none() {
            return Err(Failure::Device("interrupt without a completion"));
        }
        first = false;
        submit(&mut ring);
        Ok(())
    });
    // A masked entry holds its interrupt back until it is unmasked (PCIe 6.0, 7.7.2.7).
    let masked = outcome.and_then(|()| {
        msix.set(entry, address, data, true);
        let before = interrupts::count(DEVICE_VECTOR);
        ring.take();
        submit(&mut ring);
        let done = Deadline::after(2000).wait(|| ring.has_completion());
        Deadline::after(20).wait(|| false);
        let held = interrupts::count(DEVICE_VECTOR) == before;
        msix.set(entry, address, data, false);
        let delivered = Deadline::after(2000).wait(|| interrupts::count(DEVICE_VECTOR) != before);
        report!(
            "irq kind=msix-mask done={} held={} delivered={}",
            u8::from(done),
            u8::from(held),
            u8::from(delivered)
        );
        if done && held && delivered { Ok(()) } else { Err(Failure::Checks(1)) }
    });
    device.reset()?;
    msix.enable(false);
    // The device must work without MSI-X again.
    let mut block = Block::start(device, 16, 0, 0)?;
    block.expect(request::READ, 0, Some(Buffer::writable(buffer, SECTOR as u32)))?;
    device.reset()?;
    masked
}
