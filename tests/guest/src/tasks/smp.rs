//! `smp`: starts the other processors with INIT-SIPI-SIPI and lets each show that it runs in ring 3.

use super::{Context, Failure, Outcome};
use crate::clock::Deadline;
use crate::command_line::Task;
use crate::{cpu, interrupts, memory, report};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

/// The page that the trampoline is copied to; its number is the start-up vector.
const AP_TRAMPOLINE: u64 = 0x8000;
const STACK: u64 = 16 * 1024;
const TSS_SIZE: u64 = 0x68 + 0x2000 + 1;
/// More processors than this do not wait for each other: each that waits takes time from those that start.
const TOGETHER: u64 = 32;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

static STARTED: AtomicU64 = AtomicU64::new(0);
static TURNS: AtomicU64 = AtomicU64::new(0);
static RELEASED: AtomicU64 = AtomicU64::new(0);
static FINISHED: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    safe static ap_trampoline: u8;
    safe static ap_trampoline_end: u8;
    safe static tss: [u8; TSS_SIZE as usize];
    safe static ap_stack: AtomicU64;
    safe static ap_interrupt_stack: AtomicU64;
    safe static ap_tss_descriptor: [AtomicU64; 2];
}

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

/// `smp cpus=N`: N processors in all; the IDs come from the MADT, or else are 0 to N-1.
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
    copy_trampoline();
    STARTED.store(0, Ordering::SeqCst);
    FINISHED.store(0, Ordering::SeqCst);
    RELEASED.store(u64::from(wanted > TOGETHER), Ordering::SeqCst);
    // SAFETY: the others wait to be started, or have halted for good.
    unsafe { *JOB.0.get() = job };
    let mut started = 0;
    for &id in ids.iter().filter(|&&id| id != own).take(wanted as usize - 1) {
        start(id);
        started += 1;
        if !Deadline::after(3000).wait(|| STARTED.load(Ordering::SeqCst) == started) {
            report!("smp missing_apic_id={id}");
            return Err(Failure::Timeout("start-up of a processor"));
        }
    }
    RELEASED.store(1, Ordering::SeqCst);
    Ok(Others { started, listed })
}

fn copy_trampoline() {
    let start = &raw const ap_trampoline;
    let size = &raw const ap_trampoline_end as usize - start as usize;
    // SAFETY: the page below 1 MiB is RAM on every PC, and what the monitor left there has been copied.
    unsafe { core::ptr::copy_nonoverlapping(start, AP_TRAMPOLINE as *mut u8, size) };
}

/// Gives the next processor its stacks and its TSS, and starts it. Processors are started one at a time, so one
/// descriptor serves all: each has loaded it before the next one's is written.
fn start(id: u8) {
    let task_state = memory::permanent(TSS_SIZE);
    // SAFETY: the new area is as large as the first processor's TSS, whose bitmap serves as the model.
    unsafe {
        core::ptr::copy_nonoverlapping((&raw const tss).cast(), task_state as *mut u8, TSS_SIZE as usize)
    };
    let interrupt_stack = memory::permanent(STACK) + STACK;
    cpu::write64(task_state + 4, interrupt_stack);
    ap_interrupt_stack.store(interrupt_stack, Ordering::SeqCst);
    ap_stack.store(memory::permanent(STACK) + STACK, Ordering::SeqCst);
    let low = (TSS_SIZE - 1) | (task_state & 0xff_ffff) << 16 | 0x89 << 40 | (task_state >> 24 & 0xff) << 56;
    ap_tss_descriptor[1].store(task_state >> 32, Ordering::SeqCst);
    ap_tss_descriptor[0].store(low, Ordering::SeqCst);
    interrupts::send(id, INIT);
    Deadline::after(10).wait(|| false);
    for _ in 0..2 {
        interrupts::send(id, STARTUP | (AP_TRAMPOLINE >> 12) as u32);
        Deadline::after(1).wait(|| false);
    }
}
