//! What is particular to an Arm machine. `x86_64` has the same names.

pub mod boot;
pub mod cpu;
pub mod frequency;
pub mod gic;
pub mod interrupts;
pub mod mapping;
mod memory_functions;
pub mod processors;
pub mod wide;

/// Where unplaced BARs go.
pub const BAR_WINDOW: core::ops::Range<u64> = 0x2000_0000..0x3000_0000;

core::arch::global_asm!(include_str!("boot.s"));
