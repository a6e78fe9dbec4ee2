//! `--pci-port`, and where on PCI a device is.

use super::options::{Setting, options};
use super::validate::ConfigError;
use super::{ByteSize, VmConfig};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

options! {
    /// A PCI Express port: a root port, or a port of a switch. Devices name it with `bus=<id>`.
    pub struct PciPortConfig {
        /// Name of the port.
        ["id"] id: String = String::new(),
        /// Of the root complex, or of a switch: towards the root complex or away from it.
        ["kind"] kind: PciPortKind = PciPortKind::Root,
        /// The port that this one is below: for an upstream port a root or downstream port, for a downstream port an
        /// upstream one.
        ["bus"] bus: Option<String> = None,
        /// PCI segment of a root port.
        ["pci_segment", 0..=63] pci_segment: u16 = 0,
        /// Device number; the first that is free if not given.
        ["pci_device_id", 0..=31] pci_device_id: Option<u8> = None,
        /// Function number.
        ["pci_function", 0..=7] pci_function: u8 = 0,
        /// Devices can be plugged in and out while the guest runs. Not for an upstream port.
        ["hotplug"] hotplug: bool = true,
        /// Memory below 4 GiB kept for devices that are plugged in later.
        ["mem_reserve"] mem_reserve: Option<ByteSize> = None,
        /// Prefetchable memory, where the large BARs of graphics cards are, kept for devices that are plugged in later.
        ["pref_reserve"] pref_reserve: Option<ByteSize> = None,
        /// I/O ports kept for devices that are plugged in later; without any, I/O does not pass the port.
        ["io_reserve"] io_reserve: ByteSize = ByteSize(0),
        /// Bus numbers kept below the port, besides those of ports that are there.
        ["bus_reserve", 0..=254] bus_reserve: u8 = 0,
    }
}

/// What a port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum PciPortKind {
    /// Of the root complex.
    #[default]
    Root,
    /// Of a switch, towards the root complex.
    Upstream,
    /// Of a switch, away from the root complex.
    Downstream,
}

impl Setting for PciPortKind {
    const HINT: &'static str = "root|upstream|downstream";
    fn show(&self) -> String {
        match self {
            Self::Root => "root",
            Self::Upstream => "upstream",
            Self::Downstream => "downstream",
        }
        .into()
    }
}

/// Where on PCI a device is to be. What is not said is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciPlace {
    /// The segment, if it is on a root bus.
    pub segment: u16,
    /// The port it is below.
    pub bus: Option<String>,
    /// The device number.
    pub device: Option<u8>,
    /// The function number.
    pub function: u8,
}

impl From<u16> for PciPlace {
    /// Anywhere on the root bus of a segment.
    fn from(segment: u16) -> Self {
        Self { segment, ..Self::default() }
    }
}

impl PciPortConfig {
    /// Where the port is to be.
    pub fn place(&self) -> PciPlace {
        PciPlace {
            segment: self.pci_segment,
            bus: self.bus.clone(),
            device: self.pci_device_id,
            function: self.pci_function,
        }
    }
}

/// Of a port, for messages.
fn option_of(id: &str) -> String {
    format!("--pci-port id={id}")
}

impl VmConfig {
    /// The port of that id.
    pub fn port(&self, id: &str) -> Option<&PciPortConfig> {
        self.pci_ports.iter().find(|port| port.id == id)
    }

