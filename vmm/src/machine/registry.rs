//! The devices of a machine: one line for each kind.
//!
//! A device that comes and goes is first opened ([`open`]), which may take as long as the host's files and programs take and
//! needs nothing of the machine, and then put in its place ([`Seat::take`]), which takes no time.

mod console;
mod disk;
mod ivshmem;
mod net;
mod pvpanic;
mod watchdog;

use super::control::Control;
use super::memory_devices::MemoryDevices;
use super::pci_bus::{PciBus, PlainDevice};
use super::workers;
use crate::config::disk::QueueAffinity;
use crate::config::options::Setting;
use crate::config::{
    BalloonConfig, Device, DeviceConfig, MemConfig, PciPlace, RateLimiterConfig, RngConfig,
    TokenBucketConfig, VmConfig, VsockConfig,
};
use crate::event::Events;
use crate::host_cpus;
use crate::message::Mailbox;
use crate::pmem::PmemFile;
use crate::seccomp::{self, ThreadKind};
use anyhow::{Context, Result};
use devices::virtio::rng::Rng;
use devices::virtio::rtc::{self, Rtc};
use devices::virtio::vsock::Vsock;
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::effect::FunctionAddress;
use machine::interrupt::MsiAllocator;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;
use virtio::device::VirtioDevice;
use virtio::pci_transport;
use virtio::rate_limit::{Limit, RateLimiter};

/// What devices of a machine share.
pub struct Site {
    clock: Arc<dyn Clock>,
    escape: Doorbell,
    groups: BTreeMap<String, RateLimiter>,
    events: Events,
    /// Not kept by a thread that opens something for a machine that has ended.
    msi: Weak<dyn MsiAllocator>,
    mailbox: Mailbox,
}

impl Site {
    /// For the machine of `config`. `escape` rings when the user wants out of a console on the terminal; `events` are told of what
    /// befalls devices, `msi` gives them interrupts, and what they have for the machine goes to `mailbox`.
    pub fn new(
        config: &VmConfig,
        clock: &Arc<dyn Clock>,
        escape: Doorbell,
        events: Events,
        msi: &Arc<dyn MsiAllocator>,
        mailbox: Mailbox,
    ) -> Self {
        let groups = config.rate_limit_groups.iter();
        let groups = groups
            .map(|group| (group.id.clone(), limiter(Some(&group.rate_limiter_config), clock)))
            .collect();
        Self { clock: Arc::clone(clock), escape, groups, events, msi: Arc::downgrade(msi), mailbox }
    }

    /// The limits of the group named `id`.
    pub fn group(&self, id: &str) -> Option<&RateLimiter> {
        self.groups.get(id)
    }

    /// Adds the devices that `config` asks for and whose turn it is. Returns where pseudo-terminals are, by their consoles.
    ///
    /// # Errors
    /// When one cannot be had, naming its option.
    pub fn add(
        &self,
        config: &VmConfig,
        turn: Turn,
        memory: &MemoryDevices,
        pci: &mut PciBus,
    ) -> Result<BTreeMap<String, PathBuf>> {
        let mut terminals = BTreeMap::new();
        for device in config.device_configs().iter().filter(|device| Turn::of(device) == turn) {
            let Opened { backend, seat } = open(self, device)?;
            terminals.extend(seat.terminal().map(|path| (seat.id.clone(), path.to_owned())));
            if let Backend::Ready(part) = backend {
                seat.take(part, memory, pci)?;
            }
        }
        Ok(terminals)
    }
}

/// When devices are added to a machine that is being built: a guest finds them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Before all memory is there.
    First,
    /// After that.
    Last,
}

impl Turn {
    fn of(device: &DeviceConfig) -> Self {
        match device {
            DeviceConfig::Pmem(_) => Self::Last,
            _ => Self::First,
        }
    }
}

/// How workers run that need nothing special.
pub(super) fn worker_options() -> workers::Options {
    workers::Options {
        poll: Duration::ZERO,
        affinity: Vec::new(),
        sharing: None,
        confine: || seccomp::confine(ThreadKind::Worker),
    }
}

/// A device that was opened, and is in no machine yet.
pub struct Opened {
    /// What it is made of.
    pub backend: Backend,
    /// Where it goes.
    pub seat: Seat,
}

/// What a device that was opened is made of.
pub enum Backend {
    /// What goes there.
    Ready(Part),
    /// Memory that is to have an address first.
    Memory(PmemFile),
}

/// What goes on PCI.
pub enum Part {
    /// A balloon in the machine's memory.
    Balloon(BalloonConfig),
    /// What a zone of that grows by.
    Mem(MemConfig),
    /// A virtio device.
    Virtio(Box<dyn VirtioDevice>),
    /// Another function.
    Plain(PlainDevice),
}

/// Where a device goes, and how it runs there.
pub struct Seat {
    /// Its name.
    pub id: String,
    option: String,
    place: PciPlace,
    transport: pci_transport::Options,
    workers: workers::Options,
    control: Option<Control>,
    /// Where the host has put the console's pseudo-terminal.
    terminal: Option<PathBuf>,
}

