//! Every verb of the API: one variant each, with the body it takes.
//!
//! Names, bodies and the states in which a verb is allowed follow cloud-hypervisor's public API.

use crate::config::{ByteSize, CpuAffinity, DeviceConfig, PciPortConfig, RateLimiterConfig, VmConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// Something asked of the machine thread.
#[derive(Debug)]
pub enum Request {
    /// `vmm.ping`: who is there.
    Ping,
    /// `vmm.shutdown`: end the process.
    VmmShutdown,
    /// `vm.create`: this is the machine to boot.
    Create(Box<VmConfig>),
    /// `vm.delete`: shut down what runs and forget the configuration.
    Delete,
    /// `vm.boot`: build the machine and run it.
    Boot,
    /// `vm.pause`: stop the CPUs and the devices' workers.
    Pause,
    /// `vm.resume`: go on after a pause.
    Resume,
    /// `vm.shutdown`: end the machine, keep its configuration.
    Shutdown,
    /// `vm.reboot`: restart the machine in place.
    Reboot,
    /// `vm.power-button`: press it.
    PowerButton,
    /// `vm.nmi`: interrupt every CPU without a mask.
    Nmi,
    /// `vm.info`: configuration, state and devices.
    Info,
    /// `vm.counters`: what devices counted.
    Counters,
    /// `vm.coredump`: write the memory and registers of a paused machine.
    Coredump(Coredump),
    /// `vm.resize`: CPUs, memory, balloon.
    Resize(Resize),
    /// `vm.resize-disk`: a disk's image has another size now.
    ResizeDisk(ResizeDisk),
    /// `vm.resize-zone`: a memory zone.
    ResizeZone(ResizeZone),
    /// `vm.add-disk` and the others by which a device comes. Descriptors passed along with a network interface are its
    /// tap's queues.
    Add(AddDevice),
    /// `vm.add-port`: a PCI Express port, or a switch.
    AddPort(Box<AddPort>),
    /// `vm.remove-device`.
    RemoveDevice(RemoveDevice),
    /// `vm.set-rate-limit`.
    SetRateLimit(Box<SetRateLimit>),
    /// `vm.set-link`.
    SetLink(SetLink),
    /// `vm.set-throttle`.
    SetThrottle(SetThrottle),
    /// `vm.set-affinity`.
    SetAffinity(SetAffinity),
    /// `vm.inspect`: the live tree, or the part of it at a path.
    Inspect(Inspect),
    /// `metrics`: counters for Prometheus.
    Metrics,
    /// A verb of cloud-hypervisor whose machinery is not there.
    Unsupported(&'static str),
}

impl Request {
    /// The verb.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ping => "vmm.ping",
            Self::VmmShutdown => "vmm.shutdown",
            Self::Create(_) => "vm.create",
            Self::Delete => "vm.delete",
            Self::Boot => "vm.boot",
            Self::Pause => "vm.pause",
            Self::Resume => "vm.resume",
            Self::Shutdown => "vm.shutdown",
            Self::Reboot => "vm.reboot",
            Self::PowerButton => "vm.power-button",
            Self::Nmi => "vm.nmi",
            Self::Info => "vm.info",
            Self::Counters => "vm.counters",
            Self::Coredump(_) => "vm.coredump",
            Self::Resize(_) => "vm.resize",
            Self::ResizeDisk(_) => "vm.resize-disk",
            Self::ResizeZone(_) => "vm.resize-zone",
            Self::Add(_) => "vm.add-*",
            Self::AddPort(_) => "vm.add-port",
            Self::RemoveDevice(_) => "vm.remove-device",
            Self::SetRateLimit(_) => "vm.set-rate-limit",
            Self::SetLink(_) => "vm.set-link",
            Self::SetThrottle(_) => "vm.set-throttle",
            Self::SetAffinity(_) => "vm.set-affinity",
            Self::Inspect(_) => "vm.inspect",
            Self::Metrics => "metrics",
            Self::Unsupported(name) => name,
        }
    }

    /// Whether it only looks, and is answered whatever is under way.
    pub fn is_query(&self) -> bool {
        matches!(self, Self::Ping | Self::Info | Self::Counters | Self::Inspect(_) | Self::Metrics)
    }
}

/// What `vm.coredump` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Coredump {
    /// Where the dump goes: `file://` and an absolute path.
    pub destination_url: String,
}

/// What `vm.resize` takes. What is not given stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Resize {
    /// CPUs.
    pub desired_vcpus: Option<u32>,
    /// Memory, in bytes.
    pub desired_ram: Option<ByteSize>,
    /// The balloon, in bytes taken from the guest.
    pub desired_balloon: Option<ByteSize>,
}

/// What `vm.resize-disk` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ResizeDisk {
    /// The disk.
    pub id: String,
    /// Its new size in bytes.
    pub desired_size: ByteSize,
}

/// What `vm.resize-zone` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ResizeZone {
    /// The zone.
    pub id: String,
    /// Its new size in bytes.
    pub desired_ram: ByteSize,
}

/// What the verbs take by which a device comes: its configuration, and beside it in the same body what is in [`Opening`].
#[derive(Clone, Debug, PartialEq)]
pub struct AddDevice {
    /// The device.
    pub device: DeviceConfig,
    /// How it is opened.
    pub opening: Opening,
}

