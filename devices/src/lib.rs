//! Serial ports, RTC, power, console, entropy: what a guest sees besides disks and networks.
//!
//! Platform devices are one module each and implement [`platform::PlatformDevice`]; virtio devices are in
//! [`virtio`]. What a console's output and input are connected to on the host is in [`host_console`].

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod acpi;
pub mod acpi_hotplug;
pub mod debug_console;
pub mod fw_cfg;
pub mod host_console;
pub mod i8042;
pub mod ioapic;
pub mod ivshmem;
pub mod legacy_ports;
pub mod pflash;
pub mod platform;
pub mod primecell;
pub mod pvpanic;
pub mod rtc;
pub mod serial;
mod uart;
pub mod virtio;
pub mod watchdog;

#[cfg(test)]
mod conformance;
