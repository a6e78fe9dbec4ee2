//! The aarch64 machine.

pub mod acpi;
pub mod boot;
pub mod cpu;
pub mod fdt;
pub mod instructions;
pub mod layout;
pub mod paging;
pub mod serial;
