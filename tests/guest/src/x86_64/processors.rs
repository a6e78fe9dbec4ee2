//! The other processors: started with INIT-SIPI-SIPI, through a page that they enter in real mode.

use super::interrupts;
use crate::clock::Deadline;
use crate::tasks::power::Power;
use crate::{cpu, memory};
use core::sync::atomic::{AtomicU64, Ordering};

/// The page that the trampoline is copied to; its number is the start-up vector.
const AP_TRAMPOLINE: u64 = 0x8000;
const STACK: u64 = 16 * 1024;
const TSS_SIZE: u64 = 0x68 + 0x2000 + 1;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

/// Processors are stopped and started by interrupts, and not by the firmware.
pub const POWER: Option<Power> = None;

unsafe extern "C" {
    safe static ap_trampoline: u8;
    safe static ap_trampoline_end: u8;
    safe static tss: [u8; TSS_SIZE as usize];
    safe static ap_stack: AtomicU64;
    safe static ap_interrupt_stack: AtomicU64;
    safe static ap_tss_descriptor: [AtomicU64; 2];
}

/// Once, before any is started.
pub fn prepare() {
    let start = &raw const ap_trampoline;
    let size = &raw const ap_trampoline_end as usize - start as usize;
    // SAFETY: the page below 1 MiB is RAM on every PC, and what the monitor left there has been copied.
    unsafe { core::ptr::copy_nonoverlapping(start, AP_TRAMPOLINE as *mut u8, size) };
}

/// Gives the next processor its stacks and its TSS, and starts it. Processors are started one at a time, so one
/// descriptor serves all: each has loaded it before the next one's is written.
pub fn start(id: u8) {
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
