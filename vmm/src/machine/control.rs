//! What is changed of a device while it works: a disk's size, limits, a network cable.

use super::Machine;
use super::registry::buckets;
use crate::api::request::{ResizeDisk, SetLink, SetRateLimit};
use crate::api::{Answer, ApiError, ErrorKind, Reply, Respond};
use crate::config::VmConfig;
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

/// What can be limited.
const LIMITED: &str = "disk, network interface or rate limit group";
/// What has a cable.
const INTERFACE: &str = "network interface";

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

    /// Limits a disk, a network interface or a group of disks anew.
    ///
    /// # Errors
    /// When there is none of that name, or a limit would let nothing pass.
    pub fn set_rate_limit(&mut self, request: &SetRateLimit) -> Answer {
        let config = with_rate_limit(&self.config, request)?;
        let SetRateLimit { id, rate_limiter_config } = request;
        let (bytes, operations) = rate_limiter_config.as_ref().map_or((None, None), buckets);
        if let Limited::Group(_) = Limited::of(&self.config, id)? {
            if let Some(limiter) = self.site.group(id) {
                limiter.set(bytes, operations);
            }
        } else {
            match self.pci.control(id) {
                Some(Control::Disk(disk)) => {
                    disk.limiter().iter().for_each(|limiter| limiter.set(bytes, operations));
                }
                Some(Control::Net(net)) => {
                    net.limiters().iter().for_each(|limiter| limiter.set(bytes, operations));
                }
                _ => return Err(no_such(LIMITED, id)),
            }
        }
        self.config = config;
        // What waits for the old limits asks for leave by the new ones.
        self.pci.ring(id);
        for disk in self.config.disks.iter().filter(|disk| disk.rate_limit_group.as_ref() == Some(id)) {
            self.pci.ring(disk.id.as_deref().unwrap_or_default());
        }
        Ok(Reply::Done)
    }

    /// Plugs a network interface's cable in or out.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn set_link(&mut self, request: &SetLink) -> Answer {
        let SetLink { id, up } = request;
        let config = with_link(&self.config, request)?;
        let Some(Control::Net(net)) = self.pci.control(id) else { return Err(no_such(INTERFACE, id)) };
        net.set_link_up(*up);
        self.config = config;
        let event = if *up { "link-up" } else { "link-down" };
        self.events.emit_with("vm", event, [("id", id.clone().into())]);
        Ok(Reply::Done)
    }
}

/// What has limits, by where it is in the configuration.
enum Limited {
    Disk(usize),
    Net(usize),
    Group(usize),
}

impl Limited {
    /// That of the name `id`: of a device and a group of one name, the device, unless its limits are the group's.
    fn of(config: &VmConfig, id: &str) -> Result<Self, ApiError> {
        let disk = config.disks.iter().position(|disk| disk.id.as_deref() == Some(id));
        let shared = disk.and_then(|at| config.disks.get(at)?.rate_limit_group.as_deref());
        let net = config.net.iter().position(|net| net.id.as_deref() == Some(id));
        let group = config.rate_limit_groups.iter().position(|group| group.id == id);
        match (disk, shared) {
            (Some(at), None) => Ok(Self::Disk(at)),
            (_, Some(group)) if group != id => Err(ApiError::bad(format!(
                "device {id}: shares the limits of --rate-limit-group {group}, which cannot be set for it alone; set those of {group}"
            ))),
            _ => net.map(Self::Net).or(group.map(Self::Group)).ok_or_else(|| no_such(LIMITED, id)),
        }
    }
}

/// A configuration with other limits of a disk, a network interface or a group of disks.
///
/// # Errors
/// When there is none of that name, or a limit would let nothing pass.
pub fn with_rate_limit(config: &VmConfig, request: &SetRateLimit) -> Result<VmConfig, ApiError> {
    let SetRateLimit { id, rate_limiter_config: limits } = request;
    let mut config = config.clone();
    let limited = Limited::of(&config, id)?;
    let what = if matches!(limited, Limited::Group(_)) { "--rate-limit-group" } else { "device" };
    limits.iter().try_for_each(|limits| limits.check(&format!("{what} {id}")))?;
    match limited {
        Limited::Disk(at) => {
            config.disks.get_mut(at).into_iter().for_each(|disk| disk.rate_limiter_config = *limits);
        }
        Limited::Net(at) => {
            config.net.get_mut(at).into_iter().for_each(|net| net.rate_limiter_config = *limits);
        }
        Limited::Group(at) => {
            let limits = limits.filter(|limits| limits.bandwidth.is_some() || limits.ops.is_some());
            let Some(limits) = limits else {
                return Err(ApiError::bad(format!(
                    "--rate-limit-group {id}: a group limits something; give it limits as high as is wanted"
                )));
            };
            config
                .rate_limit_groups
                .get_mut(at)
                .into_iter()
                .for_each(|group| group.rate_limiter_config = limits);
        }
    }
    Ok(config)
}

/// A configuration with a network interface's cable plugged in or out.
///
/// # Errors
/// When there is no such interface.
pub fn with_link(config: &VmConfig, request: &SetLink) -> Result<VmConfig, ApiError> {
    let SetLink { id, up } = request;
    let mut config = config.clone();
    let net = config.net.iter_mut().find(|net| net.id.as_ref() == Some(id));
    net.ok_or_else(|| no_such(INTERFACE, id))?.link = *up;
    Ok(config)
}
