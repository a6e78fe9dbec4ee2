//! What is asked of a machine that was created, and does not run.

use super::not_booted;
use crate::api::request::{AddDevice, AddPort};
use crate::api::{Answer, Reply, Request};
use crate::config::{DeviceConfig, VmConfig};
use crate::machine::{addition, control, orders, ports, removal, resize};
use std::os::fd::{AsRawFd, OwnedFd};

/// A network interface whose tap came with the call.
pub(super) fn with_files(mut request: Request, files: &[OwnedFd]) -> Request {
    if let Request::Add(AddDevice { device: DeviceConfig::Net(net), .. }) = &mut request
        && !files.is_empty()
    {
        // They are duplicated when the tap is opened.
        net.fds = Some(files.iter().map(AsRawFd::as_raw_fd).collect());
    }
    request
}

/// Changes a configuration that nothing runs for.
pub(super) fn change_created(config: &mut VmConfig, request: &Request) -> Answer {
    match request {
        Request::Resize(sizes) => *config = resize::with_sizes(config, sizes)?,
        Request::ResizeZone(size) => *config = resize::with_zone_size(config, size)?,
        Request::Add(add) => {
            let with_device = addition::with_device(config, add.device.clone())?;
            with_device.validate_start()?;
            *config = with_device;
        }
        Request::AddPort(add) => {
            let (with_ports, _) = ports::with_ports(config, AddPort::clone(add))?;
            with_ports.validate_start()?;
            *config = with_ports;
        }
        Request::RemoveDevice(remove) => *config = removal::without_device(config, &remove.id)?,
        Request::SetRateLimit(limit) => *config = control::with_rate_limit(config, limit)?,
        Request::SetLink(link) => *config = control::with_link(config, link)?,
        Request::SetAffinity(affinity) => *config = orders::with_affinity(config, affinity)?,
        _ => return Err(not_booted()),
    }
    Ok(Reply::Done)
}
