//! `--firmware`, `--kernel`, `--platform` and `--pci-segment`.

use super::fw_cfg::FwCfgConfig;
use super::options::options;
use super::validate::ConfigError;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is booted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PayloadConfig {
    /// Firmware that the machine starts in (Arm). What is given of a kernel too, it boots.
    pub firmware: Option<PathBuf>,
    /// The file in which firmware keeps its variables. Without one they live as long as the machine.
    pub firmware_vars: Option<PathBuf>,
    /// A kernel: a bzImage or an ELF.
    pub kernel: Option<PathBuf>,
    /// An initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
    /// The firmware configuration device.
    pub fw_cfg_config: Option<FwCfgConfig>,
}

impl PayloadConfig {
    /// What the firmware configuration device holds, if there is one: firmware is given its usual content where nothing is said.
    pub fn fw_cfg(&self) -> Option<FwCfgConfig> {
        self.fw_cfg_config.clone().or_else(|| self.firmware.as_ref().map(|_| FwCfgConfig::default()))
    }

    /// Checks that there is something to boot, and nothing beside it that would not be.
    ///
    /// # Errors
    /// The first option that cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |option: String, reason: &str| Err(ConfigError { option, reason: reason.into() });
        if let (Some(path), None) = (&self.firmware_vars, &self.firmware) {
            return refuse(
                format!("--firmware-vars {}", path.display()),
                "there is no firmware whose variables they are; add --firmware PATH",
            );
        }
        if self.kernel.is_some() || self.firmware.is_none() {
            return Ok(());
        }
        if let Some(path) = &self.initramfs {
            return refuse(
                format!("--initramfs {}", path.display()),
                "firmware gives it to a kernel only; add --kernel PATH",
            );
        }
        match self.cmdline.as_deref().filter(|text| !text.is_empty()) {
            Some(text) => refuse(
                format!("--cmdline {text}"),
                "firmware gives it to a kernel only; add --kernel PATH, or set it in the boot loader on the disk",
            ),
            None => Ok(()),
        }
    }
}

options! {
    /// The machine's identity and its PCI segments.
    pub struct PlatformConfig {
        /// Number of PCI segments.
        ["num_pci_segments", 1..=64] num_pci_segments: u16 = 1,
        /// Describe the machine by ACPI tables. On x86_64 it always is; on aarch64 it is when firmware starts it, and has a device tree otherwise.
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
    /// What a PCI segment has: bus numbers, and its share of the address space for device memory.
    pub struct PciSegmentConfig {
        /// The segment.
        ["pci_segment", 0..=63] pci_segment: u16 = 0,
        /// Its weight below 4 GiB.
        ["mmio32_aperture_weight", 1..=1000] mmio32_aperture_weight: u32 = 1,
        /// Its weight above the memory.
        ["mmio64_aperture_weight", 1..=1000] mmio64_aperture_weight: u32 = 1,
        /// Bus numbers, from 0 on. By default 16, or the power of two that the ports and eight more need. An x86_64 guest looks at each when it starts.
        ["buses", 1..=256] buses: Option<u16> = None,
    }
}
