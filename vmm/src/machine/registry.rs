//! The devices of a machine: one line for each kind.
//!
//! A device that comes and goes is first opened ([`open`]), which may take as long as the host's files and programs take and
//! needs nothing of the machine, and then put in its place ([`Seat::take`]), which takes no time.

use super::control::Control;
use super::pci_bus::PciBus;
use super::platform::console_mode;
use super::shared_memory::SharedMemory;
use super::workers::{self, Sharing};
use crate::config::disk::{DiskEngine, QueueAffinity};
use crate::config::options::Setting;
use crate::config::{
    Device, DeviceConfig, DiskConfig, NetConfig, PciPlace, RateLimiterConfig, TokenBucketConfig, VmConfig,
    VsockConfig,
};
use crate::event::Events;
use crate::host_cpus;
use crate::pmem::PmemFile;
use crate::seccomp::{self, ThreadKind};
use anyhow::{Context, Result, bail};
use block::engine::EngineKind;
use block::image::{self, OpenOptions};
use block::virtio_blk::{Block, BlockOptions, HostError, OnError};
use devices::host_console::{HostConsole, Mode};
use devices::ivshmem::server::{self, Link};
use devices::ivshmem::{Ivshmem, Peers};
use devices::pvpanic::PvpanicFunction;
use devices::virtio::console::{Console, Port};
use devices::virtio::rng::Rng;
use devices::virtio::rtc::{self, Rtc};
use devices::virtio::vsock::Vsock;
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::effect::FunctionAddress;
use net::link::tap::{Ipv4Setting, Tap, TapConfig};
use net::mac::MacAddress;
use net::virtio_net::Net;
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use virtio::device::VirtioDevice;
use virtio::pci_transport;
use virtio::rate_limit::{Limit, RateLimiter};

/// Adds the devices of one kind.
type Add = fn(&Site, &VmConfig, &mut PciBus) -> Result<()>;

/// Every kind of device on PCI, in the order in which a guest finds them.
const REGISTRY: &[Add] = &[add_console, add_disks, add_networks, add_rng, add_sockets, add_rtc, add_ivshmem];

/// What devices of a machine share.
pub struct Site {
    clock: Arc<dyn Clock>,
    escape: Doorbell,
    groups: BTreeMap<String, RateLimiter>,
    terminal: OnceLock<PathBuf>,
    events: Events,
}

impl Site {
    /// For the machine of `config`. `escape` rings when the user wants out of a console on the terminal; `events` are told of what
    /// befalls devices.
    pub fn new(config: &VmConfig, clock: &Arc<dyn Clock>, escape: Doorbell, events: Events) -> Self {
        let groups = config.rate_limit_groups.iter();
        let groups = groups
            .map(|group| (group.id.clone(), limiter(Some(&group.rate_limiter_config), clock)))
            .collect();
        Self { clock: Arc::clone(clock), escape, groups, terminal: OnceLock::new(), events }
    }

    /// Where the virtio console is, if that is a pseudo-terminal.
    pub fn terminal(&self) -> Option<PathBuf> {
        self.terminal.get().cloned()
    }

    /// Adds all devices that `config` asks for.
    ///
    /// # Errors
    /// When one cannot be had, naming its option.
    pub fn add_all(&self, config: &VmConfig, pci: &mut PciBus) -> Result<()> {
        REGISTRY.iter().try_for_each(|add| add(self, config, pci))
    }
}

/// How long a server of shared memory may take for each of the messages that it sends at once.
const SERVER_PATIENCE: Duration = Duration::from_secs(5);

/// How workers run that need nothing special.
pub(super) fn worker_options() -> workers::Options {
    workers::Options {
        poll: Duration::ZERO,
        affinity: Vec::new(),
        sharing: None,
        confine: || seccomp::confine(ThreadKind::Worker),
    }
}

fn add_console(site: &Site, config: &VmConfig, pci: &mut PciBus) -> Result<()> {
    let mode = match console_mode(&config.console) {
        Some(mode) => mode,
        // The first port of a device is a console in any case.
        None if !config.channels.is_empty() => Mode::Null,
        None => return Ok(()),
    };
    let mut host = HostConsole::open(&mode).context("--console")?;
    host.on_escape(site.escape.clone());
    if let Some(path) = host.path() {
        eprintln!("vivarium: --console is at {}", path.display());
        // A machine has one such console.
        let _ = site.terminal.set(path.to_owned());
    }
    let mut ports = vec![Port { name: "console".into(), console: true, host }];
    for channel in &config.channels {
        let option = || format!("--channel name={}", channel.name);
        let mode = Mode::Socket(channel.socket.clone().unwrap_or_default());
        let host = HostConsole::open(&mode).with_context(option)?;
        ports.push(Port { name: channel.name.clone(), console: false, host });
    }
    let console = Console::new(ports).context("--channel")?;
    pci.add_virtio("__console", 0, Box::new(console), pci_transport::Options::default(), worker_options())?;
    Ok(())
}

