//! Memory that comes and goes while the machine runs: the part of `--memory` and `--memory-zone` that is about it.

use super::memory::MemoryConfig;
use super::options::{ByteSize, Setting};
use super::validate::ConfigError;
use serde::{Deserialize, Serialize};

/// The unit in which a virtio-mem device's memory comes, without huge pages.
pub const BLOCK: u64 = 2 << 20;

/// The unit in which memory modules are added: what Linux on x86_64 can add and take away at the least.
pub const MODULE: u64 = 128 << 20;

/// How memory is added to a running machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum HotplugMethod {
    /// As memory modules, which ACPI tells the guest of.
    #[default]
    #[serde(alias = "acpi")]
    Acpi,
    /// By a virtio-mem device, block by block, and back.
    #[serde(alias = "virtio-mem")]
    VirtioMem,
}

impl Setting for HotplugMethod {
    const HINT: &'static str = "acpi|virtio-mem";
    fn show(&self) -> String {
        match self {
            Self::Acpi => "acpi",
            Self::VirtioMem => "virtio-mem",
        }
        .into()
    }
}

fn error<T>(option: String, reason: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError { option, reason: reason.into() })
}

impl MemoryConfig {
    /// How much memory can be added in modules, in bytes: as many whole ones as there is room for. Managers say how much memory
    /// the host has, whatever that is.
    pub fn modules_size(&self) -> u64 {
        let modules = self.hotplug_method == HotplugMethod::Acpi;
        self.hotplug_size.filter(|_| modules).map_or(0, |size| size.0 / MODULE * MODULE)
    }

    /// The names of the zones to which virtio-mem can add. That of the memory of a machine without zones is empty.
    pub fn growing_zones(&self) -> Vec<&str> {
        let can = |size: Option<ByteSize>| {
            self.hotplug_method == HotplugMethod::VirtioMem && size.is_some_and(|size| size.0 > 0)
        };
        match self.zones.as_deref().unwrap_or_default() {
            [] => can(self.hotplug_size).then_some("").into_iter().collect(),
            zones => {
                zones.iter().filter(|zone| can(zone.hotplug_size)).map(|zone| zone.id.as_str()).collect()
            }
        }
    }

    /// How much is added to a zone, or is to be.
    pub fn hotplugged_size(&self, zone: &str) -> ByteSize {
        let named = self.zones.iter().flatten().find(|named| named.id == zone);
        named.map_or(self.hotplugged_size, |named| named.hotplugged_size).unwrap_or_default()
    }

    /// The option that tells of a zone.
    pub fn option_of(zone: &str) -> String {
        if zone.is_empty() { "--memory".into() } else { format!("--memory-zone id={zone}") }
    }

    /// Checks what is said about adding memory.
    ///
    /// # Errors
    /// The first setting that cannot be.
    pub fn check_hotplug(&self) -> Result<(), ConfigError> {
        let virtio_mem = self.hotplug_method == HotplugMethod::VirtioMem;
        let block = if virtio_mem { block_size(self.hugepages, self.hugepage_size) } else { MODULE };
        let size = if virtio_mem { self.hotplug_size } else { Some(ByteSize(self.modules_size())) };
        check_sizes("--memory", size, self.hotplugged_size, block)?;
        if let Some(size) = self.hotplug_size
            && !virtio_mem
            && self.hugepages
        {
            // The whole region is there for devices from the start, and the host may have no huge page for what a guest
            // without that memory has them write.
            return error(
                format!("--memory hotplug_size={size}"),
                "memory in huge pages comes by virtio-mem; add hotplug_method=virtio-mem",
            );
        }
        if let Some(size) = self.hotplug_size
            && !virtio_mem
            && (1..MODULE).contains(&size.0)
        {
            return error(
                format!("--memory hotplug_size={size}"),
                format!("is less than {}, in which memory is added; give at least that", ByteSize(MODULE)),
            );
        }
        let zones = self.zones.as_deref().unwrap_or_default();
        if let Some(size) = self.hotplug_size
            && !zones.is_empty()
        {
            return error(
                format!("--memory hotplug_size={size}"),
                "all of the memory is in zones; give hotplug_size to a --memory-zone",
            );
        }
        for zone in zones {
            let Some(size) = zone.hotplug_size else {
                check_sizes(&Self::option_of(&zone.id), None, zone.hotplugged_size, BLOCK)?;
                continue;
            };
            let option = format!("{} hotplug_size={size}", Self::option_of(&zone.id));
            if !virtio_mem {
                return error(
                    option,
                    "memory of zones comes by virtio-mem; add --memory hotplug_method=virtio-mem",
                );
            }
            if zone.file.is_some() {
                return error(option, "memory of a file cannot be added to; leave out file or hotplug_size");
            }
            let block = block_size(zone.hugepages, zone.hugepage_size);
            check_sizes(&Self::option_of(&zone.id), zone.hotplug_size, zone.hotplugged_size, block)?;
        }
        Ok(())
    }
}

