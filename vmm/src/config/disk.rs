//! `--disk`.

use super::device::device_options;
use super::options::Setting;
use super::rate_limit::{RATE_LIMIT_KEYS, RateLimiterConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

device_options! {
    /// A disk (virtio-blk).
    pub struct DiskConfig is "disk" told by path {
        /// The image file or block device.
        ["path"] path: Option<PathBuf> = None,
        /// The guest may only read; then the image may be one that this user cannot write.
        ["readonly"] readonly: bool = false,
        /// Read and write past the host's page cache (O_DIRECT).
        ["direct"] direct: bool = false,
        /// Queues, usually one for each CPU.
        ["num_queues", 1..=256] num_queues: u16 = 1,
        /// Requests a queue holds; a power of two.
        ["queue_size", 4..=1024] queue_size: u16 = 128,
        /// Worker threads, among which queues are shared out in turn; one for each queue if not given.
        ["workers", 1..=256] workers: Option<u16> = None,
        /// Host CPUs each queue's worker may run on, such as `[0@[1],1@[2,3]]`.
        ["queue_affinity"] queue_affinity: Vec<QueueAffinity> = Vec::new(),
        /// Serial number the guest sees; at most 20 characters.
        ["serial"] serial: Option<String> = None,
        /// How requests reach the host: by io_uring, by a pool of threads, or whichever works (io_uring first).
        ["engine"] engine: DiskEngine = DiskEngine::Auto,
        /// Acknowledge writes once they are in the host's cache; a flush makes them stable. When off, each write is made
        /// stable first.
        ["writeback"] writeback: bool = true,
        /// Offer packed rings.
        ["packed"] packed: bool = true,
        /// Longest time in microseconds that a worker looks for more work before it sleeps; 0 for none.
        ["poll_us", 0..=10000] poll_us: u32 = 50,
        /// The limits.
        [nested RATE_LIMIT_KEYS] rate_limiter_config: Option<RateLimiterConfig> = None,
        /// The --rate-limit-group whose limits the disk shares.
        ["rate_limit_group"] rate_limit_group: Option<String> = None,
    }
}

/// How requests reach the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskEngine {
    /// io_uring if the host allows it, else threads.
    #[default]
    Auto,
    /// io_uring.
    IoUring,
    /// A pool of threads.
    Threads,
}

impl Setting for DiskEngine {
    const HINT: &'static str = "auto|io_uring|threads";
    fn show(&self) -> String {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
        }
        .into()
    }
}

/// The host CPUs a queue's worker may run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct QueueAffinity {
    /// The queue.
    pub queue_index: u16,
    /// The host's CPUs.
    pub host_cpus: Vec<usize>,
}

impl Setting for QueueAffinity {
    const HINT: &'static str = "<queue>@<host cpus>";
    fn show(&self) -> String {
        format!("{}@{}", self.queue_index, self.host_cpus.show())
    }
}
