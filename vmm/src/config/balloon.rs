//! `--balloon`.

use super::device::device_options;
use super::options::ByteSize;
use super::validate::ConfigError;

device_options! {
    /// A memory balloon (virtio-balloon), by which the guest gives memory back to the host.
    pub struct BalloonConfig is "balloon" first |_| "__balloon".into(), told by size {
        /// How much memory the guest gives back, at first.
        ["size"] size: ByteSize = ByteSize(0),
        /// Let the guest take memory back from the balloon when it is short of memory.
        ["deflate_on_oom"] deflate_on_oom: bool = false,
        /// Have the guest tell which of its memory is free, so that the host gets it back.
        ["free_page_reporting"] free_page_reporting: bool = false,
        /// Seconds after which the guest is asked for its memory statistics again; 0: only when somebody looks.
        ["statistics_interval", 0..=86400] statistics_interval: u32 = 0,
    }
}

impl BalloonConfig {
    /// Checks the size in a machine with `ram` bytes of memory.
    ///
    /// # Errors
    /// When the guest could not give so much.
    pub fn check(&self, ram: u64) -> Result<(), ConfigError> {
        let option = format!("--balloon size={}", self.size);
        if !self.size.0.is_multiple_of(4096) {
            return Err(ConfigError { option, reason: "is not a multiple of 4K".into() });
        }
        if self.size.0 > ram {
            let reason = format!("is more than the machine's memory, {}", ByteSize(ram));
            return Err(ConfigError { option, reason });
        }
        Ok(())
    }
}
