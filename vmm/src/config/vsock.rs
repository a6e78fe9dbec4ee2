//! `--vsock`.

use super::device::device_options;
use std::path::PathBuf;

device_options! {
    /// Sockets between the guest and programs on the host (virtio-vsock).
    pub struct VsockConfig is "vsock" told by socket {
        /// The guest's address.
        ["cid", 3..=4294967294] cid: u64 = 3,
        /// The UNIX socket by which programs on the host connect to the guest. What the guest connects to at port P of the host
        /// is the socket of this path with `_P` after it.
        ["socket"] socket: Option<PathBuf> = None,
    }
}
