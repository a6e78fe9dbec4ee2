//! Calls for the tests of the machine thread against a model: which there are, what they may answer, and how often each was done.
#![allow(dead_code, reason = "each test takes what it needs")]

use super::control::{Control, Random, add, remove};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vivarium_tests::host::Folder;
use vivarium_tests::{Architecture, native};
use vmm::api::request::{
    AddPort, Coredump, Inspect, Resize, ResizeDisk, ResizeZone, SetAffinity, SetLink, SetRateLimit,
    SetThrottle, SwitchPorts,
};
use vmm::api::{Answer, ErrorKind, Request};
use vmm::config::{
    BalloonConfig, ByteSize, ChannelConfig, ConsoleConfig, ConsoleMode, CpuAffinity, DeviceConfig,
    DiskConfig, HotplugMethod, IvshmemConfig, MemConfig, MemoryZoneConfig, NetConfig, PciPortConfig,
    PciPortKind, PmemConfig, PvpanicConfig, RngConfig, RtcConfig, VmConfig, VsockConfig, WatchdogConfig,
    WatchdogModel,
};

/// The port that devices are plugged in at.
pub const PORT: &str = "rp0";

/// A port that comes and goes.
const LATE_PORT: &str = "port0";
/// A switch that comes and goes below [`PORT`], and what is part of it.
const SWITCH: [&str; 2] = ["switch", "switch.port"];

/// Whether a device is of those that a machine begins with.
pub fn standing(id: &str) -> bool {
    id.starts_with("__") || id == PORT
}

/// Whether something is part of something else, with which it goes.
pub fn part(id: &str) -> bool {
    id == SWITCH[1]
}

/// A machine to which everything can be done; one of two kinds, whose memory grows in different ways.
pub fn machine(mut config: Box<VmConfig>, zones: bool) -> Box<VmConfig> {
    config.cpus.max_vcpus = Some(3);
    config.balloon = Some(BalloonConfig::default());
    config.pci_ports = vec![PciPortConfig { bus_reserve: 2, ..port(PORT) }];
    // What a dump finds is holes.
    config.memory.shared = true;
    if zones {
        config.memory.size = ByteSize(0);
        config.memory.hotplug_method = HotplugMethod::VirtioMem;
        config.memory.zones = Some(vec![MemoryZoneConfig {
            id: "zone".into(),
            size: ByteSize(64 << 20),
            shared: true,
            hotplug_size: Some(ByteSize(128 << 20)),
            ..MemoryZoneConfig::default()
        }]);
    } else {
        config.memory.hotplug_size = Some(ByteSize(256 << 20));
    }
    config
}

fn port(id: &str) -> PciPortConfig {
    PciPortConfig { id: id.into(), ..PciPortConfig::default() }
}

/// Kinds of devices that come and go beside disks and persistent memory.
const OTHERS: &[&str] =
    &["balloon", "console", "ivshmem", "net", "pvpanic", "rng", "rtc", "vsock", "watchdog"];

/// The images of the devices that come and go, and where dumps are put.
pub struct Images {
    folder: PathBuf,
    disks: Vec<PathBuf>,
    files: Vec<PathBuf>,
    dump: PathBuf,
}

/// What a call is called in the counts.
pub fn label(request: &Request) -> &'static str {
    match request {
        Request::Add(add) => match &add.device {
            DeviceConfig::Disk(disk) if disk.bus.is_some() => "add at a port",
            device => match device.common().kind() {
                "balloon" => "add balloon",
                "console" => "add console",
                "disk" => "add disk",
                "ivshmem" => "add ivshmem",
                "mem" => "add mem",
                "net" => "add net",
                "pmem" => "add pmem",
                "pvpanic" => "add pvpanic",
                "rng" => "add rng",
                "rtc" => "add rtc",
                "vsock" => "add vsock",
                "watchdog" => "add watchdog",
                kind => kind,
            },
        },
        Request::AddPort(add) if !add.switch.ports.is_empty() => "add a switch",
        Request::RemoveDevice(remove) if remove.force => "remove with force",
        Request::Resize(resize) if resize.desired_ram.is_some() => "resize memory",
        Request::Resize(resize) if resize.desired_balloon.is_some() => "resize balloon",
        request => request.name(),
    }
}

/// Each of these is done at least once, or nothing was tested of it.
pub const LABELS: &[&str] = &[
    "add a switch",
    "add at a port",
    "add balloon",
    "add console",
    "add disk",
    "add ivshmem",
    "add mem",
    "add net",
    "add pmem",
    "add pvpanic",
    "add rng",
    "add rtc",
    "add vsock",
    "add watchdog",
    "remove with force",
    "resize balloon",
    "resize memory",
    "vm.add-port",
    "vm.boot",
    "vm.coredump",
    "vm.counters",
    "vm.create",
    "vm.delete",
    "vm.info",
    "vm.inspect",
    "vm.nmi",
    "vm.pause",
    "vm.power-button",
    "vm.reboot",
    "vm.remove-device",
    "vm.resize",
    "vm.resize-disk",
    "vm.resize-zone",
    "vm.resume",
    "vm.set-affinity",
    "vm.set-link",
    "vm.set-rate-limit",
    "vm.set-throttle",
    "vm.shutdown",
];

