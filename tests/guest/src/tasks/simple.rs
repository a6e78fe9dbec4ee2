//! `rng` and `console`: one exchange each; `watchdog`: a few, and then silence.

use super::{Context, Failure, Outcome};
use crate::clock::Deadline;
use crate::command_line::Task;
use crate::virtio::ring::{Buffer, Ring};
use crate::virtio::{self, Device, Doorbell, Kind};
use crate::{cpu, memory, report};

/// Gives a chain to an idle queue and waits for its completion; returns how many bytes the device says it wrote.
fn exchange(
    ring: &mut Ring,
    doorbell: Doorbell,
    chain: &[Buffer],
    milliseconds: u64,
) -> Result<u32, Failure> {
    ring.add(0, chain);
    if ring.publish() {
        doorbell.ring();
    }
    let mut completion = None;
    Deadline::after(milliseconds).wait(|| {
        completion = ring.take();
        completion.is_some()
    });
    completion.map(|(_, written)| written).ok_or(Failure::Timeout("completion"))
}

/// Asks an entropy device for bytes; returns the address and how many came.
///
/// # Errors
/// The device does not answer, or says that it wrote more than there was room for.
pub fn entropy(device: Device, features: u64, room: u32) -> Result<(u64, u32), Failure> {
    let features = device.negotiate(features, virtio::feature::EVENT_IDX)?;
    let mut ring = device.make_queue(0, 16, 1, features, false)?;
    device.start();
    let buffer = memory::take(u64::from(room), 64) as u64;
    let written = exchange(&mut ring, device.doorbell(0), &[Buffer::writable(buffer, room)], 5000)?;
    device.reset()?;
    if written == 0 || written > room {
        return Err(Failure::Device("wrote no bytes, or more than there was room for"));
    }
    Ok((buffer, written))
}

/// `rng dev=0 bytes=64 packed=0`: two requests, whose bytes must differ.
pub fn rng(context: &Context, task: &Task) -> Outcome {
    let device = virtio::find(context.line, Kind::Entropy, task.number("dev", 0)?)?;
    let required = if task.switch("packed", false)? { virtio::feature::PACKED } else { 0 };
    let room = task.number("bytes", 64)?.clamp(1, 1 << 20) as u32;
    let (first, first_written) = entropy(device, required, room)?;
    let (second, second_written) = entropy(device, required, room)?;
    let length = u64::from(first_written.min(second_written));
    let same = (0..length).filter(|&at| cpu::read8(first + at) == cpu::read8(second + at)).count() as u64;
    report!("rng bytes={first_written} second_bytes={second_written} same={same}");
    // Of random bytes, one in 256 is the same; sixteen bytes or more of which half agree are not random.
    if length >= 16 && same * 2 > length { Err(Failure::Device("bytes are not random")) } else { Ok(()) }
}

/// `console dev=0 text=hello read=0 secs=5`: writes a line, and with `read=N` waits for N bytes of input and prints
/// them.
pub fn console(context: &Context, task: &Task) -> Outcome {
    let device = virtio::find(context.line, Kind::Console, task.number("dev", 0)?)?;
    let required = if task.switch("packed", false)? { virtio::feature::PACKED } else { 0 };
    let wanted = task.number("read", 0)?.min(256);
    let patience = task.number("secs", 5)?.saturating_mul(1000);
    let text = task.text("text").unwrap_or("hello");
    let features = device.negotiate(required, virtio::feature::EVENT_IDX)?;
    let mut receive = device.make_queue(0, 16, 1, features, false)?;
    let mut transmit = device.make_queue(1, 16, 1, features, false)?;
    device.start();
    let line = memory::take(text.len() as u64 + 1, 64);
    // SAFETY: the memory was taken for the text and a line end.
    unsafe {
        core::ptr::copy_nonoverlapping(text.as_ptr(), line, text.len());
        line.add(text.len()).write(b'\n');
    }
    exchange(
        &mut transmit,
        device.doorbell(1),
        &[Buffer::readable(line as u64, text.len() as u32 + 1)],
        patience,
    )?;
    let input = memory::take(256, 64);
    let buffer = memory::take(64, 64);
    let mut got = 0;
    while got < wanted {
        let written =
            exchange(&mut receive, device.doorbell(0), &[Buffer::writable(buffer as u64, 64)], patience)?;
        let count = u64::from(written).min(64).min(256 - got);
        // SAFETY: both areas are this task's, and the count stays within them.
        unsafe { core::ptr::copy_nonoverlapping(buffer, input.add(got as usize), count as usize) };
        got += count;
    }
    device.reset()?;
    // SAFETY: so many bytes were copied there.
    let bytes = unsafe { core::slice::from_raw_parts(input, got as usize) };
    report!(
        "console written={} read={got} text={:?}",
        text.len() + 1,
        core::str::from_utf8(bytes).unwrap_or("?")
    );
    Ok(())
}

/// The device type of the watchdog that cloud-hypervisor has.
const WATCHDOG: Kind = Kind::Other(35);

/// `watchdog n=1 pings=2`: reports to so many watchdogs, each so often, and leaves them running. It is the last task: what they have of
/// the guest's memory is not theirs any more after it.
pub fn watchdog(context: &Context, task: &Task) -> Outcome {
    let pings = task.number("pings", 2)?.max(1);
    for dev in 0..task.number("n", 1)? {
        let device = virtio::find(context.line, WATCHDOG, dev)?;
        let features = device.negotiate(0, virtio::feature::EVENT_IDX)?;
        let mut ring = device.make_queue(0, 8, 1, features, false)?;
        device.start();
        let answer = memory::take(1, 64) as u64;
        for _ in 0..pings {
            cpu::write8(answer, 0);
            let written = exchange(&mut ring, device.doorbell(0), &[Buffer::writable(answer, 1)], 5000)?;
            if (written, cpu::read8(answer)) != (1, 1) {
                return Err(Failure::Device("does not answer with a 1"));
            }
        }
        report!("watchdog dev={dev} pings={pings}");
    }
    Ok(())
}
