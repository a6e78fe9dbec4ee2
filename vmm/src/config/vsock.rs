//! `--vsock`.

use super::options::options;
use std::path::PathBuf;

options! {
    /// Sockets between the guest and programs on the host (virtio-vsock).
    pub struct VsockConfig {
        /// The guest's address.
        ["cid", 3..=4294967294] cid: u64 = 3,
        /// The UNIX socket by which programs on the host connect to the guest. What the guest connects to at port P of the host
        /// is the socket of this path with `_P` after it.
        ["socket"] socket: Option<PathBuf> = None,
        /// Name of the device; made up if not given.
        ["id"] id: Option<String> = None,
        /// PCI segment the device is in.
        ["pci_segment", 0..=63] pci_segment: u16 = 0,
    }
}
