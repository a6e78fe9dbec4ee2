//! Instructions: ports, device memory, clock reads, and the ring-0 services of `boot.s`.

use core::arch::asm;

// The ring-0 services, in the order of the table in boot.s.
const ENABLE_INTERRUPTS: u32 = 0;
const DISABLE_INTERRUPTS: u32 = 1;
const HALT: u32 = 2;
const READ_MSR: u32 = 3;
const WRITE_MSR: u32 = 4;
const FORGET_IDT: u32 = 5;
const HALT_FOREVER: u32 = 6;

macro_rules! port_access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads a port.
        pub fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: the I/O bitmap lets ring 3 read any port; a port read touches no memory of this program.
            unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nostack, preserves_flags)) };
            value
        }

        /// Writes a port.
        pub fn $write(port: u16, value: $type) {
            // SAFETY: as for reads.
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack, preserves_flags)) };
        }
    };
}

port_access!(in8, out8, u8, "al");
port_access!(in16, out16, u16, "ax");
port_access!(in32, out32, u32, "eax");

/// Writes a byte of a report through a port.
pub fn print(port: u16, byte: u8) {
    out8(port, byte);
}

macro_rules! device_memory_access {
    ($read:ident, $write:ident, $type:ty, $name:literal, $modifier:literal) => {
        /// Reads device memory with one plain `mov` of this width.
        pub fn $read(address: u64) -> $type {
            let value: $type;
            // SAFETY: all of the guest's address space is mapped, and what is read is no object of this program.
            unsafe {
                asm!(concat!("mov {value", $modifier, "}, ", $name, " ptr [{address}]"),
                    address = in(reg) address, value = lateout(reg) value, options(nostack, preserves_flags))
            };
            value
        }

        /// Writes device memory with one plain `mov` of this width.
        pub fn $write(address: u64, value: $type) {
            // SAFETY: callers pass addresses of device registers or of memory that they own.
            unsafe {
                asm!(concat!("mov ", $name, " ptr [{address}], {value", $modifier, "}"),
                    address = in(reg) address, value = in(reg) value, options(nostack, preserves_flags))
            };
        }
    };
}

device_memory_access!(read16, write16, u16, "word", ":x");
device_memory_access!(read32, write32, u32, "dword", ":e");
device_memory_access!(read64, write64, u64, "qword", "");

/// Reads a byte of device memory.
pub fn read8(address: u64) -> u8 {
    let value: u8;
    // SAFETY: as for the wider reads.
    unsafe {
        asm!("mov {value}, byte ptr [{address}]", address = in(reg) address, value = lateout(reg_byte) value,
            options(nostack, preserves_flags))
    };
    value
}

/// Writes a byte of device memory.
pub fn write8(address: u64, value: u8) {
    // SAFETY: as for the wider writes.
    unsafe {
        asm!("mov byte ptr [{address}], {value}", address = in(reg) address, value = in(reg_byte) value,
            options(nostack, preserves_flags))
    };
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The four registers of a CPUID leaf. A backend that runs ring 3 natively answers with the host's.
pub fn cpuid(leaf: u32, subleaf: u32) -> core::arch::x86_64::CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// Lets interrupts in.
pub fn enable_interrupts() {
    // SAFETY: the gate only sets IF in the flags it returns with.
    unsafe { asm!("int3", inout("esi") ENABLE_INTERRUPTS => _) };
}

/// Keeps interrupts out.
pub fn disable_interrupts() {
    // SAFETY: the gate only clears IF in the flags it returns with.
    unsafe { asm!("int3", inout("esi") DISABLE_INTERRUPTS => _) };
}

/// Halts until an interrupt has been handled.
pub fn halt() {
    // SAFETY: the gate halts with interrupts enabled and returns.
    unsafe { asm!("int3", inout("esi") HALT => _) };
}

/// Reads a model-specific register; one the machine lacks ends the guest with an exception report.
pub fn read_msr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the gate executes rdmsr and returns.
    unsafe { asm!("int3", inout("esi") READ_MSR => _, in("ecx") index, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
pub fn write_msr(index: u32, value: u64) {
    // SAFETY: the gate executes wrmsr and returns; callers write only the APIC's and the paravirtual clock's registers.
    unsafe {
        asm!("int3", inout("esi") WRITE_MSR => _, in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32)
    };
}

/// Ends the guest as `end=` says: `reset` (also without a value), `halt`, `spin`, `triple`, or
/// `s5:<port>:<value>` for a 16-bit write to a sleep-control port.
pub fn end(how: Option<&str>) -> ! {
    match how {
        Some("spin") => loop {
            core::hint::spin_loop();
        },
        Some("halt") => halt_forever(),
        Some("triple") => triple_fault(),
        Some(text) if text.starts_with("s5:") => {
            let mut parts =
                text.split(':').skip(1).map(|part| crate::command_line::number(part).unwrap_or(0));
            let (port, value) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
            out16(port as u16, value as u16);
            halt_forever()
        }
        _ => {
            // The keyboard controller's reset line first, then the chipset's reset register, then the way that
            // needs no device at all. Each takes effect at the latest when the write returns.
            out8(0x64, 0xfe);
            out8(0xcf9, 0x06);
            triple_fault()
        }
    }
}

fn halt_forever() -> ! {
    // SAFETY: the gate does not return.
    unsafe { asm!("int3", in("esi") HALT_FOREVER, options(noreturn)) }
}

fn triple_fault() -> ! {
    // SAFETY: the gate loads an empty IDT, after which the undefined instruction cannot be delivered.
    unsafe { asm!("int3", "ud2", in("esi") FORGET_IDT, options(noreturn)) }
}
