//! `rtc`: the host's clocks, and an alarm (virtio 1.4, 5.23).

use super::{Context, Failure, Outcome};
use crate::clock::Deadline;
use crate::command_line::Task;
use crate::virtio::ring::{Buffer, Ring};
use crate::virtio::{self, Device, Doorbell, Kind};
use crate::{cpu, memory, report};

const READ: u64 = 1;
const CONFIG: u64 = 0x1000;
const CLOCK_CAPABILITIES: u64 = 0x1001;
const SET_ALARM: u64 = 0x1004;
const NOTIFY_ALARM: u64 = 0x2000;
const FEATURE_ALARM: u64 = 1 << 0;
const MONOTONIC: u64 = 2;
const PATIENCE_MS: u64 = 10_000;

struct Clock {
    requests: Ring,
    doorbell: Doorbell,
    /// The request, and the answer after it.
    buffer: u64,
}

impl Clock {
    /// Makes a request of up to three words; returns the words of the answer after its head.
    fn ask(&mut self, words: &[u64]) -> Result<[u64; 2], Failure> {
        let answer = self.buffer + 64;
        for (at, word) in (self.buffer..).step_by(8).zip(words) {
            cpu::write64(at, *word);
        }
        (0..3).for_each(|at| cpu::write64(answer + at * 8, u64::MAX));
        let chain = [Buffer::readable(self.buffer, words.len() as u32 * 8), Buffer::writable(answer, 24)];
        self.requests.add(0, &chain);
        if self.requests.publish() {
            self.doorbell.ring();
        }
        wait(&mut self.requests, "an answer of the clock")?;
        if cpu::read64(answer) != 0 {
            return Err(Failure::Device("a request to the clock was refused"));
        }
        Ok([cpu::read64(answer + 8), cpu::read64(answer + 16)])
    }

    fn read(&mut self, clock: u64) -> Result<u64, Failure> {
        Ok(self.ask(&[READ, clock])?[0])
    }
}

fn wait(ring: &mut Ring, what: &'static str) -> Result<(), Failure> {
    let came = Deadline::after(PATIENCE_MS).wait(|| ring.take().is_some());
    if came { Ok(()) } else { Err(Failure::Timeout(what)) }
}

/// `rtc dev=0 packed=0 alarm_ms=20`: reads every clock twice, and waits for an alarm of the monotonic one.
pub fn run(context: &Context, task: &Task) -> Outcome {
    let device: Device = virtio::find(context.line, Kind::Clock, task.number("dev", 0)?)?;
    let required = if task.switch("packed", false)? { virtio::feature::PACKED } else { 0 };
    let features = device.negotiate(required | FEATURE_ALARM, virtio::feature::EVENT_IDX)?;
    let requests = device.make_queue(0, 16, 2, features, false)?;
    let mut alarms = device.make_queue(1, 16, 1, features, false)?;
    device.start();
    let buffer = memory::take(128, 64) as u64;
    let mut clock = Clock { requests, doorbell: device.doorbell(0), buffer };
    let count = clock.ask(&[CONFIG])?[0];
    let mut monotonic = None;
    for id in 0..count {
        let kind = clock.ask(&[CLOCK_CAPABILITIES, id])?[0] & 0xff;
        let (first, second) = (clock.read(id)?, clock.read(id)?);
        report!("rtc clock={id} kind={kind} first={first} second={second}");
        if second < first {
            return Err(Failure::Device("a clock went backwards"));
        }
        if kind == MONOTONIC {
            monotonic = Some(id);
        }
    }
    let id = monotonic.ok_or(Failure::Device("there is no monotonic clock"))?;
    let message = memory::take(64, 64) as u64;
    alarms.add(0, &[Buffer::writable(message, 16)]);
    if alarms.publish() {
        device.doorbell(1).ring();
    }
    let time = clock.read(id)? + task.number("alarm_ms", 20)? * 1_000_000;
    clock.ask(&[SET_ALARM, time, id | 1 << 16])?;
    wait(&mut alarms, "an alarm")?;
    let now = clock.read(id)?;
    let told = (cpu::read64(message), cpu::read64(message + 8));
    device.reset()?;
    if told != (NOTIFY_ALARM, id) || now < time {
        return Err(Failure::Device("an alarm came too early, or of another clock"));
    }
    report!("rtc clocks={count} alarm=1 late_us={}", (now - time) / 1000);
    Ok(())
}
