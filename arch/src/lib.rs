//! What makes a machine the architecture it is: memory layout, CPU setup, boot protocols, firmware tables.
//!
//! Nothing here runs while the guest does: the machine thread asks for a layout, loads a kernel into
//! guest memory, writes tables, and gives each CPU its state.

pub mod aarch64;
pub mod acpi;
pub mod boot;
pub mod caches;
pub mod layout;
pub mod mapping;
#[cfg(test)]
mod testing;
pub mod topology;
pub mod wiring;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

/// The architecture this is built for. The modules that each architecture has offer the same names to those who build
/// machines.
#[cfg(target_arch = "aarch64")]
pub use aarch64 as native;
#[cfg(target_arch = "x86_64")]
pub use x86_64 as native;
