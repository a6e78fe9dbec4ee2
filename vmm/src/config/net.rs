//! `--net`.

use super::PciPlace;
use super::options::{Setting, options};
use super::rate_limit::{RATE_LIMIT_KEYS, RateLimiterConfig};
use std::net::IpAddr;

options! {
    /// A network interface (virtio-net) on a tap.
    pub struct NetConfig {
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
        /// Name of the device; made up if not given.
        ["id"] id: Option<String> = None,
        /// PCI segment the device is in.
        ["pci_segment", 0..=63] pci_segment: u16 = 0,
        /// The --pci-port the device is below, instead of on a root bus.
        ["bus"] bus: Option<String> = None,
        /// Device number on a root bus; the first that is free if not given.
        ["pci_device_id", 0..=31] pci_device_id: Option<u8> = None,
        /// Function number, for several devices at one device number; one of them must be function 0.
        ["pci_function", 0..=7] pci_function: u8 = 0,
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
        /// The limits.
        [nested RATE_LIMIT_KEYS] rate_limiter_config: Option<RateLimiterConfig> = None,
    }
}

impl NetConfig {
    /// Where on PCI it is to be.
    pub fn place(&self) -> PciPlace {
        PciPlace {
            segment: self.pci_segment,
            bus: self.bus.clone(),
            device: self.pci_device_id,
            function: self.pci_function,
        }
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