/// How often each call was done.
#[derive(Default)]
pub struct Counts(BTreeMap<&'static str, u32>);

impl Counts {
    pub fn note(&mut self, label: &'static str, answer: &Answer) {
        *self.0.entry(label).or_default() += u32::from(answer.is_ok());
    }

    /// How often that was done.
    pub fn of(&self, label: &str) -> u32 {
        self.0.get(label).copied().unwrap_or_default()
    }

    pub fn assert_each_was_done(&self) {
        // Elsewhere there are too few seeds, and CPUs without an NMI.
        if native() == Architecture::X86_64 {
            let taps = std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_ok();
            let of_taps = ["add net", "vm.set-link"];
            for label in LABELS.iter().filter(|label| taps || !of_taps.contains(label)) {
                assert!(self.0.get(label).is_some_and(|count| *count > 0), "{label}: {:?}", self.0);
            }
        }
    }
}

impl Images {
    pub fn new(folder: &Folder) -> Self {
        let images = |name: &str, size| (0..3).map(|n| folder.sparse(&format!("{name}{n}"), size)).collect();
        folder.sparse("shared", 1 << 20);
        let (disks, files) = (images("disk", 1 << 20), images("pmem", 2 << 20));
        Self { folder: folder.join(""), disks, files, dump: folder.join("dump") }
    }

    /// A call that changes or asks something of a machine, and leaves its state.
    pub fn any(&self, random: &mut Random, running: bool) -> Request {
        let number = random.below(3) as usize;
        let (disk_id, file_id) = (format!("disk{number}"), format!("pmem{number}"));
        // A guest that does not run lets go of nothing.
        let patience = if running { 60_000 } else { 1 };
        let of_disk = |id: &str, path: &Path| DiskConfig {
            path: Some(path.to_owned()),
            id: Some(id.to_owned()),
            ..DiskConfig::default()
        };
        match random.below(36) {
            0 | 1 => add(of_disk(&disk_id, &self.disks[number])),
            2 => {
                let file = Some(self.files[number].clone());
                add(PmemConfig { file, id: Some(file_id), ..PmemConfig::default() })
            }
            3 => remove(&disk_id, random.below(2) == 0, patience),
            4 => remove(&file_id, random.below(2) == 0, patience),
            5 => {
                let disk = of_disk("plugged", &self.disks[0].with_file_name("plugged"));
                let bus = [PORT, LATE_PORT, SWITCH[1]][number];
                add(DiskConfig { bus: Some(bus.into()), ..disk })
            }
            // No guest here knows of ports: it may be asked, and lets go of nothing.
            6 => remove("plugged", random.below(2) == 0, 1),
            7 => Request::SetThrottle(SetThrottle { percent: random.below(100) as u8 }),
            8 => resize(Some(1 + random.below(3) as u32), None, None),
            9 => resize(None, Some((64 + 128 * random.below(3)) << 20), None),
            10 => resize(None, None, Some(random.below(64) << 20)),
            11 => Request::ResizeZone(ResizeZone {
                id: "zone".into(),
                desired_ram: ByteSize((64 + 64 * random.below(3)) << 20),
            }),
            12 => Request::ResizeDisk(ResizeDisk {
                id: disk_id,
                desired_size: ByteSize((1 + random.below(8)) << 20),
            }),
            13 => Request::SetRateLimit(Box::new(SetRateLimit { id: disk_id, rate_limiter_config: None })),
            14 => Request::PowerButton,
            15 => Request::Nmi,
            16 => Request::SetAffinity(SetAffinity {
                cpus: vec![CpuAffinity { vcpu: 0, host_cpus: vec![0] }],
                queues: Vec::new(),
            }),
            17 => {
                // The one before is not wanted, and may not be there.
                let _ = std::fs::remove_file(&self.dump);
                Request::Coredump(Coredump { destination_url: format!("file://{}", self.dump.display()) })
            }
            18 => Request::Inspect(Inspect::default()),
            19 | 20 | 33 | 34 => self.other(random),
            21 | 22 => {
                let kind = OTHERS[random.below(OTHERS.len() as u64) as usize];
                let id = if kind == "balloon" { "__balloon".into() } else { format!("{kind}{}", number % 2) };
                remove(&id, random.below(2) == 0, patience)
            }
            // One of the two machines begins with it, and only that can have it.
            23 => remove("__mem_zone", random.below(2) == 0, patience),
            24 | 32 => add(MemConfig { zone: "zone".into(), ..MemConfig::default() }),
            25 => add_port(port(LATE_PORT), &[]),
            26 => {
                let kind = PciPortKind::Upstream;
                let upstream = PciPortConfig { kind, bus: Some(PORT.into()), ..port(SWITCH[0]) };
                add_port(upstream, &[port(SWITCH[1])])
            }
            27 if number == 0 => remove(LATE_PORT, random.below(2) == 0, patience),
            27 => remove(SWITCH[0], random.below(2) == 0, 1),
            28 | 29 => {
                let id = format!("net{}", number % 2);
                Request::SetLink(SetLink { id, up: random.below(2) == 0 })
            }
            30 => add(BalloonConfig::default()),
            31 => remove("__balloon", random.below(2) == 0, patience),
            _ if random.below(2) == 0 => Request::Counters,
            _ => Request::Info,
        }
    }

    /// Adds a device of another kind than a disk or persistent memory.
    fn other(&self, random: &mut Random) -> Request {
        let kind = OTHERS[random.below(OTHERS.len() as u64) as usize];
        let number = random.below(2);
        let id = Some(format!("{kind}{number}"));
        match kind {
            // The one that the machine began with is not there: it has its name.
            "balloon" => add(BalloonConfig::default()),
            "console" => add(ConsoleConfig {
                mode: ConsoleMode::Pty,
                channels: vec![ChannelConfig {
                    name: format!("channel{number}"),
                    socket: Some(self.folder.join(format!("channel{number}"))),
                }],
                id,
                ..ConsoleConfig::default()
            }),
            "ivshmem" => {
                let path = self.folder.join("shared");
                add(IvshmemConfig { path, size: ByteSize(1 << 20), id, ..IvshmemConfig::default() })
            }
            "pvpanic" => add(PvpanicConfig { id, ..PvpanicConfig::default() }),
            // Without a name the host makes a tap, and takes it away in the end.
            "net" => add(NetConfig { id, ..NetConfig::default() }),
            "rng" => add(RngConfig { id, ..RngConfig::default() }),
            "rtc" => add(RtcConfig { id, ..RtcConfig::default() }),
            "vsock" => {
                let socket = Some(self.folder.join("vsock"));
                add(VsockConfig { socket, id, ..VsockConfig::default() })
            }
            _ => {
                let model = [WatchdogModel::I6300esb, WatchdogModel::Virtio][number as usize];
                add(WatchdogConfig { model, id, ..WatchdogConfig::default() })
            }
        }
    }

    /// A call that may not be refused, if there is one: to add what is not there to a machine that has a place for it.
    pub fn certain(&self, random: &mut Random, control: &Control) -> Option<Request> {
        let number = random.below(3) as usize;
        let id = format!("disk{number}");
        let info = control.info();
        let known = info["device_tree"].get(&id).is_some() || control.disks().contains(&id);
        let path = Some(self.disks[number].clone());
        (!known).then(|| add(DiskConfig { path, id: Some(id), ..DiskConfig::default() }))
    }
}

fn add_port(port: PciPortConfig, below: &[PciPortConfig]) -> Request {
    Request::AddPort(Box::new(AddPort { port, switch: SwitchPorts { ports: below.to_vec() } }))
}

fn resize(cpus: Option<u32>, ram: Option<u64>, balloon: Option<u64>) -> Request {
    Request::Resize(Resize {
        desired_vcpus: cpus,
        desired_ram: ram.map(ByteSize),
        desired_balloon: balloon.map(ByteSize),
    })
}

/// Gives a machine the sizes that it began with, and its balloon.
pub fn shrink(control: &Control) {
    let info = control.info();
    if info["config"]["balloon"].is_null() {
        control.done(add(BalloonConfig::default()));
    }
    let size = info["config"]["memory"]["size"].as_u64().unwrap();
    if size > 0 {
        control.done(resize(Some(1), Some(size), None));
    } else {
        control.done(resize(Some(1), None, None));
    }
}

/// Why a call may be refused, beside others that are under way, one of which may end the machine if `ends`.
pub fn may_refuse(request: &Request, kind: ErrorKind, ends: bool) -> bool {
    use ErrorKind::{BadRequest, Conflict, Internal, NotFound, NotSupported, State, Timeout};
    let own: &[ErrorKind] = match request {
        // A port that is to go takes no more.
        Request::Add(_) | Request::AddPort(_) => &[BadRequest, Conflict],
        Request::RemoveDevice(_) => &[NotFound, Conflict, Timeout, BadRequest],
        Request::Resize(_) => &[BadRequest],
        Request::ResizeZone(_) => &[BadRequest, NotFound, State, Conflict],
        Request::ResizeDisk(_) => &[BadRequest, NotFound, State],
        Request::SetRateLimit(_) | Request::SetLink(_) => &[NotFound, State],
        Request::Coredump(_) => &[State, Conflict],
        Request::Nmi => &[State, NotSupported, Internal],
        Request::SetAffinity(_) => &[State, BadRequest],
        Request::Boot => &[State, Conflict],
        Request::Info | Request::Ping => &[],
        _ => &[State],
    };
    let of_an_end: &[ErrorKind] = if ends { &[Conflict, State, NotFound] } else { &[] };
    own.contains(&kind) || of_an_end.contains(&kind)
}