fn add_rng(_site: &Site, config: &VmConfig, pci: &mut PciBus) -> Result<()> {
    let source = &config.rng.src;
    let rng = Rng::open(source).with_context(|| {
        format!(
            "--rng src={}: this source of entropy cannot be opened; correct the path, or leave --rng out to use /dev/urandom",
            source.display()
        )
    })?;
    pci.add_virtio("__rng", 0, Box::new(rng), pci_transport::Options::default(), worker_options())?;
    Ok(())
}

fn add_ivshmem(_site: &Site, config: &VmConfig, pci: &mut PciBus) -> Result<()> {
    let Some(config) = &config.ivshmem else { return Ok(()) };
    let id = config.id.as_deref().unwrap_or("__ivshmem");
    let mut add = || {
        let number = pci.free_memory_number();
        let (device, memory, link) = match &config.socket {
            None => {
                let memory = SharedMemory::open(config, number)?;
                (Ivshmem::new(memory.size().0)?, memory, None)
            }
            Some(socket) => {
                let joined = server::join(socket, SERVER_PATIENCE)?;
                let memory = SharedMemory::given(joined.memory.try_clone()?, number)?;
                let (size, peers, msi) = (memory.size().0, Arc::<Peers>::default(), pci.msi_allocator());
                let (device, vectors) =
                    Ivshmem::with_doorbell(size, joined.number, Arc::clone(&peers), config.vectors, msi)?;
                (device, memory, Some(Link::new(joined, peers, vectors)?))
            }
        };
        let address = pci.add_function(id, config.place(), Arc::new(Mutex::new(device)))?;
        pci.back_bar(address, Ivshmem::MEMORY_BAR, memory);
        if let Some(link) = link {
            pci.run_beside(address, link.into_task(), worker_options())?;
        }
        Ok::<_, anyhow::Error>(())
    };
    add().with_context(|| config.option())
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
    /// The device.
    Device(Box<dyn VirtioDevice>),
    /// Memory that is to have an address first.
    Memory(PmemFile),
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
}

/// Opens a device, which has an id.
///
/// # Errors
/// When it cannot be had, naming its option.
pub fn open(site: &Site, device: &DeviceConfig) -> Result<Opened> {
    let opened = match device {
        DeviceConfig::Disk(disk) => open_disk(site, disk),
        DeviceConfig::Net(net) => open_net(site, net),
        DeviceConfig::Pmem(pmem) => {
            PmemFile::open(pmem).map(|file| Seat::of(&**pmem).with(Backend::Memory(file)))
        }
        DeviceConfig::Vsock(vsock) => open_vsock(vsock),
        DeviceConfig::Rtc(config) => {
            let rtc = Rtc::new(Arc::clone(&site.clock), rtc::host_tai_offset);
            Ok(Seat::of(&**config).with(Backend::Device(Box::new(rtc))))
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
        }
    }

    fn with(self, backend: Backend) -> Opened {
        Opened { backend, seat: self }
    }

    /// Puts the device in its place.
    ///
    /// # Errors
    /// When there is no room, naming its option.
    pub fn take(self, device: Box<dyn VirtioDevice>, pci: &mut PciBus) -> Result<FunctionAddress> {
        let Self { id, option, place, transport, workers, control } = self;
        let address = pci.add_virtio(&id, place, device, transport, workers).context(option)?;
        if let Some(control) = control {
            pci.set_control(address, control);
        }
        Ok(address)
    }
}

/// Opens devices and puts them in their places.
fn add_each<T: Clone + Into<DeviceConfig>>(
    site: &Site,
    pci: &mut PciBus,
    devices: impl IntoIterator<Item = T>,
) -> Result<()> {
    for device in devices {
        let Opened { backend, seat } = open(site, &device.into())?;
        if let Backend::Device(device) = backend {
            seat.take(device, pci)?;
        }
    }
    Ok(())
}

/// Adds the function by which the guest reports its panics, if it is to have one.
///
/// # Errors
/// When there is no room for it.
pub fn add_pvpanic(config: &VmConfig, pci: &mut PciBus) -> Result<()> {
    if config.hears_panics() {
        let device = PvpanicFunction::new().context("--pvpanic")?;
        pci.add_function("__pvpanic", 0, Arc::new(Mutex::new(device))).context("--pvpanic")?;
    }
    Ok(())
}

fn add_sockets(site: &Site, config: &VmConfig, pci: &mut PciBus) -> Result<()> {
    add_each(site, pci, config.vsock.clone())
}

fn add_rtc(site: &Site, config: &VmConfig, pci: &mut PciBus) -> Result<()> {
    add_each(site, pci, config.rtc.clone())
}

