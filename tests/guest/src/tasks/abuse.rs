//! `ring-abuse`: a guest that does what no driver may, and what must be left of the machine afterwards.
//!
//! Each case brings a block device up, does one bad thing (see `abuse_cases.rs`), waits a bounded time for what the
//! device makes of it, and then shows that the device works again after a reset and that another one never stopped.

use super::abuse_cases::CASES;
use super::{Context, Failure, Outcome, simple};
use crate::clock::Deadline;
use crate::command_line::Task;
use crate::virtio::block::{Block, SECTOR, request};
use crate::virtio::packed::PackedRing;
use crate::virtio::ring::{Buffer, Ring};
use crate::virtio::split::SplitRing;
use crate::virtio::{self, Device, Doorbell, Kind, feature, status};
use crate::{cpu, memory, report};

/// Descriptors of the abused queue.
pub const RING: u16 = 16;
/// How long a device may think about a bad request before it counts as having ignored it, in milliseconds.
const THINKING: u64 = 200;
const CANARY: u64 = 0xc0de_c0de_dead_beef;
const PAGE: u64 = 4096;

/// A device brought up to be abused, and memory of the right sizes for a request.
pub struct Stage {
    /// The abused device.
    pub device: Device,
    /// Another virtio device, if there is one.
    pub other: Option<Device>,
    /// Features agreed on.
    pub features: u64,
    /// Its first queue.
    pub ring: Ring,
    /// That queue's doorbell.
    pub doorbell: Doorbell,
    /// A request header of 16 bytes that asks for a read of sector 0.
    pub header: u64,
    /// A page.
    pub buffer: u64,
    /// A byte.
    pub status: u64,
    /// A page for indirect tables.
    pub table: u64,
    /// First byte behind the RAM that holds this program.
    pub ram_end: u64,
    /// The case's own checks that failed.
    pub failed: u64,
}

impl Stage {
    /// The split ring; only cases that asked for one call this.
    pub fn split(&mut self) -> &mut SplitRing {
        match &mut self.ring {
            Ring::Split(ring) => ring,
            Ring::Packed(_) => panic!("this case needs a split ring"),
        }
    }

    /// The packed ring; only cases that asked for one call this.
    pub fn packed(&mut self) -> &mut PackedRing {
        match &mut self.ring {
            Ring::Packed(ring) => ring,
            Ring::Split(_) => panic!("this case needs a packed ring"),
        }
    }

    /// Publishes, and rings whether the device asks for it or not.
    pub fn kick(&mut self) {
        self.ring.publish();
        self.doorbell.ring();
    }

    /// Gives the device a request that is in order.
    pub fn add_good(&mut self, slot: u16) {
        let chain = [
            Buffer::readable(self.header, 16),
            Buffer::writable(self.buffer, SECTOR as u32),
            Buffer::writable(self.status, 1),
        ];
        self.ring.add(slot, &chain);
    }

    /// Notes what a specification promises and the device has to keep.
    pub fn check(&mut self, what: &str, holds: bool) {
        if !holds {
            report!("ring-abuse check=\"{what}\" holds=0");
            self.failed += 1;
        }
    }
}

/// Lets a device do a piece of its work, from reset to reset.
///
/// # Errors
/// It does not.
pub fn prove(device: &Device) -> Outcome {
    match device.kind {
        Kind::Block => {
            let mut block = Block::start(*device, 16, 0, feature::EVENT_IDX)?;
            let buffer = memory::take(SECTOR, 512) as u64;
            block.expect(request::READ, 0, Some(Buffer::writable(buffer, SECTOR as u32)))?;
        }
        Kind::Entropy => _ = simple::entropy(*device, 0, 16)?,
        _ => {
            device.negotiate(0, 0)?;
            device.start();
            if device.status() & status::DRIVER_OK == 0 {
                return Err(Failure::Device("DRIVER_OK does not stick"));
            }
        }
    }
    device.reset()
}

