//! The bare-metal guest that tests and benchmarks boot.
//!
//! On x86_64 it enters through PVH (or the 64-bit Linux entry), goes straight to 64-bit ring 3 and does all its work there,
//! because some KVM backends run only ring 3 natively. On aarch64 it is entered as a Linux `Image` and stays in exception
//! level 1. Its tasks come from the kernel command line and its results
//! leave through a port, one line each; README.md in this folder describes both.

#![no_std]
#![no_main]

mod boot_info;
mod clock;
mod command_line;
mod memory;
#[cfg_attr(target_arch = "aarch64", path = "aarch64/mod.rs")]
#[cfg_attr(target_arch = "x86_64", path = "x86_64/mod.rs")]
mod native;
mod pci;
mod print;
mod random;
mod tasks;
mod virtio;

use boot_info::BootInfo;
use command_line::CommandLine;
use native::boot::Entry;
use native::{cpu, interrupts};

/// Where the assembler arrives, on x86_64 in ring 3, with .bss cleared: `information` is the address of the `hvm_start_info`
/// (PVH, `entry` 0), of the `boot_params` (Linux, `entry` 1) or, on aarch64, of the device tree. `entered` is the counter at
/// the first instruction there.
#[unsafe(no_mangle)]
extern "C" fn guest_main(information: u64, entry: u32, entered: u64) -> ! {
    let entry = Entry::of(entry);
    // SAFETY: the monitor left the structure of this entry's protocol there, and nothing has overwritten it.
    let boot = unsafe { BootInfo::read(information, entry) };
    let line = CommandLine::new(boot.command_line());
    print::choose(line.global("out"));
    interrupts::install();
    memory::install(&boot);
    pci::install(boot.ecam.or(line.global_number("ecam")), boot.rsdp);
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