    /// Puts a port in, and with an upstream port the downstream ports of its switch, whose kind and bus need not be said. Returns them
    /// as they are put in.
    ///
    /// # Errors
    /// When it is no root port, nor a whole switch. The configuration is not checked otherwise.
    pub fn put_ports(
        &mut self,
        port: PciPortConfig,
        below: Vec<PciPortConfig>,
    ) -> Result<Vec<PciPortConfig>, ConfigError> {
        let fail = |id: &str, reason: String| Err(ConfigError { option: option_of(id), reason });
        let id = port.id.clone();
        match port.kind {
            PciPortKind::Downstream => {
                return fail(&id, "a downstream port comes with its switch; add the upstream port, with this among its ports".into());
            }
            PciPortKind::Upstream if below.is_empty() => {
                return fail(&id, "a switch comes whole; give its downstream ports too, as ports, or as --port id=<name> of vivarium ctl".into());
            }
            PciPortKind::Root if !below.is_empty() => {
                return fail(
                    &id,
                    "has ports, and is a root port; only an upstream port has downstream ports".into(),
                );
            }
            PciPortKind::Root | PciPortKind::Upstream => {}
        }
        let mut added = vec![port];
        for mut port in below {
            if port.kind == PciPortKind::Upstream || port.bus.as_ref().is_some_and(|bus| *bus != id) {
                return fail(&port.id, format!("is to be a downstream port of {id}; leave kind and bus out"));
            }
            port.kind = PciPortKind::Downstream;
            port.bus = Some(id.clone());
            added.push(port);
        }
        self.pci_ports.extend(added.iter().cloned());
        Ok(added)
    }

    /// The names of what is below the port of that id, or is told to be, at any depth; a device without a name by its option. The
    /// downstream ports of an upstream port are part of it.
    pub fn below_port(&self, id: &str) -> Vec<String> {
        let mut buses = vec![id];
        // A port is named after those above it.
        for port in &self.pci_ports {
            if port.bus.as_deref().is_some_and(|bus| buses.contains(&bus)) {
                buses.push(&port.id);
            }
        }
        let below = |bus: &Option<String>| bus.as_deref().is_some_and(|bus| buses.contains(&bus));
        let own =
            |port: &PciPortConfig| port.kind == PciPortKind::Downstream && port.bus.as_deref() == Some(id);
        let ports = self.pci_ports.iter().filter(|port| below(&port.bus) && !own(port));
        let devices = self.devices().filter(|device| below(&device.place().bus));
        let places = self.pci_places.iter().filter(|place| below(&place.bus));
        let names = ports.map(|port| port.id.clone());
        let names =
            names.chain(devices.map(|device| device.id().map_or_else(|| device.option(), str::to_owned)));
        names.chain(places.map(|place| place.id.clone())).collect()
    }

    /// Checks that the port of that id, if it is one, can go: it is no part of a switch that stays, and nothing is below it.
    ///
    /// # Errors
    /// What is in the way, in words, and what to do about it.
    pub fn check_port_goes(&self, id: &str) -> Result<(), String> {
        let Some(port) = self.port(id) else { return Ok(()) };
        if let (PciPortKind::Downstream, Some(bus)) = (port.kind, &port.bus) {
            return Err(format!("is part of a switch, and goes with it; remove {bus}, its upstream port"));
        }
        let below = self.below_port(id);
        if below.is_empty() {
            return Ok(());
        }
        Err(format!("has {} below it; remove that first", below.join(", ")))
    }

    /// Forgets the port of that id, and its switch if it is an upstream port.
    pub(super) fn forget_ports(&mut self, id: &str) {
        let part = |port: &PciPortConfig| {
            port.id == id || port.kind == PciPortKind::Downstream && port.bus.as_deref() == Some(id)
        };
        self.pci_ports.retain(|port| !part(port));
    }

    /// Where each device and port was told to be, with the option to name in messages.
    pub fn placed(&self) -> impl Iterator<Item = (String, PciPlace)> {
        let ports = self.pci_ports.iter().map(|port| (option_of(&port.id), port.place()));
        let devices = self.devices().map(|device| (device.option(), device.place()));
        let others =
            self.pci_places.iter().map(|place| (format!("--pci-place id={}", place.id), place.place()));
        ports.chain(devices).chain(others)
    }