fn open_vsock(vsock: &VsockConfig) -> Result<Opened> {
    let socket = vsock.socket.clone().unwrap_or_default();
    let device = Vsock::open(vsock.cid, &socket)?;
    Ok(Seat::of(vsock).with(Backend::Device(Box::new(device))))
}

fn add_disks(site: &Site, config: &VmConfig, pci: &mut PciBus) -> Result<()> {
    add_each(site, pci, config.disks.clone())
}

fn open_disk(site: &Site, disk: &DiskConfig) -> Result<Opened> {
    let seat = Seat::of(disk);
    let device = open_image(site, disk, &seat.id)?;
    let seat = Seat {
        transport: pci_transport::Options { packed: disk.packed, ..seat.transport },
        workers: workers::Options {
            poll: Duration::from_micros(disk.poll_us.into()),
            affinity: affinity(&disk.queue_affinity)?,
            sharing: disk.workers.map(|workers| Sharing { workers, together: 1 }),
            ..seat.workers
        },
        control: Some(Control::Disk(device.control())),
        ..seat
    };
    Ok(seat.with(Backend::Device(Box::new(device))))
}

fn affinity(queues: &[QueueAffinity]) -> Result<Vec<(u16, Vec<usize>)>> {
    let checked = |queue: &QueueAffinity| {
        host_cpus::check(&queue.host_cpus)
            .map_err(|reason| anyhow::anyhow!("queue_affinity={}: {reason}", queue.show()))?;
        Ok((queue.queue_index, queue.host_cpus.clone()))
    };
    queues.iter().map(checked).collect()
}

fn open_image(site: &Site, disk: &DiskConfig, id: &str) -> Result<Block> {
    let image = image::open(&OpenOptions {
        path: disk.path.clone().unwrap_or_default(),
        read_only: disk.readonly,
        direct: disk.direct,
        engine: match disk.engine {
            DiskEngine::Auto => EngineKind::Auto,
            DiskEngine::IoUring => EngineKind::IoUring,
            DiskEngine::Threads => EngineKind::Threads,
        },
        thread_start: Some(Arc::new(|| seccomp::confine(ThreadKind::Worker))),
        ..OpenOptions::default()
    })?;
    let own = || limiter(disk.rate_limiter_config.as_ref(), &site.clock);
    let shared = disk.rate_limit_group.as_deref().and_then(|group| site.groups.get(group).cloned());
    let options = BlockOptions {
        name: id.to_owned(),
        serial: disk.serial.clone().unwrap_or_default(),
        queues: disk.num_queues,
        queue_size: disk.queue_size,
        write_back: disk.writeback,
        limiter: Some(shared.unwrap_or_else(own)),
        on_error: Some(tell_of_errors(site, id)),
    };
    Ok(Block::new(image, options)?)
}

/// Tells of the requests of disk `id` that the host fails.
fn tell_of_errors(site: &Site, id: &str) -> OnError {
    let (events, id) = (site.events.clone(), id.to_owned());
    Arc::new(move |HostError { operation, reason, errors }| {
        let properties = [
            ("id", id.as_str().into()),
            ("operation", operation.as_str().into()),
            ("reason", reason.as_str().into()),
            ("errors", (*errors).into()),
        ];
        events.emit_for_guest("vm", "disk-error", properties);
    })
}

fn add_networks(site: &Site, config: &VmConfig, pci: &mut PciBus) -> Result<()> {
    add_each(site, pci, config.net.clone())
}

fn open_net(site: &Site, net: &NetConfig) -> Result<Opened> {
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
    Ok(seat.with(Backend::Device(Box::new(device))))
}

fn open_tap(site: &Site, config: &NetConfig) -> Result<Net> {
    let mac = |text: &Option<String>| text.as_deref().map(str::parse::<MacAddress>).transpose();
    let mask = |mask: Option<IpAddr>| match mask {
        Some(IpAddr::V4(mask)) => Ok(mask),
        None => Ok(Ipv4Addr::new(255, 255, 255, 0)),
        Some(IpAddr::V6(_)) => bail!("mask: is an IPv6 address; give the mask of an IPv4 network"),
    };
    let address = match config.ip {
        // Whoever opened the tap has set it up; clients fill in an address that nobody wants.
        _ if config.fds.is_some() => None,
        None => None,
        Some(IpAddr::V4(address)) => Some(Ipv4Setting { address, mask: mask(config.mask)? }),
        Some(IpAddr::V6(_)) => bail!("ip: is an IPv6 address; set it with `ip addr add` on the tap"),
    };
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
    if fd < 3 {
        bail!("fd={fd}: is a standard stream; pass the tap as descriptor 3 or above");
    }
    // SAFETY: F_DUPFD_CLOEXEC only makes a new descriptor, and fails when `fd` is not open.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("fd={fd}: is not an open file descriptor of this process"));
    }
    // SAFETY: fcntl just gave this descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
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
