//! The IDT, interrupt counts, exceptions, and the local APIC through its memory page (xAPIC).

use crate::boot_info::BootInfo;
use crate::{cpu, report};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

/// Address of the local APIC's registers.
const APIC: u64 = 0xfee0_0000;
const APIC_ID: u64 = 0x20;
const APIC_SPURIOUS: u64 = 0xf0;
const APIC_COMMAND: u64 = 0x300;
const APIC_COMMAND_DESTINATION: u64 = 0x310;
const APIC_TIMER: u64 = 0x320;
const APIC_TIMER_INITIAL: u64 = 0x380;
const APIC_TIMER_DIVIDE: u64 = 0x3e0;
const APIC_BASE_MSR: u32 = 0x1b;
/// Size of each stub in `boot.s`.
const STUB: u64 = 32;
/// The gate by which ring 3 asks for a ring-0 service.
const SERVICES: usize = 3;

/// The interrupt descriptor table; `boot.s` loads its address before it is filled.
#[repr(C, align(4096))]
pub struct Idt(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: written once, by the first processor, before any other one runs.
unsafe impl Sync for Idt {}
/// The table of all processors.
#[unsafe(no_mangle)]
pub static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

/// How often each vector's interrupt came, counted by `boot.s`.
#[unsafe(no_mangle)]
pub static INTERRUPT_COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// The last exception: vector, error code, RIP, RSP, CR2; written by `boot.s`.
#[unsafe(no_mangle)]
pub static EXCEPTION: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

unsafe extern "C" {
    safe static vector_stubs: u8;
}

/// Fills the IDT.
pub fn install() {
    let stubs = &raw const vector_stubs as u64;
    for vector in 0..256 {
        let handler = stubs + STUB * vector as u64;
        let dpl = if vector == SERVICES { 3 } else { 0 };
        let low = (handler & 0xffff) | 0x10 << 16 | (0x8e | dpl << 5) << 40 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: no exception has happened yet and no other processor runs.
        unsafe { (*IDT.0.get())[vector] = [low, handler >> 32] };
    }
}

/// Where `boot.s` goes on after an exception.
#[unsafe(no_mangle)]
pub extern "C" fn exception_main() -> ! {
    let field = |index: usize| EXCEPTION[index].load(Ordering::Relaxed);
    report!(
        "exception vector={} error={:#x} rip={:#x} rsp={:#x} cr2={:#x}",
        field(0),
        field(1),
        field(2),
        field(3),
        field(4)
    );
    report!("done rc=102");
    cpu::end(None)
}

/// Interrupts of `vector` so far.
pub fn count(vector: u8) -> u64 {
    INTERRUPT_COUNTS[usize::from(vector)].load(Ordering::Relaxed)
}

/// Turns this processor's local APIC on and lets interrupts in; the 8259s stay silent.
///
/// # Errors
/// The monitor started the machine in x2APIC mode, which leaves no memory page to end interrupts through.
pub fn enable() -> Result<(), crate::tasks::Failure> {
    if cpu::read_msr(APIC_BASE_MSR) & 1 << 10 != 0 {
        return Err(crate::tasks::Failure::Unsupported("local APIC is in x2APIC mode"));
    }
    cpu::out8(0x21, 0xff);
    cpu::out8(0xa1, 0xff);
    cpu::write32(APIC + APIC_SPURIOUS, 0x1ff);
    cpu::enable_interrupts();
    Ok(())
}

/// Keeps interrupts out again.
pub fn disable() {
    cpu::disable_interrupts();
}

/// This processor's APIC ID.
pub fn apic_id() -> u8 {
    (cpu::read32(APIC + APIC_ID) >> 24) as u8
}

/// The message that any device writes to interrupt the processor `apic_id` with `vector`: address and data.
pub fn message(_requester_id: u16, apic_id: u8, vector: u8) -> (u64, u32) {
    (APIC | u64::from(apic_id) << 12, u32::from(vector))
}

/// Sends the interrupt command `command` (SDM volume 3, 11.6.1) to the processor `apic_id`.
pub fn send(apic_id: u8, command: u32) {
    cpu::write32(APIC + APIC_COMMAND_DESTINATION, u32::from(apic_id) << 24);
    cpu::write32(APIC + APIC_COMMAND, command);
}

/// Interrupts this processor.
pub fn send_to_self(vector: u8) {
    const TO_SELF: u32 = 1 << 18 | 1 << 14;
    send(0, TO_SELF | u32::from(vector));
}

/// Arms the APIC timer once: `vector` after `ticks` of its clock.
pub fn arm_timer(vector: u8, ticks: u32) {
    cpu::write32(APIC + APIC_TIMER_DIVIDE, 0b1011);
    cpu::write32(APIC + APIC_TIMER, u32::from(vector));
    cpu::write32(APIC + APIC_TIMER_INITIAL, ticks);
}

/// The APIC IDs of the processors that the MADT lists as usable (ACPI 6.5, 5.2.12), into `ids`; returns how many.
/// Without tables there are none.
pub fn processors(information: &BootInfo, ids: &mut [u8]) -> usize {
    let mut found = 0;
    let Some((start, length)) = crate::memory::acpi_table(information.rsdp, *b"APIC") else { return 0 };
    let mut offset = 44;
    while offset + 8 <= length && found < ids.len() {
        let entry = start + offset;
        let (kind, size) = (cpu::read8(entry), u64::from(cpu::read8(entry + 1)));
        let (id, flags) = match kind {
            0 => (u32::from(cpu::read8(entry + 3)), cpu::read32(entry + 4)),
            9 => (cpu::read32(entry + 4), cpu::read32(entry + 8)),
            _ => (u32::MAX, 0),
        };
        if flags & 1 != 0 && id < 255 {
            ids[found] = id as u8;
            found += 1;
        }
        if size == 0 {
            break;
        }
        offset += size;
    }
    found
}