    /// Checks ports, and that no two devices are told to be in one place.
    pub(super) fn validate_pci_ports(&self) -> Result<(), ConfigError> {
        let fail = |option: &str, reason: String| Err(ConfigError { option: option.to_owned(), reason });
        let mut kinds = BTreeMap::new();
        for port in &self.pci_ports {
            let option = option_of(&port.id);
            if port.id.is_empty() || port.id.starts_with('_') {
                return fail(
                    "--pci-port",
                    "needs an id that does not start with \"_\"; add id=<name>".into(),
                );
            }
            self.check_segment(&option, port.pci_segment)?;
            let above = match &port.bus {
                None => None,
                Some(bus) => match kinds.get(bus.as_str()) {
                    Some(kind) => Some((bus, *kind)),
                    None => {
                        return fail(
                            &option,
                            format!("bus={bus}: there is no --pci-port of that id before it"),
                        );
                    }
                },
            };
            match (port.kind, above) {
                (PciPortKind::Root, None)
                | (PciPortKind::Upstream, Some((_, PciPortKind::Root | PciPortKind::Downstream)))
                | (PciPortKind::Downstream, Some((_, PciPortKind::Upstream))) => {}
                (PciPortKind::Root, Some(_)) => {
                    return fail(&option, "a root port is on the root bus; leave bus out".into());
                }
                (PciPortKind::Upstream, _) => {
                    return fail(
                        &option,
                        "an upstream port is below a root or downstream port; give its id as bus".into(),
                    );
                }
                (PciPortKind::Downstream, _) => {
                    return fail(
                        &option,
                        "a downstream port is below an upstream port; give its id as bus".into(),
                    );
                }
            }
            if kinds.insert(port.id.as_str(), port.kind).is_some() {
                return fail(&option, "is given twice; ports need different names".into());
            }
            if self.has_device(&port.id) {
                return fail(&option, "is the name of a device too; names must differ".into());
            }
        }
        self.port_buses()?;
        if let Some(place) = self.pci_places.iter().find(|place| !place.id.starts_with("__")) {
            return fail(
                &format!("--pci-place id={}", place.id),
                "is no device that is part of the machine; their names start with \"__\", and others have bus and pci_device_id"
                    .into(),
            );
        }
        if let Some(id) = super::validate::twice(self.pci_places.iter().map(|place| &place.id)) {
            return fail(&format!("--pci-place id={id}"), "is given twice".into());
        }
        let twice = self.pci_places.iter().find(|place| {
            let own =
                self.devices().find(|device| device.id() == Some(&place.id)).map(|device| device.place());
            own.is_some_and(|own| own != PciPlace::default())
        });
        if let Some(place) = twice {
            return fail(
                &format!("--pci-place id={}", place.id),
                "the device has bus or pci_device_id of its own; leave this out".into(),
            );
        }
        let mut taken = BTreeSet::new();
        for (option, place) in self.placed() {
            self.check_segment(&option, place.segment)?;
            let downward = match place.bus.as_deref().map(|bus| (bus, kinds.get(bus))) {
                Some((bus, None)) => {
                    return fail(
                        &option,
                        format!("bus={bus}: there is no such port; add --pci-port id={bus}"),
                    );
                }
                Some((bus, Some(PciPortKind::Upstream))) if !option.starts_with("--pci-port") => {
                    return fail(
                        &option,
                        format!("bus={bus}: is an upstream port; name one of the downstream ports below it"),
                    );
                }
                Some((_, Some(kind))) => *kind != PciPortKind::Upstream,
                None => false,
            };
            if downward && place.device.is_some_and(|device| device != 0) {
                return fail(&option, "pci_device_id: below a port there is device 0 alone".into());
            }
            if place.bus.is_none() && place.device == Some(0) {
                return fail(&option, "pci_device_id: 0 is the host bridge's; give 1 to 31".into());
            }
            let device = if downward { Some(0) } else { place.device };
            let Some(device) = device else {
                if place.function != 0 {
                    return fail(&option, "pci_function: give pci_device_id too".into());
                }
                continue;
            };
            let segment = if place.bus.is_some() { 0 } else { place.segment };
            if !taken.insert((segment, place.bus.clone(), device, place.function)) {
                return fail(
                    &option,
                    "another device is told to be at the same place; change pci_function, pci_device_id or bus".into(),
                );
            }
        }
        Ok(())
    }

