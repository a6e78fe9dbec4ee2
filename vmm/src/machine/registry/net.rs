//! Network interfaces.

use super::{Opened, Seat, Site, affinity, limiter};
use crate::config::NetConfig;
use crate::machine::control::Control;
use crate::machine::workers::{self, Sharing};
use anyhow::{Context, Result};
use net::link::tap::{Ipv4Setting, Tap, TapConfig};
use net::mac::MacAddress;
use net::virtio_net::Net;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;
use virtio::pci_transport;

/// Opens a network interface.
///
/// # Errors
/// When its tap cannot be had.
pub(super) fn open(site: &Site, net: &NetConfig) -> Result<Opened> {
    let device = open_tap(site, net)?;
    device.handle().set_link_up(net.link);
    let seat = Seat::of(net);
    let seat = Seat {
        transport: pci_transport::Options { packed: net.packed, ..seat.transport },
        workers: workers::Options {
            poll: Duration::from_micros(net.poll_us.into()),
            affinity: affinity(&net.queue_affinity)?,
            sharing: net.workers.map(|workers| Sharing { workers, together: 2 }),
            ..seat.workers
        },
        control: Some(Control::Net(device.handle())),
        ..seat
    };
    Ok(seat.with_virtio(device))
}

fn open_tap(site: &Site, config: &NetConfig) -> Result<Net> {
    let mac = |text: &Option<String>| text.as_deref().map(str::parse::<MacAddress>).transpose();
    let address = config.address().map(|(address, mask)| Ipv4Setting { address, mask });
    let files = config.fds.iter().flatten().map(|fd| own_descriptor(*fd)).collect::<Result<_>>()?;
    let tap = Tap::open(TapConfig {
        name: config.tap.clone(),
        files,
        pairs: config.num_queues / 2,
        mtu: config.mtu,
        host_mac: mac(&config.host_mac)?,
        address,
    })?;
    let mut random = [0; 6];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random))?;
    let device = net::virtio_net::NetConfig {
        mac: mac(&config.mac)?.unwrap_or_else(|| MacAddress::from_random(random)),
        mtu: tap.mtu(),
        queue_size: config.queue_size,
        offload_csum: config.offload_csum,
        offload_tso: config.offload_tso,
        offload_ufo: config.offload_ufo,
    };
    let limit = || limiter(config.rate_limiter_config.as_ref(), &site.clock);
    Ok(Net::new(device, tap.links(), limit(), limit())?)
}

/// A descriptor of our own for one that the user passed to the process.
fn own_descriptor(fd: i32) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC only makes a new descriptor, and fails when `fd` is not open.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("fd={fd}: is not an open file descriptor of this process"));
    }
    // SAFETY: fcntl just gave this descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
