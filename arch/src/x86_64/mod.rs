//! The x86_64 machine.

pub mod acpi;
pub mod boot;
pub mod cpu;
pub mod instructions;
pub mod layout;
pub mod paging;
pub mod reset_vector;
pub mod smbios;