/// How a device that is to come is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Opening {
    /// How long the host may take to open it, in milliseconds; 30 seconds if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl Opening {
    /// Its fields in a body.
    pub const FIELDS: &[&str] = &["timeout_ms"];
}

/// What `vm.add-port` takes: the configuration of a root port or an upstream port, and beside it in the same body what is in
/// [`SwitchPorts`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AddPort {
    /// The port.
    pub port: PciPortConfig,
    /// What is part of it.
    pub switch: SwitchPorts,
}

/// The further ports of a switch that is to come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SwitchPorts {
    /// The downstream ports below an upstream port. Their kind and bus need not be said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PciPortConfig>,
}

impl SwitchPorts {
    /// Its fields in a body.
    pub const FIELDS: &[&str] = &["ports"];
}

/// What `vm.remove-device` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RemoveDevice {
    /// The device.
    pub id: String,
    /// Take it away without waiting for the guest to release it.
    #[serde(default)]
    pub force: bool,
    /// How long the guest may take to release it, in milliseconds; 10 seconds if not given.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// What `vm.set-rate-limit` takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SetRateLimit {
    /// The disk, network interface or rate limit group.
    pub id: String,
    /// Its new limits; none lifts them, but for a group, which always has some.
    #[serde(default)]
    pub rate_limiter_config: Option<RateLimiterConfig>,
}

/// What `vm.set-link` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SetLink {
    /// The network interface.
    pub id: String,
    /// Whether its cable is plugged in.
    pub up: bool,
}

/// What `vm.set-throttle` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SetThrottle {
    /// The share of the time in which CPUs are held, 0 to 99; 0 lets them run.
    pub percent: u8,
}

/// What `vm.set-affinity` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SetAffinity {
    /// Host CPUs that CPUs may run on; those not named stay where they are.
    pub cpus: Vec<CpuAffinity>,
    /// Host CPUs that workers of devices' queues may run on.
    pub queues: Vec<DeviceQueueAffinity>,
}

/// Host CPUs for the worker of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DeviceQueueAffinity {
    /// The device.
    pub id: String,
    /// Its queue.
    pub queue_index: u16,
    /// The host's CPUs.
    pub host_cpus: Vec<usize>,
}

/// What `vm.inspect` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Inspect {
    /// Names from the root, separated by `/`; all, if empty.
    pub path: String,
}

/// What a call answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// It is done; there is nothing to say.
    Done,
    /// An object.
    Json(serde_json::Value),
    /// Text.
    Text(String),
}

impl Reply {
    /// An answer of one of this module's types.
    pub fn json(value: &impl Serialize) -> Answered {
        serde_json::to_value(value).map(Self::Json).map_err(|error| ApiError::internal(error.to_string()))
    }
}

type Answered = Result<Reply, ApiError>;

/// What `vmm.ping` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PingReply {
    /// The build.
    pub build_version: String,
    /// The version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// Optional parts it was built with.
    pub features: Vec<String>,
}

/// A machine's state, in cloud-hypervisor's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum VmState {
    /// There is a configuration, and nothing runs.
    Created,
    /// The guest runs.
    Running,
    /// The machine was shut down.
    Shutdown,
    /// The CPUs are stopped.
    Paused,
}

/// What `vm.info` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InfoReply {
    /// The configuration as it is now.
    pub config: VmConfig,
    /// The state.
    pub state: VmState,
    /// Memory that the guest can use, in bytes.
    pub memory_actual_size: u64,
    /// CPUs that are there: more than `config.cpus.boot_vcpus`, the number that was asked for, until the guest lets go of the others.
    pub cpus_actual: u32,
    /// The share of the time in which CPUs are held, in percent.
    pub throttle_percent: u8,
    /// The devices that can be named, by id.
    pub device_tree: BTreeMap<String, DeviceNode>,
}

/// A device of [`InfoReply::device_tree`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceNode {
    /// Its id.
    pub id: String,
    /// Devices behind it.
    pub children: Vec<String>,
    /// Where it is on PCI, as `0000:00:03.0`.
    pub pci_bdf: Option<String>,
}

/// What the verbs that add a device answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AddedReply {
    /// The device's id.
    pub id: String,
    /// Where it is on PCI, as `0000:00:03.0`.
    pub bdf: String,
}

/// What kind of failure a call met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong.
    BadRequest,
    /// What it names is not there; no machine was created.
    NotFound,
    /// Not in this state.
    State,
    /// What it would make is there already.
    Conflict,
    /// It was not done within its time.
    Timeout,
    /// The host refused, or something is broken.
    Internal,
    /// The verb's machinery is not there.
    NotSupported,
}

/// Why a call failed, for the one who made it. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ApiError {
    /// The kind.
    pub kind: ErrorKind,
    /// What is wrong, and what to do.
    pub message: String,
    /// The field of the body that is at fault, as a path such as `cpus.boot_vcpus`.
    pub field: Option<String>,
}

impl ApiError {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), field: None }
    }

    /// The host refused.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The request is wrong.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadRequest, message)
    }
}
