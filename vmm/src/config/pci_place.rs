//! `--pci-place`.

use super::PciPlace;
use super::options::options;

options! {
    /// Where on PCI a device is that is there without an option of its own, or is part of the machine: `__console`, `__rng`,
    /// `__balloon`, `__watchdog`, `__watchdog_virtio`, `__pvpanic`, `__mem` or `__mem_<zone>`.
    pub struct PciPlaceConfig {
        /// Name of the device.
        ["id"] id: String = String::new(),
        /// PCI segment the device is in.
        ["pci_segment", 0..=63] pci_segment: u16 = 0,
        /// The --pci-port the device is below, instead of on a root bus.
        ["bus"] bus: Option<String> = None,
        /// Device number on a root bus; the first that is free if not given.
        ["pci_device_id", 0..=31] pci_device_id: Option<u8> = None,
        /// Function number, for several devices at one device number; one of them must be function 0.
        ["pci_function", 0..=7] pci_function: u8 = 0,
    }
}

impl PciPlaceConfig {
    /// Where the device is to be.
    pub fn place(&self) -> PciPlace {
        PciPlace {
            segment: self.pci_segment,
            bus: self.bus.clone(),
            device: self.pci_device_id,
            function: self.pci_function,
        }
    }
}
