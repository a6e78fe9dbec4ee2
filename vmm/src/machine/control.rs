//! What is changed of a device while it works: a disk's size, limits, a network cable.

use super::Machine;
use super::registry::buckets;
use crate::api::request::{ResizeDisk, SetLink, SetRateLimit};
use crate::api::{Answer, ApiError, ErrorKind, Reply, Respond};
use block::virtio_blk::BlockControl;
use devices::ivshmem::Ivshmem;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::mem::MemControl;
use devices::virtio::watchdog::Hold;
use devices::watchdog::Watchdog;
use net::virtio_net::NetHandle;
use std::sync::{Arc, Mutex, PoisonError};

/// The host's hand on a device that is behind its transport.
pub enum Control {
    /// A disk.
    Disk(BlockControl),
    /// A network interface.
    Net(NetHandle),
    /// The balloon.
    Balloon(BalloonControl),
    /// What memory comes and goes by.
    Mem {
        /// The zone whose memory it is; empty if there are no zones.
        zone: String,
        /// The device.
        device: MemControl,
    },
    /// Memory shared with others.
    SharedMemory(Arc<Mutex<Ivshmem>>),
    /// Intel's watchdog, which is looked at.
    Watchdog(Arc<Mutex<Watchdog>>),
    /// Virtio's watchdog, which tells by itself.
    VirtioWatchdog(Hold),
}

fn no_such(kind: &str, id: &str) -> ApiError {
    ApiError::new(
        ErrorKind::NotFound,
        format!("device {id}: there is no {kind} of that name; vm.info lists the devices"),
    )
}

impl Machine {
    /// Makes a disk larger, image and all, and tells the guest. A thread does, for as long as the image's file system takes.
    pub fn resize_disk(&mut self, resize: ResizeDisk, respond: Respond) {
        let ResizeDisk { id, desired_size } = resize;
        let Some(Control::Disk(disk)) = self.pci.control(&id) else {
            return respond(Err(no_such("disk", &id)));
        };
        let counted = match self.count_thread() {
            Ok(counted) => counted,
            Err(error) => return respond(Err(error)),
        };
        let (disk, events, work, size) =
            (disk.clone(), self.events.clone(), self.work.clone(), desired_size.0);
        // Taken by the thread, or back when there is none.
        let respond = Arc::new(Mutex::new(Some(respond)));
        let answer = |respond: &Mutex<Option<Respond>>, answer| {
            let respond = respond.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(respond) = respond {
                respond(answer);
            }
        };
        let on_thread = Arc::clone(&respond);
        let grow = move || {
            let resized = disk.resize(size).map_err(|error| ApiError::bad(format!("device {id}: {error}")));
            drop((disk, counted, work));
            if resized.is_ok() {
                events.emit_with("vm", "disk-resized", [("id", id.into()), ("size", size.into())]);
            }
            answer(&on_thread, resized.map(|()| Reply::Done));
        };
        let thread = std::thread::Builder::new().name("resize".into()).stack_size(256 << 10);
        if let Err(error) = thread.spawn(grow) {
            answer(&respond, Err(ApiError::internal(format!("starting a thread: {error}"))));
        }
    }

    /// Limits a disk or a network interface anew.
    ///
    /// # Errors
    /// When there is no such device, or a limit would let nothing pass.
    pub fn set_rate_limit(&mut self, request: SetRateLimit) -> Answer {
        let SetRateLimit { id, rate_limiter_config } = request;
        rate_limiter_config.iter().try_for_each(|limits| limits.check(&format!("device {id}")))?;
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
            _ => return Err(no_such("disk or network interface", &id)),
        }
        // What waits for the old limits asks for leave by the new ones.
        self.pci.ring(&id);
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
        for net in self.config.net.iter_mut().filter(|net| net.id.as_ref() == Some(id)) {
            net.link = *up;
        }
        let event = if *up { "link-up" } else { "link-down" };
        self.events.emit_with("vm", event, [("id", id.clone().into())]);
        Ok(Reply::Done)
    }
}
