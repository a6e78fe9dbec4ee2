//! `--ivshmem`.

use super::options::{ByteSize, options};
use super::pci_port::PciPlace;
use super::validate::ConfigError;
use std::path::PathBuf;

options! {
    /// Memory shared with other machines and with programs on the host (QEMU's ivshmem-plain): a file that the guest has as a PCI
    /// device's memory. With a server (ivshmem-doorbell), machines also interrupt each other.
    pub struct IvshmemConfig {
        /// The file. All that have it share the memory.
        ["path"] path: PathBuf = PathBuf::new(),
        /// How much of it is shared, a power of two of at least 4K. A smaller file is enlarged.
        ["size"] size: ByteSize = ByteSize(128 << 20),
        /// The socket of a server (ivshmem-server), instead of a file: it says what memory is shared, and who else has it.
        ["socket"] socket: Option<PathBuf> = None,
        /// Interrupts by which others reach this machine, with a server.
        ["vectors", 1..=64] vectors: u16 = 1,
        /// Name of the device; __ivshmem if not given.
        ["id"] id: Option<String> = None,
        /// PCI segment the device is in.
        ["pci_segment", 0..=63] pci_segment: u16 = 0,
        /// The --pci-port the device is below, instead of on a root bus.
        ["bus"] bus: Option<String> = None,
        /// Device number on a root bus; the first that is free if not given.
        ["pci_device_id", 0..=31] pci_device_id: Option<u8> = None,
    }
}

impl IvshmemConfig {
    /// Where on PCI it is to be.
    pub fn place(&self) -> PciPlace {
        let &Self { pci_segment: segment, pci_device_id: device, .. } = self;
        PciPlace { segment, bus: self.bus.clone(), device, function: 0 }
    }

    /// The option, for messages.
    pub fn option(&self) -> String {
        match &self.socket {
            Some(socket) => format!("--ivshmem socket={}", socket.display()),
            None => format!("--ivshmem path={}", self.path.display()),
        }
    }

    /// Checks the path or socket, and the size.
    ///
    /// # Errors
    /// When one cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        let no_path = self.path.as_os_str().is_empty();
        if self.socket.is_some() {
            if no_path {
                return Ok(());
            }
            let reason = "has a path too; leave that out, since the server has the memory".to_owned();
            return Err(ConfigError { option: self.option(), reason });
        }
        if no_path {
            let reason = "has no path; add path=<file>, or socket=<path> of a server".to_owned();
            return Err(ConfigError { option: "--ivshmem".into(), reason });
        }
        if !self.size.0.is_power_of_two() || self.size.0 < 4096 {
            let reason = format!("size={} is not a power of two of at least 4K", self.size);
            return Err(ConfigError { option: self.option(), reason });
        }
        Ok(())
    }
}
