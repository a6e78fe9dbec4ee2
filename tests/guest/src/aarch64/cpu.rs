//! Instructions: device memory, clock reads, interrupts in and out, and calls of the firmware (PSCI).

use core::arch::asm;

/// The data register of the PL011, through which reports leave.
const SERIAL: u64 = 0x900_0000;
// PSCI (Arm DEN0022), functions.
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;

macro_rules! no_port {
    ($read:ident, $write:ident, $type:ty) => {
        /// There are no ports: reads as all ones.
        pub fn $read(_port: u16) -> $type {
            <$type>::MAX
        }

        /// There are no ports: does nothing.
        pub fn $write(_port: u16, _value: $type) {}
    };
}

no_port!(in8, out8, u8);
no_port!(in16, out16, u16);
no_port!(in32, out32, u32);

/// Writes a byte of a report to the serial port.
pub fn print(_port: u16, byte: u8) {
    write8(SERIAL, byte);
}

macro_rules! device_memory_access {
    ($read:ident, $write:ident, $type:ty, $suffix:literal, $modifier:literal) => {
        /// Reads device memory with one plain load of this width.
        pub fn $read(address: u64) -> $type {
            let value: $type;
            // SAFETY: all that is read is mapped, and is no object of this program.
            unsafe {
                asm!(concat!("ldr", $suffix, " {value:", $modifier, "}, [{address}]"),
                    address = in(reg) address, value = lateout(reg) value, options(nostack, preserves_flags))
            };
            value
        }

        /// Writes device memory with one plain store of this width; what was written before is there before.
        pub fn $write(address: u64, value: $type) {
            // SAFETY: callers pass addresses of device registers or of memory that they own.
            unsafe {
                asm!("dsb st", concat!("str", $suffix, " {value:", $modifier, "}, [{address}]"),
                    address = in(reg) address, value = in(reg) value, options(nostack, preserves_flags))
            };
        }
    };
}

device_memory_access!(read8, write8, u8, "b", "w");
device_memory_access!(read16, write16, u16, "h", "w");
device_memory_access!(read32, write32, u32, "", "w");
device_memory_access!(read64, write64, u64, "", "x");

/// The virtual counter.
pub fn tsc() -> u64 {
    let value: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack, preserves_flags)) };
    value
}

/// Reads a system register.
#[macro_export]
macro_rules! read_register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading it changes nothing.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags)) };
        value
    }};
}

/// Writes a system register.
#[macro_export]
macro_rules! write_register {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: only registers of the interrupt controller and the timer are written.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack, preserves_flags)) };
    }};
}

/// Lets interrupts in.
pub fn enable_interrupts() {
    // SAFETY: the handler keeps all registers.
    unsafe { asm!("msr daifclr, #2", "isb") };
}

/// Keeps interrupts out.
pub fn disable_interrupts() {
    // SAFETY: only changes the mask.
    unsafe { asm!("msr daifset, #2", "isb") };
}

/// Halts until an interrupt has been handled; they are kept out before and after.
pub fn halt() {
    // SAFETY: one that is kept out wakes the processor, too.
    unsafe { asm!("wfi", "msr daifclr, #2", "isb", "msr daifset, #2", "isb") };
}

/// Calls the firmware, which is in the hypervisor (Arm DEN0028, SMC Calling Convention).
pub fn firmware(function: u64, first: u64, second: u64, third: u64) -> i64 {
    let result: u64;
    // SAFETY: the call may change the first 18 registers and no memory.
    unsafe {
        asm!("hvc #0", inout("x0") function => result, inout("x1") first => _, inout("x2") second => _,
            inout("x3") third => _, out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
            out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _,
            out("x17") _)
    };
    result.cast_signed()
}

/// Ends the guest as `end=` says: `reset` (also without a value), `halt`, `spin`, or `s5...` to power off.
pub fn end(how: Option<&str>) -> ! {
    match how {
        Some("spin") => loop {
            core::hint::spin_loop();
        },
        Some("halt") => {}
        Some(text) if text.starts_with("s5") => _ = firmware(SYSTEM_OFF, 0, 0, 0),
        _ => _ = firmware(SYSTEM_RESET, 0, 0, 0),
    }
    disable_interrupts();
    loop {
        // SAFETY: waits.
        unsafe { asm!("wfi") };
    }
}
