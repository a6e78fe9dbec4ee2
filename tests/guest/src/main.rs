//! The bare-metal x86_64 guest that tests and benchmarks boot.
//!
//! It enters through PVH (or the 64-bit Linux entry), goes straight to 64-bit ring 3 and does all its work there,
//! because some KVM backends run only ring 3 natively. Its tasks come from the kernel command line and its results
//! leave through a port, one line each; README.md in this folder describes both.

#![no_std]
#![no_main]

mod boot;
mod clock;
mod command_line;
mod cpu;
mod interrupts;
mod memory;
mod memory_functions;
mod pci;
mod print;
mod random;
mod tasks;
mod virtio;

use boot::{BootInfo, Entry};
use command_line::CommandLine;

core::arch::global_asm!(include_str!("boot.s"), options(raw));

/// Where the assembler arrives in ring 3, with .bss cleared: `information` is the address of the `hvm_start_info`
/// (PVH, `entry` 0) or of the `boot_params` (Linux, `entry` 1). `entered` is the time-stamp counter at the first
/// instruction there.
#[unsafe(no_mangle)]
extern "C" fn guest_main(information: u64, entry: u32, entered: u64) -> ! {
    let entry = if entry == 0 { Entry::Pvh } else { Entry::Linux };
    // SAFETY: the monitor left the structure of this entry's protocol there, and nothing has overwritten it.
    let boot = unsafe { BootInfo::read(information, entry) };
    let line = CommandLine::new(boot.command_line());
    print::choose(line.global("out"));
    interrupts::install();
    memory::install(&boot);
    pci::install(line.global_number("ecam"), boot.rsdp);
    clock::install(line.global_number("tsc_khz"));
    let failures = tasks::run_all(&line, &boot, entered);
    report!("done rc={}", if failures == 0 { 0 } else { 1 });
    cpu::end(line.global("end"))
}

#[panic_handler]
fn panic(information: &core::panic::PanicInfo) -> ! {
    report!("panic {information}");
    report!("done rc=101");
    cpu::end(None)
}
