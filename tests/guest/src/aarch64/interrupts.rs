//! Interrupt counts, exceptions, the generic interrupt controller, and the virtual timer.

use super::gic;
use crate::boot_info::BootInfo;
use crate::{cpu, read_register, report, write_register};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How often each vector's interrupt came, counted by `boot.s`. Arm knows numbers, not vectors: a processor's interrupt 0 is
/// vector 0x40, messages have their vectors behind number 8192.
#[unsafe(no_mangle)]
pub static INTERRUPT_COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// The vector for which the timer was armed last.
#[unsafe(no_mangle)]
pub static TIMER_VECTOR: AtomicU64 = AtomicU64::new(0);

/// The last exception: syndrome, address of the instruction, stack, address of the access; written by `boot.s`.
#[unsafe(no_mangle)]
pub static EXCEPTION: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

static STARTED: AtomicBool = AtomicBool::new(false);

/// Nothing has to be: `boot.s` has the table of vectors.
pub fn install() {}

/// Where `boot.s` goes on after an exception.
#[unsafe(no_mangle)]
pub extern "C" fn exception_main() -> ! {
    let field = |index: usize| EXCEPTION[index].load(Ordering::Relaxed);
    report!(
        "exception syndrome={:#x} pc={:#x} sp={:#x} address={:#x}",
        field(0),
        field(1),
        field(2),
        field(3)
    );
    report!("done rc=102");
    cpu::end(None)
}

/// Interrupts of `vector` so far.
pub fn count(vector: u8) -> u64 {
    INTERRUPT_COUNTS[usize::from(vector)].load(Ordering::Relaxed)
}

/// Turns the interrupt controller on, once, and lets interrupts in.
///
/// # Errors
/// None: every machine here has one.
pub fn enable() -> Result<(), crate::tasks::Failure> {
    if !STARTED.swap(true, Ordering::Relaxed) {
        gic::start();
    }
    cpu::enable_interrupts();
    Ok(())
}

/// Keeps interrupts out again.
pub fn disable() {
    cpu::disable_interrupts();
}

/// This processor's number.
pub fn apic_id() -> u8 {
    let affinity = read_register!("mpidr_el1");
    (affinity & 0xf | (affinity >> 8 & 0xf) << 4) as u8
}

/// The message that the device `requester_id` writes to interrupt the first processor with `vector`: address and data.
pub fn message(requester_id: u16, _processor: u8, vector: u8) -> (u64, u32) {
    gic::map_message(requester_id, vector)
}

/// Interrupts this processor. `vector` is 0x40 and the number, 0 to 15.
pub fn send_to_self(vector: u8) {
    let target = 1 << (read_register!("mpidr_el1") & 0xf);
    write_register!("s3_0_c12_c11_5", u64::from(vector & 0xf) << 24 | target);
}

/// Arms the timer once: `vector` after `ticks`.
pub fn arm_timer(vector: u8, ticks: u32) {
    TIMER_VECTOR.store(u64::from(vector), Ordering::SeqCst);
    write_register!("cntv_tval_el0", u64::from(ticks));
    write_register!("cntv_ctl_el0", 1);
}

/// Nobody lists the processors: 0.
pub fn processors(_information: &BootInfo, _ids: &mut [u8]) -> usize {
    0
}
