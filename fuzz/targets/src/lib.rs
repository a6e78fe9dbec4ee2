//! What is fuzzed. Each target is a function that makes a device as it is at power-on, does with it what the input
//! says, and returns: in one thread, without sleeping, the same each time.
//!
//! Devices are the real ones, behind their real transports. What is around them on the host (disks, networks) is
//! made of memory, and checks that the device keeps to its side of the contract. A target panics when the code
//! under test does, when such a contract is broken, or when a device does not work after its driver abused
//! and then reset it.
//!
//! `fuzz/fuzz_targets` runs these under cargo-fuzz; `tests/corpus.rs` runs the committed corpora through them.

mod acpi_hotplug;
mod api;
mod arm_boot;
mod device;
mod disk;
mod fw_cfg;
mod gdb;
mod host_pages;
mod input;
mod ivshmem;
mod kernel_file;
mod kernel_loader;
mod link;
mod options;
mod pci_config;
mod pcie_port;
mod pflash;
mod platform;
mod primecell;
mod program;
mod serial;
mod virtio_balloon;
mod virtio_blk;
mod virtio_console;
mod virtio_mem;
mod virtio_net;
mod virtio_pci;
mod virtio_pmem;
mod virtio_rtc;
mod virtio_vsock;
mod virtio_watchdog;
mod watchdog;

pub use acpi_hotplug::acpi_hotplug;
pub use api::api;
pub use arm_boot::{arm_kernel, arm_tables};
pub use fw_cfg::fw_cfg;
pub use gdb::gdb;
pub use ivshmem::ivshmem;
pub use kernel_loader::kernel_loader;
pub use options::options;
pub use pci_config::pci_config;
pub use pcie_port::pcie_port;
pub use pflash::pflash;
pub use platform::platform;
pub use primecell::{pl011, pl031, pl061};
pub use serial::serial;
pub use virtio_balloon::virtio_balloon;
pub use virtio_blk::{blk_packed, blk_split};
pub use virtio_console::virtio_console;
pub use virtio_mem::virtio_mem;
pub use virtio_net::{net_control, net_rx, net_tx};
pub use virtio_pci::virtio_pci;
pub use virtio_pmem::virtio_pmem;
pub use virtio_rtc::virtio_rtc;
pub use virtio_vsock::virtio_vsock;
pub use virtio_watchdog::virtio_watchdog;
pub use watchdog::watchdog;