    /// Checks that there is a function 0 wherever there are others: a guest looks for those only where it finds that.
    pub(super) fn validate_functions(&self) -> Result<(), ConfigError> {
        // Below a port that is no upstream port there is device 0 alone.
        let upstream = |bus: &str| {
            self.pci_ports.iter().any(|port| port.id == bus && port.kind == PciPortKind::Upstream)
        };
        let device_of = |place: &PciPlace| match &place.bus {
            Some(bus) => (0, Some(bus.clone()), if upstream(bus) { place.device } else { Some(0) }),
            None => (place.segment, None, place.device),
        };
        let first = self.placed().filter(|(_, place)| place.function == 0);
        let first: BTreeSet<_> = first.map(|(_, place)| device_of(&place)).collect();
        let stray =
            self.placed().find(|(_, place)| place.function != 0 && !first.contains(&device_of(place)));
        stray.map_or(Ok(()), |(option, place)| {
            let at = match (&place.bus, place.device) {
                (Some(bus), None) => format!("bus={bus}"),
                (Some(bus), Some(device)) => format!("bus={bus} and pci_device_id={device}"),
                (None, device) => format!("pci_device_id={}", device.unwrap_or_default()),
            };
            Err(ConfigError {
                option: format!("{option} pci_function={}", place.function),
                reason: format!(
                    "there is no function 0 at {at}, without which a guest does not find the others; give pci_function=0 to one of them"
                ),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskConfig, PciPlaceConfig};

    fn port(id: &str, kind: PciPortKind, bus: Option<&str>) -> PciPortConfig {
        PciPortConfig { id: id.into(), kind, bus: bus.map(str::to_owned), ..PciPortConfig::default() }
    }

    fn names(config: &VmConfig) -> Vec<&str> {
        config.pci_ports.iter().map(|port| port.id.as_str()).collect()
    }

    #[test]
    fn a_switch_comes_whole_and_goes_whole() {
        use PciPortKind::{Downstream, Root, Upstream};
        let mut config = VmConfig { pci_ports: vec![port("rp0", Root, None)], ..VmConfig::default() };
        let refused = |port: PciPortConfig, below: &[PciPortConfig], reason: &str| {
            let error = config.clone().put_ports(port, below.to_vec()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        };
        let [dp0, up0] = [port("dp0", Root, None), port("up0", Upstream, Some("rp0"))];
        refused(up0.clone(), &[], "--pci-port id=up0: a switch comes whole");
        refused(port("dp0", Downstream, Some("up0")), &[], "comes with its switch");
        refused(
            port("rp1", Root, None),
            std::slice::from_ref(&dp0),
            "only an upstream port has downstream ports",
        );
        refused(up0.clone(), &[port("dp0", Upstream, None)], "id=dp0: is to be a downstream port of up0");
        refused(up0.clone(), &[port("dp0", Downstream, Some("rp0"))], "leave kind and bus out");
        let added = config.put_ports(up0, vec![dp0, port("dp1", Downstream, Some("up0"))]).unwrap();
        assert_eq!(added[1], port("dp0", Downstream, Some("up0")));
        config.validate_pci_ports().unwrap();
        assert_eq!(config.check_port_goes("up0"), Ok(()));
        assert_eq!(config.check_port_goes("nothing"), Ok(()));
        assert!(config.check_port_goes("dp1").unwrap_err().contains("remove up0"));
        let reason = config.check_port_goes("rp0").unwrap_err();
        assert_eq!(reason, "has up0, dp0, dp1 below it; remove that first");
        config.disks.push(DiskConfig {
            id: Some("data".into()),
            bus: Some("dp1".into()),
            ..DiskConfig::default()
        });
        config.pci_places.push(PciPlaceConfig {
            id: "__rng".into(),
            bus: Some("dp0".into()),
            ..PciPlaceConfig::default()
        });
        assert_eq!(config.check_port_goes("up0").unwrap_err(), "has data, __rng below it; remove that first");
        config.forget_device("data");
        config.forget_device("__rng");
        config.forget_device("up0");
        assert_eq!(names(&config), ["rp0"]);
        config.forget_device("rp0");
        assert!(names(&config).is_empty());
    }

    #[test]
    fn no_port_has_the_name_of_a_device() {
        let mut config =
            VmConfig { pci_ports: vec![port("data", PciPortKind::Root, None)], ..VmConfig::default() };
        config.disks.push(DiskConfig { id: Some("data".into()), ..DiskConfig::default() });
        let error = config.validate_pci_ports().unwrap_err().to_string();
        assert!(error.contains("--pci-port id=data: is the name of a device too"), "{error}");
    }
}
