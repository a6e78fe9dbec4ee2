//! `--kernel`, `--platform`, `--pci-segment` and `--rng`.

use super::fw_cfg::FwCfgConfig;
use super::options::options;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is booted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PayloadConfig {
    /// A kernel: a bzImage or an ELF.
    pub kernel: Option<PathBuf>,
    /// An initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
    /// The firmware configuration device.
    pub fw_cfg_config: Option<FwCfgConfig>,
}

options! {
    /// The machine's identity and its PCI segments.
    pub struct PlatformConfig {
        /// Number of PCI segments.
        ["num_pci_segments", 1..=64] num_pci_segments: u16 = 1,
        /// Describe the machine by ACPI tables. On x86_64 it always is; on aarch64 it has a device tree otherwise.
        ["acpi"] acpi: Option<bool> = None,
        /// Serial number, in SMBIOS.
        ["serial_number"] serial_number: Option<String> = None,
        /// UUID, in SMBIOS.
        ["uuid"] uuid: Option<String> = None,
        /// OEM strings, in SMBIOS.
        ["oem_strings"] oem_strings: Vec<String> = Vec::new(),
        /// Manufacturer, in SMBIOS.
        ["manufacturer"] manufacturer: Option<String> = None,
        /// Product name, in SMBIOS.
        ["product"] product: Option<String> = None,
        /// Product version, in SMBIOS.
        ["version"] version: Option<String> = None,
        /// SKU number, in SMBIOS.
        ["sku"] sku: Option<String> = None,
        /// Family, in SMBIOS.
        ["family"] family: Option<String> = None,
    }
}

options! {
    /// How the address space for device memory is shared between PCI segments.
    pub struct PciSegmentConfig {
        /// The segment.
        ["pci_segment", 0..=63] pci_segment: u16 = 0,
        /// Its weight below 4 GiB.
        ["mmio32_aperture_weight", 1..=1000] mmio32_aperture_weight: u32 = 1,
        /// Its weight above the memory.
        ["mmio64_aperture_weight", 1..=1000] mmio64_aperture_weight: u32 = 1,
    }
}

options! {
    /// The entropy source (virtio-rng).
    pub struct RngConfig {
        /// Where the entropy comes from.
        ["src"] src: PathBuf = PathBuf::from("/dev/urandom"),
    }
}
