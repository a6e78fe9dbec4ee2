//! `smp`: starts the other processors and lets each show that it runs.

use super::{Context, Failure, Outcome};
use crate::clock::Deadline;
use crate::command_line::Task;
use crate::native::processors;
use crate::{cpu, interrupts, report};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

/// More processors than this do not wait for each other: each that waits takes time from those that start.
const TOGETHER: u64 = 32;

static STARTED: AtomicU64 = AtomicU64::new(0);
static TURNS: AtomicU64 = AtomicU64::new(0);
static RELEASED: AtomicU64 = AtomicU64::new(0);
static FINISHED: AtomicU64 = AtomicU64::new(0);

/// What the other processors do once all have come. Written before they are started.
struct Job(UnsafeCell<fn()>);
// SAFETY: written by the first processor while no other one runs.
unsafe impl Sync for Job {}
static JOB: Job = Job(UnsafeCell::new(count_turns));

/// What each other processor does: says that it came, waits until it may, does its job, and halts.
#[unsafe(no_mangle)]
pub extern "C" fn ap_main() -> ! {
    STARTED.fetch_add(1, Ordering::SeqCst);
    while RELEASED.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    // SAFETY: it is not written while this processor runs.
    unsafe { (*JOB.0.get())() };
    FINISHED.fetch_add(1, Ordering::SeqCst);
    cpu::disable_interrupts();
    cpu::end(Some("halt"))
}

/// Has each processor that starts from now on do `job` at once. No other one runs.
pub fn set_job(job: fn()) {
    // SAFETY: as said.
    unsafe { *JOB.0.get() = job };
    RELEASED.store(1, Ordering::SeqCst);
}

fn count_turns() {
    for _ in 0..1000 {
        TURNS.fetch_add(1, Ordering::SeqCst);
    }
}

/// Other processors at work.
pub struct Others {
    /// How many.
    pub started: u64,
    listed: usize,
}

impl Others {
    /// Waits until all have done their job.
    ///
    /// # Errors
    /// They take far too long.
    pub fn finish(&self) -> Outcome {
        match Deadline::after(20_000).wait(|| FINISHED.load(Ordering::SeqCst) == self.started) {
            true => Ok(()),
            false => Err(Failure::Timeout("other processors")),
        }
    }
}

/// `smp cpus=N`: N processors in all; the IDs come from the MADT, or else (always on Arm) are 0 to N-1.
pub fn run(context: &Context, task: &Task) -> Outcome {
    TURNS.store(0, Ordering::SeqCst);
    let begun = cpu::tsc();
    let others = start_others(context, task, count_turns)?;
    let cycles = cpu::tsc() - begun;
    let started = others.started;
    if !Deadline::after(3000).wait(|| TURNS.load(Ordering::SeqCst) == started * 1000) {
        return Err(Failure::Timeout("all processors counting"));
    }
    others.finish()?;
    report!(
        "smp cpus={} listed={} boot_apic_id={} turns={} ns={}",
        started + 1,
        others.listed,
        interrupts::apic_id(),
        TURNS.load(Ordering::SeqCst),
        crate::clock::nanoseconds(cycles)
    );
    Ok(())
}

/// Has the other processors of `cpus=N` do `job`: all at once, or one after the other when they are more than
/// [`TOGETHER`].
///
/// # Errors
/// They are not there or do not start.
pub fn start_others(context: &Context, task: &Task, job: fn()) -> Result<Others, Failure> {
    let wanted = task.number("cpus", 2)?;
    if !(1..=254).contains(&wanted) {
        return Err(Failure::BadValue("cpus"));
    }
    interrupts::enable()?;
    interrupts::disable();
    let mut ids = [0; 255];
    let listed = interrupts::processors(context.boot, &mut ids);
    if listed == 0 {
        ids.iter_mut().enumerate().for_each(|(index, id)| *id = index as u8);
    } else if (listed as u64) < wanted {
        return Err(Failure::Unsupported("the MADT lists fewer processors"));
    }
    let own = interrupts::apic_id();
    processors::prepare();
    STARTED.store(0, Ordering::SeqCst);
    FINISHED.store(0, Ordering::SeqCst);
    RELEASED.store(u64::from(wanted > TOGETHER), Ordering::SeqCst);
    // SAFETY: the others wait to be started, or have halted for good.
    unsafe { *JOB.0.get() = job };
    let mut started = 0;
    for &id in ids.iter().filter(|&&id| id != own).take(wanted as usize - 1) {
        processors::start(id);
        started += 1;
        if !Deadline::after(3000).wait(|| STARTED.load(Ordering::SeqCst) == started) {
            report!("smp missing_apic_id={id}");
            return Err(Failure::Timeout("start-up of a processor"));
        }
    }
    RELEASED.store(1, Ordering::SeqCst);
    Ok(Others { started, listed })
}
