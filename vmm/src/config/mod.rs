//! What a machine is made of: the configuration, in its command-line and JSON forms.
//!
//! Names follow cloud-hypervisor's public interface. [`VmConfig`] is the whole; each part is one struct declared
//! with `options!` ([`options`]), from which its two forms, its documentation and its range checks come.
//! [`validate`] checks what concerns several settings at once.

pub mod balloon;
pub mod console;
pub mod cpus;
pub mod disk;
pub mod fw_cfg;
pub mod gdb;
pub mod hotplug;
pub mod key_value;
pub mod landlock;
pub mod memory;
pub mod net;
pub mod numa;
pub mod options;
pub mod parts;
pub mod pci_port;
pub mod platform;
pub mod pmem;
pub mod rate_limit;
#[cfg(test)]
pub(crate) mod schema;
pub mod validate;
pub mod vsock;
pub mod watchdog;

pub use balloon::BalloonConfig;
pub use console::{ConsoleConfig, ConsoleMode, DebugConsoleConfig};
pub use cpus::{CoreScheduling, CpuAffinity, CpuTopology, CpusConfig};
pub use disk::DiskConfig;
pub use fw_cfg::FwCfgConfig;
pub use gdb::GdbConfig;
pub use hotplug::HotplugMethod;
pub use landlock::LandlockConfig;
pub use memory::{MemoryConfig, MemoryZoneConfig};
pub use net::NetConfig;
pub use numa::{NumaConfig, NumaDistance};
pub use options::{ByteSize, Options};
pub use pci_port::{PciPlace, PciPortConfig, PciPortKind};
pub use platform::{PayloadConfig, PciSegmentConfig, PlatformConfig, RngConfig};
pub use pmem::PmemConfig;
pub use rate_limit::{RateLimitGroupConfig, RateLimiterConfig, TokenBucketConfig};
pub use validate::ConfigError;
pub use vsock::VsockConfig;
pub use watchdog::{WatchdogAction, WatchdogConfig};

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
    /// The entropy source.
    #[serde(deserialize_with = "null_is_default")]
    pub rng: RngConfig,
    /// The memory balloon.
    pub balloon: Option<BalloonConfig>,
    /// The persistent memory.
    #[serde(deserialize_with = "null_is_default")]
    pub pmem: Vec<PmemConfig>,
    /// Sockets between guest and host.
    pub vsock: Option<VsockConfig>,
    /// The serial port.
    #[serde(deserialize_with = "null_is_default")]
    pub serial: ConsoleConfig,
    /// The virtio console.
    #[serde(deserialize_with = "null_is_default")]
    pub console: ConsoleConfig,
    /// The debug console.
    #[serde(deserialize_with = "null_is_default")]
    pub debug_console: DebugConsoleConfig,
    /// Whether there is a pvpanic device.
    #[serde(deserialize_with = "null_is_default")]
    pub pvpanic: bool,
    /// Whether there is a watchdog.
    #[serde(deserialize_with = "null_is_default")]
    pub watchdog: bool,
    /// What it does to a guest that hangs.
    pub watchdog_action: WatchdogAction,
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
    /// Gives each device that has no id one that no other device has.
    pub fn name_devices(&mut self) {
        let taken: std::collections::BTreeSet<String> = self.device_ids().map(str::to_owned).collect();
        let name = |kind: &str, next: &mut usize| loop {
            let id = format!("_{kind}{next}");
            *next += 1;
            if !taken.contains(&id) {
                return id;
            }
        };
        let mut next = 0;
        for disk in &mut self.disks {
            disk.id.get_or_insert_with(|| name("disk", &mut next));
        }
        next = 0;
        for net in &mut self.net {
            net.id.get_or_insert_with(|| name("net", &mut next));
        }
        next = 0;
        for pmem in &mut self.pmem {
            pmem.id.get_or_insert_with(|| name("pmem", &mut next));
        }
        next = 0;
        if let Some(vsock) = &mut self.vsock {
            vsock.id.get_or_insert_with(|| name("vsock", &mut next));
        }
    }

    /// The ids of the devices that can be added and removed.
    fn device_ids(&self) -> impl Iterator<Item = &str> {
        let disks = self.disks.iter().filter_map(|disk| disk.id.as_deref());
        let net = self.net.iter().filter_map(|net| net.id.as_deref());
        let pmem = self.pmem.iter().filter_map(|pmem| pmem.id.as_deref());
        disks.chain(net).chain(pmem).chain(self.vsock.iter().filter_map(|vsock| vsock.id.as_deref()))
    }

    /// Whether a device of that id was configured.
    pub fn has_device(&self, id: &str) -> bool {
        self.device_ids().any(|other| other == id)
    }

    /// Forgets the device of that id.
    pub fn forget_device(&mut self, id: &str) {
        self.disks.retain(|disk| disk.id.as_deref() != Some(id));
        self.net.retain(|net| net.id.as_deref() != Some(id));
        self.pmem.retain(|pmem| pmem.id.as_deref() != Some(id));
        self.vsock.take_if(|vsock| vsock.id.as_deref() == Some(id));
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

    #[test]
    fn devices_without_ids_get_ones_that_nobody_has() {
        let disk = |id: Option<&str>| DiskConfig { id: id.map(Into::into), ..DiskConfig::default() };
        let disks = vec![disk(None), disk(Some("_disk1")), disk(None)];
        let mut config = VmConfig { disks, ..VmConfig::default() };
        config.name_devices();
        let ids: Vec<_> = config.disks.iter().map(|disk| disk.id.as_deref().unwrap()).collect();
        assert_eq!(ids, ["_disk0", "_disk1", "_disk2"]);
        config.forget_device("_disk0");
        config.disks.push(disk(None));
        config.name_devices();
        assert!(config.has_device("_disk0"), "a name that is free is used again");
    }
}
