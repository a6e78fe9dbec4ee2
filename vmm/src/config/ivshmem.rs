//! `--ivshmem`.

use super::device::{Device, device_options};
use super::options::ByteSize;
use super::several::Repeated;
use super::validate::ConfigError;
use serde_json::Value;
use std::path::PathBuf;

device_options! {
    /// Memory shared with other machines and with programs on the host (QEMU's ivshmem-plain): a file that the guest has as a PCI
    /// device's memory. With a server (ivshmem-doorbell), machines also interrupt each other.
    pub struct IvshmemConfig is "ivshmem" first |_| "__ivshmem".into(), told by socket, path {
        /// The file. All that have it share the memory.
        ["path"] path: PathBuf = PathBuf::new(),
        /// How much of it is shared, a power of two of at least 4K. A smaller file is enlarged.
        ["size"] size: ByteSize = ByteSize(128 << 20),
        /// The socket of a server (ivshmem-server), instead of a file: it says what memory is shared, and who else has it.
        ["socket"] socket: Option<PathBuf> = None,
        /// Interrupts by which others reach this machine, with a server.
        ["vectors", 1..=64] vectors: u16 = 1,
    }
}

impl Repeated for IvshmemConfig {
    fn short_form(all: &[Self]) -> Option<Value> {
        all.is_empty().then_some(Value::Null)
    }
}

impl IvshmemConfig {
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