/// Opens a device, which has an id.
///
/// # Errors
/// When it cannot be had, naming its option.
pub fn open(site: &Site, device: &DeviceConfig) -> Result<Opened> {
    let opened = match device {
        DeviceConfig::Console(console) => console::open(site, console),
        DeviceConfig::Disk(disk) => disk::open(site, disk),
        DeviceConfig::Net(net) => net::open(site, net),
        DeviceConfig::Rng(rng) => open_rng(rng),
        DeviceConfig::Ivshmem(ivshmem) => ivshmem::open(site, ivshmem),
        DeviceConfig::Balloon(balloon) => {
            let part = Part::Balloon(BalloonConfig::clone(balloon));
            Ok(Seat::of(&**balloon).with(Backend::Ready(part)))
        }
        DeviceConfig::Mem(mem) => {
            let part = Part::Mem(MemConfig::clone(mem));
            Ok(Seat::of(&**mem).with(Backend::Ready(part)))
        }
        DeviceConfig::Watchdog(watchdog) => watchdog::open(site, watchdog),
        DeviceConfig::Pvpanic(config) => pvpanic::open(config),
        DeviceConfig::Pmem(pmem) => {
            PmemFile::open(pmem).map(|file| Seat::of(&**pmem).with(Backend::Memory(file)))
        }
        DeviceConfig::Vsock(vsock) => open_vsock(vsock),
        DeviceConfig::Rtc(config) => {
            let rtc = Rtc::new(Arc::clone(&site.clock), rtc::host_tai_offset);
            Ok(Seat::of(&**config).with_virtio(rtc))
        }
    };
    opened.with_context(|| device.common().option())
}

impl Seat {
    /// The usual one for this device.
    fn of(device: &dyn Device) -> Self {
        Self {
            id: device.id().unwrap_or_default().to_owned(),
            option: device.option(),
            place: device.place(),
            transport: pci_transport::Options::default(),
            workers: worker_options(),
            control: None,
            terminal: None,
        }
    }

    /// Where its pseudo-terminal is, if it is a console that has one.
    pub fn terminal(&self) -> Option<&Path> {
        self.terminal.as_deref()
    }

    fn with(self, backend: Backend) -> Opened {
        Opened { backend, seat: self }
    }

    fn with_virtio(self, device: impl VirtioDevice + 'static) -> Opened {
        self.with(Backend::Ready(Part::Virtio(Box::new(device))))
    }

    /// Puts the device in its place.
    ///
    /// # Errors
    /// When there is no room, naming its option.
    pub fn take(self, part: Part, memory: &MemoryDevices, pci: &mut PciBus) -> Result<FunctionAddress> {
        let Self { id, option, place, transport, workers, mut control, .. } = self;
        let address = match part {
            Part::Balloon(config) => {
                let balloon = memory.balloon(&config).with_context(|| option.clone())?;
                control = Some(Control::Balloon(balloon.control()));
                pci.add_virtio(&id, place, Box::new(balloon), transport, workers)
            }
            Part::Mem(config) => {
                let mem = memory.mem(&config).with_context(|| option.clone())?;
                control = Some(Control::Mem { zone: config.zone, device: mem.control() });
                pci.add_virtio(&id, place, Box::new(mem), transport, workers)
            }
            Part::Virtio(device) => pci.add_virtio(&id, place, device, transport, workers),
            Part::Plain(device) => pci.add_function(&id, place, device, workers),
        };
        let address = address.context(option)?;
        if let Some(control) = control {
            pci.set_control(address, control);
        }
        Ok(address)
    }
}

fn open_rng(config: &RngConfig) -> Result<Opened> {
    let device = Rng::open(&config.src).context(
        "this source of entropy cannot be opened; correct the path, or leave --rng out to use /dev/urandom",
    )?;
    Ok(Seat::of(config).with_virtio(device))
}

fn open_vsock(vsock: &VsockConfig) -> Result<Opened> {
    let socket = vsock.socket.clone().unwrap_or_default();
    let device = Vsock::open(vsock.cid, &socket)?;
    Ok(Seat::of(vsock).with_virtio(device))
}

fn affinity(queues: &[QueueAffinity]) -> Result<Vec<(u16, Vec<usize>)>> {
    let checked = |queue: &QueueAffinity| {
        host_cpus::check(&queue.host_cpus)
            .map_err(|reason| anyhow::anyhow!("queue_affinity={}: {reason}", queue.show()))?;
        Ok((queue.queue_index, queue.host_cpus.clone()))
    };
    queues.iter().map(checked).collect()
}

fn limiter(limits: Option<&RateLimiterConfig>, clock: &Arc<dyn Clock>) -> RateLimiter {
    let (bytes, operations) = limits.map_or((None, None), buckets);
    RateLimiter::new(bytes, operations, Arc::clone(clock))
}

/// The limits on bytes and on operations.
pub fn buckets(limits: &RateLimiterConfig) -> (Option<Limit>, Option<Limit>) {
    let limit = |bucket: Option<TokenBucketConfig>| {
        bucket.map(|bucket| Limit {
            size: bucket.size,
            refill_time: Duration::from_millis(bucket.refill_time),
            one_time_burst: bucket.one_time_burst.unwrap_or(0),
        })
    };
    (limit(limits.bandwidth), limit(limits.ops))
}
