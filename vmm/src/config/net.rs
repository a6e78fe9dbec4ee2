//! `--net`.

use super::ConfigError;
use super::device::{Device, device_options};
use super::disk::QueueAffinity;
use super::options::Setting;
use super::rate_limit::{RATE_LIMIT_KEYS, RateLimiterConfig};
use super::validate::{check_queue_affinity, check_queue_size, twice};
use ::net::mac::MacAddress;
use std::net::{IpAddr, Ipv4Addr};

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

/// Checks each interface, and that no two have the same tap or address.
///
/// # Errors
/// Names the interface at fault, and says what to do.
pub(super) fn check(all: &[NetConfig]) -> Result<(), ConfigError> {
    all.iter().try_for_each(|net| {
        net.check().map_err(|reason| ConfigError { option: net.option(), reason })?;
        check_queue_size(&net.option(), net.queue_size)?;
        // After the pairs comes the control queue.
        check_queue_affinity(&net.option(), &net.queue_affinity, net.num_queues.saturating_add(1))?;
        net.rate_limiter_config.iter().try_for_each(|limits| limits.check(&net.option()))
    })?;
    if let Some(tap) = twice(all.iter().filter_map(|net| net.tap.as_deref())) {
        return Err(ConfigError {
            option: format!("--net tap={tap}"),
            reason: "is given to two interfaces; give each a tap of its own, or one of them more queues (num_queues)".into(),
        });
    }
    if let Some(fd) = twice(all.iter().flat_map(|net| net.fds.iter().flatten())) {
        return Err(ConfigError {
            option: format!("--net fd={fd}"),
            reason: "is given twice; pass a descriptor of its own for each pair of queues".into(),
        });
    }
    if let Some(mac) = twice(all.iter().filter_map(|net| net.mac.as_ref()?.parse::<MacAddress>().ok())) {
        return Err(ConfigError {
            option: format!("--net mac={mac}"),
            reason: "is given to two interfaces; give each an address of its own, or leave mac out to have one made up".into(),
        });
    }
    Ok(())
}

impl NetConfig {
    /// What of an interface cannot be, whatever others there are.
    fn check(&self) -> Result<(), String> {
        if let Some(reason) = self.tap.as_deref().and_then(::net::link::tap::wrong_name) {
            return Err(format!("the name {reason}"));
        }
        if !self.num_queues.is_multiple_of(2) {
            return Err(format!(
                "num_queues={} is odd, and queues come in pairs; make it even",
                self.num_queues
            ));
        }
        self.check_files()?;
        self.check_address()?;
        for (key, mac) in [("mac", &self.mac), ("host_mac", &self.host_mac)] {
            if let Some(Err(reason)) = mac.as_ref().map(|mac| mac.parse::<MacAddress>()) {
                return Err(format!("{key}: {reason}"));
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), String> {
        let Some(files) = &self.fds else { return Ok(()) };
        if self.tap.is_some() {
            return Err("has both tap and fd; give one".into());
        }
        if files.len() * 2 != usize::from(self.num_queues) {
            return Err(format!(
                "has {} file descriptors for {} queues; give one for each pair of queues",
                files.len(),
                self.num_queues
            ));
        }
        match files.iter().find(|fd| **fd < 3) {
            Some(fd) => Err(format!("fd={fd}: is a standard stream; pass the tap as descriptor 3 or above")),
            None => Ok(()),
        }
    }

    fn check_address(&self) -> Result<(), String> {
        if self.mask.is_some() && self.ip.is_none() {
            return Err("has a mask without an ip; add ip=<address>".into());
        }
        if let Some(IpAddr::V4(mask)) = self.mask
            && mask.to_bits().leading_ones() + mask.to_bits().trailing_zeros() < 32
        {
            return Err(format!(
                "mask={mask} is no network mask: its bits are set from the left, as in 255.255.255.0"
            ));
        }
        // Whoever opened the tap has set it up; clients fill in an address that nobody wants.
        if self.fds.is_some() {
            return Ok(());
        }
        match (self.ip, self.mask) {
            (Some(ip @ IpAddr::V6(_)), _) => {
                Err(format!("ip={ip}: is an IPv6 address; set it with `ip addr add` on the tap"))
            }
            (_, Some(mask @ IpAddr::V6(_))) => {
                Err(format!("mask={mask}: is an IPv6 address; give the mask of an IPv4 network"))
            }
            (Some(IpAddr::V4(ip)), _) if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() => {
                Err(format!("ip={ip}: is no address that an interface has; give one such as 192.168.249.1"))
            }
            _ => Ok(()),
        }
    }

    /// The address that the tap is to be given, with its network's mask.
    pub fn address(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let mask = match self.mask {
            Some(IpAddr::V4(mask)) => mask,
            _ => Ipv4Addr::new(255, 255, 255, 0),
        };
        match self.ip {
            Some(IpAddr::V4(address)) if self.fds.is_none() => Some((address, mask)),
            _ => None,
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
