//! The aarch64 machine.

pub mod acpi;
pub mod boot;
pub mod cpu;
pub mod fdt;
pub mod layout;
