//! What is particular to a PC. `aarch64` has the same names.

pub mod boot;
pub mod cpu;
pub mod frequency;
pub mod interrupts;
pub mod mapping;
mod memory_functions;
pub mod processors;
pub mod wide;

/// Where unplaced BARs go: below the local and I/O APICs and above any RAM that machines here have below 4 GiB.
pub const BAR_WINDOW: core::ops::Range<u64> = 0xc000_0000..0xe000_0000;

core::arch::global_asm!(include_str!("boot.s"), options(raw));