/// The unit in which memory comes.
fn block_size(hugepages: bool, hugepage_size: Option<ByteSize>) -> u64 {
    match hugepage_size {
        Some(size) if hugepages => size.0.max(BLOCK),
        _ => BLOCK,
    }
}

fn check_sizes(
    option: &str,
    size: Option<ByteSize>,
    at_first: Option<ByteSize>,
    block: u64,
) -> Result<(), ConfigError> {
    let (size, first) = (size.unwrap_or_default(), at_first.unwrap_or_default());
    if first > size {
        return error(
            format!("{option} hotplugged_size={first}"),
            format!("is more than hotplug_size={size}; raise that"),
        );
    }
    for (key, value) in [("hotplug_size", size), ("hotplugged_size", first)] {
        if !value.0.is_multiple_of(block) {
            return error(
                format!("{option} {key}={value}"),
                format!("is not a multiple of {}, in which memory is added", ByteSize(block)),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MemoryZoneConfig, Options};

    fn refused(memory: &str, zones: &[&str]) -> String {
        let mut config = MemoryConfig::parse(memory).unwrap();
        let zones: Vec<_> = zones.iter().map(|zone| MemoryZoneConfig::parse(zone).unwrap()).collect();
        config.zones = (!zones.is_empty()).then_some(zones);
        config.check_hotplug().err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_with_a_remedy() {
        assert_eq!(refused("hotplug_method=virtio-mem,hotplug_size=1G,hotplugged_size=512M", &[]), "");
        assert_eq!(refused("size=0,hotplug_method=virtio-mem", &["id=a,size=1G,hotplug_size=1G"]), "");
        for (memory, zone, expected) in [
            ("hotplugged_size=1G", None, "--memory hotplugged_size=1G: is more than hotplug_size=0; raise"),
            (
                "hotplug_method=virtio-mem,hotplug_size=1G,hotplugged_size=3M",
                None,
                "--memory hotplugged_size=3M: is not a multiple of 2M",
            ),
            (
                "hotplug_size=192M,hotplugged_size=192M",
                None,
                "--memory hotplugged_size=192M: is more than hotplug_size=128M",
            ),
            (
                "hotplug_size=1000",
                None,
                "--memory hotplug_size=1000: is less than 128M, in which memory is added",
            ),
            ("hotplug_size=1G,hugepages=on", None, "--memory hotplug_size=1G: memory in huge pages comes by"),
            ("hotplug_size=1G", Some("id=a"), "--memory hotplug_size=1G: all of the memory is in zones"),
            (
                "",
                Some("id=a,hotplug_size=1G"),
                "--memory-zone id=a hotplug_size=1G: memory of zones comes by",
            ),
            ("", Some("id=a,hotplugged_size=1G"), "--memory-zone id=a hotplugged_size=1G: is more than"),
            (
                "hotplug_method=virtio-mem",
                Some("id=a,hotplug_size=1G,file=/f"),
                "--memory-zone id=a hotplug_size=1G: memory of a file cannot",
            ),
            (
                "hotplug_method=virtio-mem",
                Some("id=a,hotplug_size=3G,hugepages=on,hugepage_size=1G,hotplugged_size=512M"),
                "--memory-zone id=a hotplugged_size=512M: is not a multiple of 1G",
            ),
        ] {
            let reason = refused(memory, zone.as_slice());
            assert!(reason.starts_with(expected), "{memory} {zone:?}: {reason}");
        }
    }

    #[test]
    fn methods_are_named_as_clients_name_them() {
        let json = serde_json::to_value(MemoryConfig::parse("hotplug_method=virtio-mem").unwrap()).unwrap();
        assert_eq!(json["hotplug_method"], "VirtioMem");
        assert_eq!(
            serde_json::from_value::<MemoryConfig>(json).unwrap().hotplug_method,
            HotplugMethod::VirtioMem
        );
        assert_eq!(MemoryConfig::default().hotplug_method, HotplugMethod::Acpi);
    }
}
