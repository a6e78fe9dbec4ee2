//! `--pmem`.

use super::options::{ByteSize, options};
use std::path::PathBuf;

options! {
    /// Persistent memory (virtio-pmem): a file that the guest has as memory.
    pub struct PmemConfig {
        /// The file.
        ["file"] file: Option<PathBuf> = None,
        /// How much of it the guest has, a multiple of 2M; all of it if not given. A smaller file is enlarged.
        ["size"] size: Option<ByteSize> = None,
        /// Do not keep what the guest writes; then the file may be one that this user cannot write, and several machines can have it.
        ["discard_writes"] discard_writes: bool = false,
        /// Name of the device; made up if not given.
        ["id"] id: Option<String> = None,
        /// PCI segment the device is in.
        ["pci_segment", 0..=63] pci_segment: u16 = 0,
    }
}
