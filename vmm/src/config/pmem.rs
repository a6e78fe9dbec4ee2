//! `--pmem`.

use super::device::device_options;
use super::options::ByteSize;
use std::path::PathBuf;

device_options! {
    /// Persistent memory (virtio-pmem): a file that the guest has as memory.
    pub struct PmemConfig is "pmem" told by file {
        /// The file.
        ["file"] file: Option<PathBuf> = None,
        /// How much of it the guest has, a multiple of 2M; all of it if not given. A smaller file is enlarged.
        ["size"] size: Option<ByteSize> = None,
        /// Do not keep what the guest writes; then the file may be one that this user cannot write, and several machines can have it.
        ["discard_writes"] discard_writes: bool = false,
    }
}
