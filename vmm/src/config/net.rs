//! `--net`.

use super::device::device_options;
use super::disk::QueueAffinity;
use super::options::Setting;
use super::rate_limit::{RATE_LIMIT_KEYS, RateLimiterConfig};
use std::net::IpAddr;

device_options! {
    /// A network interface (virtio-net) on a tap.
    pub struct NetConfig is "net" told by tap, mac {
        /// Name of the tap. One that does not exist is made, and goes at the end. The host chooses a name if none is given.
        ["tap"] tap: Option<String> = None,
        /// IPv4 address given to the tap.
        ["ip"] ip: Option<IpAddr> = None,
        /// Netmask of that address.
        ["mask"] mask: Option<IpAddr> = None,
        /// The guest's MAC address; made up if not given.
        ["mac"] mac: Option<String> = None,
        /// The tap's MAC address.
        ["host_mac"] host_mac: Option<String> = None,
        /// Largest packet in bytes, without its Ethernet header; the tap's if not given.
        ["mtu", 68..=65535] mtu: Option<u16> = None,
        /// File descriptors of an open tap, one for each pair of queues.
        ["fd"] fds: Option<Vec<i32>> = None,
        /// Queues, two for each pair.
        ["num_queues", 2..=256] num_queues: u16 = 2,
        /// Buffers a queue holds; a power of two.
        ["queue_size", 2..=32768] queue_size: u16 = 256,
        /// Worker threads, among which pairs of queues are shared out in turn; one for each queue if not given.
        ["workers", 1..=256] workers: Option<u16> = None,
        /// Host CPUs each queue's worker may run on, such as `[0@[1],1@[2,3]]`. Queue 0 receives, queue 1 transmits, and so on.
        ["queue_affinity"] queue_affinity: Vec<QueueAffinity> = Vec::new(),
        /// Offer TCP segmentation offloads.
        ["offload_tso"] offload_tso: bool = true,
        /// Offer UDP fragmentation and segmentation offloads.
        ["offload_ufo"] offload_ufo: bool = true,
        /// Offer checksum offloads.
        ["offload_csum"] offload_csum: bool = true,
        /// Offer packed rings.
        ["packed"] packed: bool = true,
        /// Longest time in microseconds that a worker looks for more work before it sleeps; 0 for none.
        ["poll_us", 0..=10000] poll_us: u32 = 0,
        /// The cable is plugged in, until vm.set-link says otherwise.
        ["link"] link: bool = true,
        /// The limits.
        [nested RATE_LIMIT_KEYS] rate_limiter_config: Option<RateLimiterConfig> = None,
    }
}

impl Setting for IpAddr {
    const HINT: &'static str = "<address>";
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for i32 {
    const HINT: &'static str = "<number>";
    fn show(&self) -> String {
        self.to_string()
    }
}
