//! What a machine is made of: the configuration, in its command-line and JSON forms.
//!
//! Names follow cloud-hypervisor's public interface. [`VmConfig`] is the whole; each part is one struct declared
//! with `options!` ([`options`]), from which its two forms, its documentation and its range checks come.
//! [`validate`] checks what concerns several settings at once.

pub mod balloon;
pub mod channel;
pub mod compatibility;
pub mod console;
pub mod cpus;
pub mod crash;
pub mod device;
pub mod disk;
pub mod fw_cfg;
pub mod gdb;
pub mod hotplug;
pub mod ivshmem;
pub mod key_value;
pub mod landlock;
pub mod mem;
pub mod memory;
mod names;
pub mod net;
pub mod numa;
pub mod options;
pub mod parts;
pub mod pci_place;
pub mod pci_port;
pub mod platform;
pub mod pmem;
mod port_buses;
pub mod pvpanic;
pub mod rate_limit;
pub mod rng;
pub mod rtc;
#[cfg(test)]
pub(crate) mod schema;
pub mod several;
pub mod validate;
pub mod vsock;
pub mod watchdog;

pub use balloon::BalloonConfig;
pub use channel::{ChannelConfig, ChannelOption};
pub use console::{ConsoleConfig, ConsoleMode, DebugConsoleConfig, SerialConfig, SerialModel};
pub use cpus::{CoreScheduling, CpuAffinity, CpuFeature, CpuTopology, CpusConfig};
pub use crash::{CrashAction, CrashConfig};
pub use device::{Device, DeviceConfig};
pub use disk::DiskConfig;
pub use fw_cfg::FwCfgConfig;
pub use gdb::GdbConfig;
pub use hotplug::HotplugMethod;
pub use ivshmem::IvshmemConfig;
pub use landlock::LandlockConfig;
pub use mem::{MemConfig, Mems};
pub use memory::{MemoryConfig, MemoryZoneConfig};
pub use net::NetConfig;
pub use numa::{NumaConfig, NumaDistance};
pub use options::{ByteSize, Options};
pub use pci_place::PciPlaceConfig;
pub use pci_port::{PciPlace, PciPortConfig, PciPortKind};
pub use platform::{PayloadConfig, PciSegmentConfig, PlatformConfig};
pub use pmem::PmemConfig;
pub use pvpanic::PvpanicConfig;
pub use rate_limit::{RateLimitGroupConfig, RateLimiterConfig, TokenBucketConfig};
pub use rng::RngConfig;
pub use rtc::RtcConfig;
pub use several::Several;
pub use validate::ConfigError;
pub use vsock::VsockConfig;
pub use watchdog::{WatchdogAction, WatchdogConfig, WatchdogModel};

use serde::{Deserialize, Serialize};

/// A whole machine: what `vm.create` takes and the command line says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct VmConfig {
    /// The CPUs.
    #[serde(deserialize_with = "null_is_default")]
    pub cpus: CpusConfig,
    /// The memory.
    #[serde(deserialize_with = "null_is_default")]
    pub memory: MemoryConfig,
    /// What is booted.
    #[serde(deserialize_with = "null_is_default")]
    pub payload: PayloadConfig,
    /// Rate limits that several devices share.
    #[serde(deserialize_with = "null_is_default")]
    pub rate_limit_groups: Vec<RateLimitGroupConfig>,
    /// The disks.
    #[serde(deserialize_with = "null_is_default")]
    pub disks: Vec<DiskConfig>,
    /// The network interfaces.
    #[serde(deserialize_with = "null_is_default")]
    pub net: Vec<NetConfig>,
    /// The sources of entropy.
    #[serde(deserialize_with = "null_is_default")]
    pub rng: Several<RngConfig>,
    /// The real-time clock.
    pub rtc: Option<RtcConfig>,
    /// The devices by which memory comes and goes; if not said, one for each zone that can grow.
    pub mem: Mems,
    /// The memory balloon.
    pub balloon: Option<BalloonConfig>,
    /// The persistent memory.
    #[serde(deserialize_with = "null_is_default")]
    pub pmem: Vec<PmemConfig>,
    /// The memory shared with others.
    #[serde(deserialize_with = "null_is_default")]
    pub ivshmem: Several<IvshmemConfig>,
    /// Sockets between guest and host.
    pub vsock: Option<VsockConfig>,
    /// The serial port.
    #[serde(deserialize_with = "null_is_default")]
    pub serial: SerialConfig,
    /// The virtio consoles.
    #[serde(deserialize_with = "null_is_default")]
    pub console: Several<ConsoleConfig>,
    /// The debug console.
    #[serde(deserialize_with = "null_is_default")]
    pub debug_console: DebugConsoleConfig,
    /// The device by which the guest reports its panics; `true` is one at a place that is free.
    #[serde(with = "pvpanic")]
    #[cfg_attr(test, schemars(with = "pvpanic::Switched"))]
    pub pvpanic: Option<PvpanicConfig>,
    /// What is done when the guest crashes.
    pub on_crash: Option<CrashConfig>,
    /// The watchdogs; `true` is one.
    #[serde(deserialize_with = "null_is_default")]
    pub watchdog: Several<WatchdogConfig>,
    /// The NUMA nodes.
    #[serde(deserialize_with = "null_is_default")]
    pub numa: Vec<NumaConfig>,
    /// Identity and segments.
    #[serde(deserialize_with = "null_is_default")]
    pub platform: PlatformConfig,
    /// What segments weigh when windows are shared out.
    #[serde(deserialize_with = "null_is_default")]
    pub pci_segments: Vec<PciSegmentConfig>,
    /// Whether the machine can reach only the files that are named here.
    #[serde(deserialize_with = "null_is_default")]
    pub landlock_enable: bool,
    /// Further files that it can reach.
    #[serde(deserialize_with = "null_is_default")]
    pub landlock_rules: Vec<LandlockConfig>,
    /// The PCI Express ports.
    #[serde(deserialize_with = "null_is_default")]
    pub pci_ports: Vec<PciPortConfig>,
    /// Where on PCI devices are that are part of the machine.
    #[serde(deserialize_with = "null_is_default")]
    pub pci_places: Vec<PciPlaceConfig>,
}

/// Clients leave out what they do not want, or write `null`.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl VmConfig {
    /// Whether the guest can tell of its panics.
    pub fn hears_panics(&self) -> bool {
        self.pvpanic.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_null_is_as_if_left_out() {
        let config: VmConfig =
            serde_json::from_str(r#"{"disks": null, "cpus": null, "pvpanic": null}"#).unwrap();
        assert_eq!(config, VmConfig::default());
    }
}
