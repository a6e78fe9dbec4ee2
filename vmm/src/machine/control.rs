//! What is changed of a device while it works: a disk's size, limits, a network cable.

use super::Machine;
use super::registry::buckets;
use crate::api::request::{ResizeDisk, SetLink, SetRateLimit};
use crate::api::{Answer, ApiError, ErrorKind, Reply};
use block::virtio_blk::BlockControl;
use net::virtio_net::NetHandle;

/// The host's hand on a device that is behind its transport.
pub enum Control {
    /// A disk.
    Disk(BlockControl),
    /// A network interface.
    Net(NetHandle),
}

fn no_such(kind: &str, id: &str) -> ApiError {
    ApiError::new(
        ErrorKind::NotFound,
        format!("device {id}: there is no {kind} of that name; vm.info lists the devices"),
    )
}

impl Machine {
    /// Makes a disk larger, image and all, and tells the guest.
    ///
    /// # Errors
    /// When there is no such disk, or its image cannot have that size.
    pub fn resize_disk(&mut self, resize: &ResizeDisk) -> Answer {
        let ResizeDisk { id, desired_size } = resize;
        let Some(Control::Disk(disk)) = self.pci.control(id) else { return Err(no_such("disk", id)) };
        disk.resize(desired_size.0).map_err(|error| ApiError::bad(format!("device {id}: {error}")))?;
        let size = desired_size.0;
        self.events.emit_with("vm", "disk-resized", [("id", id.clone().into()), ("size", size.into())]);
        Ok(Reply::Done)
    }

    /// Limits a disk or a network interface anew.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn set_rate_limit(&mut self, request: SetRateLimit) -> Answer {
        let SetRateLimit { id, rate_limiter_config } = request;
        let (bytes, operations) = rate_limiter_config.as_ref().map_or((None, None), buckets);
        match self.pci.control(&id) {
            Some(Control::Disk(disk)) => {
                let group = self.config.disks.iter().find(|disk| disk.id.as_ref() == Some(&id));
                if let Some(group) = group.and_then(|disk| disk.rate_limit_group.as_ref()) {
                    return Err(ApiError::bad(format!(
                        "device {id}: shares the limits of --rate-limit-group {group}, which cannot be set for it alone"
                    )));
                }
                if let Some(limiter) = disk.limiter() {
                    limiter.set(bytes, operations);
                }
            }
            Some(Control::Net(net)) => {
                net.limiters().iter().for_each(|limiter| limiter.set(bytes, operations));
            }
            None => return Err(no_such("disk or network interface", &id)),
        }
        for disk in self.config.disks.iter_mut().filter(|disk| disk.id.as_ref() == Some(&id)) {
            disk.rate_limiter_config = rate_limiter_config;
        }
        for net in self.config.net.iter_mut().filter(|net| net.id.as_ref() == Some(&id)) {
            net.rate_limiter_config = rate_limiter_config;
        }
        Ok(Reply::Done)
    }

    /// Plugs a network interface's cable in or out.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn set_link(&mut self, request: &SetLink) -> Answer {
        let SetLink { id, up } = request;
        let Some(Control::Net(net)) = self.pci.control(id) else {
            return Err(no_such("network interface", id));
        };
        net.set_link_up(*up);
        let event = if *up { "link-up" } else { "link-down" };
        self.events.emit_with("vm", event, [("id", id.clone().into())]);
        Ok(Reply::Done)
    }
}