/// `ring-abuse case=NAME|all skip=NAME,NAME dev=0`.
pub fn run(context: &Context, task: &Task) -> Outcome {
    let device = virtio::find(context.line, Kind::Block, task.number("dev", 0)?)?;
    let wanted = task.text("case").unwrap_or("all");
    let skipped = |name: &str| task.text("skip").is_some_and(|list| list.split(',').any(|each| each == name));
    let mut other = None;
    virtio::devices(context.line, |each| {
        if !each.is(&device) && other.is_none() {
            other = Some(each);
        }
    });
    let ram_end = context.boot.regions().iter().map(|region| region.end).find(|&end| end > memory::limit());
    let (mut ran, mut failed) = (0u64, 0u64);
    for case in CASES.iter().filter(|case| wanted == "all" || case.name == wanted) {
        if skipped(case.name) {
            continue;
        }
        ran += 1;
        let mark = memory::mark();
        let outcome = run_case(case, device, other, ram_end.unwrap_or(memory::limit()));
        match outcome {
            Ok(true) => {}
            Ok(false) => failed += 1,
            Err(Failure::Unsupported(what)) => {
                report!("ring-abuse case={} skipped=1 because=\"{what}\"", case.name)
            }
            Err(failure) => {
                report!("ring-abuse case={} error=\"{failure}\"", case.name);
                failed += 1;
            }
        }
        memory::release(mark);
    }
    if ran == 0 {
        return Err(Failure::BadValue("case"));
    }
    report!("ring-abuse cases={ran} failed={failed}");
    if failed > 0 { Err(Failure::Checks(failed)) } else { Ok(()) }
}

/// One bad thing.
pub struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// Features that it needs.
    pub features: u64,
    /// What it does.
    pub run: fn(&mut Stage) -> Outcome,
}

/// Runs a case; tells whether all that must hold afterwards does.
fn run_case(case: &Case, device: Device, other: Option<Device>, ram_end: u64) -> Result<bool, Failure> {
    let features = device.negotiate(case.features, 0)?;
    let ring = device.make_queue(0, RING, 4, features, false)?;
    device.start();
    let canaries = memory::take(3 * PAGE, PAGE) as u64;
    (0..3 * PAGE).step_by(8).for_each(|offset| cpu::write64(canaries + offset, CANARY));
    let mut stage = Stage {
        device,
        other,
        features,
        ring,
        doorbell: device.doorbell(0),
        header: memory::take(16, 16) as u64,
        // Between two pages that nothing may write.
        buffer: canaries + PAGE,
        status: memory::take(1, 16) as u64,
        table: memory::take(PAGE, PAGE) as u64,
        ram_end,
        failed: 0,
    };
    cpu::write8(stage.status, 0xff);
    (case.run)(&mut stage)?;

    let mut used = 0;
    Deadline::after(THINKING).wait(|| {
        while used < 64 && stage.ring.take().is_some() {
            used += 1;
        }
        used > 0 || device.status() & status::NEEDS_RESET != 0
    });
    let after = device.status();
    let outcome = cpu::read8(stage.status);
    device.reset()?;
    let intact = (0..PAGE).step_by(8).all(|offset| {
        cpu::read64(canaries + offset) == CANARY && cpu::read64(canaries + 2 * PAGE + offset) == CANARY
    });
    let recovered = prove(&device);
    let others = other.map(|each| prove(&each));
    let word = |outcome: &Outcome| if outcome.is_ok() { "1" } else { "0" };
    report!(
        "ring-abuse case={} used={used} request_status={outcome:#x} needs_reset={} checks_failed={} intact={} recovered={} \
         other_works={}",
        case.name,
        u8::from(after & status::NEEDS_RESET != 0),
        stage.failed,
        u8::from(intact),
        word(&recovered),
        others.as_ref().map_or("-", word)
    );
    Ok(stage.failed == 0 && intact && recovered.is_ok() && others.is_none_or(|outcome| outcome.is_ok()))
}
