//! The names of devices, ports, zones and groups: one rule for all of them.

use super::{ConfigError, VmConfig};

/// Bytes of the longest name.
const LONGEST: usize = 128;
/// How much of a name that cannot be is shown.
const SHOWN: usize = 40;

impl VmConfig {
    /// Checks that every name can be one: it is part of paths of `vm.inspect`, labels of metrics, and lines of tables.
    pub(super) fn validate_names(&self) -> Result<(), ConfigError> {
        let devices = self.devices().filter_map(|device| Some((device.kind(), device.id()?)));
        let zones = self.memory.zones.iter().flatten().map(|zone| ("memory-zone", zone.id.as_str()));
        let groups = self.rate_limit_groups.iter().map(|group| ("rate-limit-group", group.id.as_str()));
        let ports = self.pci_ports.iter().map(|port| ("pci-port", port.id.as_str()));
        let places = self.pci_places.iter().map(|place| ("pci-place", place.id.as_str()));
        let mut names = devices.chain(zones).chain(groups).chain(ports).chain(places);
        // Those that have none are told so elsewhere.
        match names.find(|(_, name)| !name.is_empty() && !can_be(name)) {
            None => Ok(()),
            Some((kind, name)) => Err(ConfigError {
                option: format!("--{kind} id={}", shown(name)),
                reason: format!(
                    "a name has up to {LONGEST} letters of ASCII, digits and other signs, but no blanks and no slash; choose another"
                ),
            }),
        }
    }
}

fn can_be(name: &str) -> bool {
    // A device of a zone is named after it, and no longer for that.
    let name = name.strip_prefix("__mem_").unwrap_or(name);
    name.len() <= LONGEST && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// A name in one line that is not too long, whatever is in it.
fn shown(name: &str) -> String {
    let start: String = name.chars().take(SHOWN).collect();
    let more = if start.len() < name.len() { "..." } else { "" };
    format!("{}{more}", start.escape_debug())
}

#[cfg(test)]
mod tests {
    use crate::config::{
        DiskConfig, MemoryZoneConfig, PciPlaceConfig, PciPortConfig, RateLimitGroupConfig, VmConfig,
    };

    #[test]
    fn names_that_would_forge_tables_and_paths_are_refused() {
        let long = "x".repeat(5000);
        for (name, shown) in [
            ("a\nb", r"a\nb"),
            ("a/b", "a/b"),
            ("a b", "a b"),
            ("a\x1b[2J", r"a\u{1b}[2J"),
            ("\u{202e}a", r"\u{202e}a"),
            ("n\u{e4}me", "n\u{e4}me"),
            (&long, &format!("{}...", &long[..40])),
        ] {
            let name = || name.to_owned();
            let mut configs = [(); 5].map(|()| VmConfig::default());
            configs[0].disks.push(DiskConfig { id: Some(name()), ..DiskConfig::default() });
            configs[1].pci_ports.push(PciPortConfig { id: name(), ..PciPortConfig::default() });
            configs[2].rate_limit_groups.push(RateLimitGroupConfig { id: name(), ..Default::default() });
            configs[3].memory.zones = Some(vec![MemoryZoneConfig { id: name(), ..Default::default() }]);
            configs[4].pci_places.push(PciPlaceConfig { id: name(), ..PciPlaceConfig::default() });
            for (config, kind) in
                configs.iter().zip(["disk", "pci-port", "rate-limit-group", "memory-zone", "pci-place"])
            {
                let refusal = config.validate().unwrap_err().to_string();
                let expected = format!("--{kind} id={shown}: a name has up to 128 letters");
                assert!(refusal.starts_with(&expected), "{refusal}");
            }
        }
        let longest = "y".repeat(128);
        for name in ["_disk0", "__rng", "disk-1.a:b@c", &longest, &format!("__mem_{longest}")] {
            let disks = vec![DiskConfig { id: Some(name.into()), ..DiskConfig::default() }];
            VmConfig { disks, ..VmConfig::default() }.validate_names().unwrap();
        }
    }
}
