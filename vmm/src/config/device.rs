//! Devices that come and go: what all their kinds have in common, and one line for each kind.
//!
//! A kind is declared with `device_options!`, which adds to its own settings a name and a place on PCI, and listed below. The
//! rest of the machine then knows it: it is named, placed, added, found and forgotten like the others. How it is opened is
//! told in the registry of the machine (`machine::registry`).

use super::{
    BalloonConfig, ConfigError, ConsoleConfig, DiskConfig, IvshmemConfig, MemConfig, NetConfig, PciPlace,
    PmemConfig, PvpanicConfig, RngConfig, RtcConfig, VmConfig, VsockConfig, WatchdogConfig,
};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// A device's configuration, whatever its kind.
pub trait Device {
    /// What made-up names begin with, such as `disk`.
    fn kind(&self) -> &'static str;

    /// The name of the first that is given none, if clients know one: `__rng`. No other device can have it.
    fn first_name(&self) -> Option<Cow<'static, str>>;

    /// Its option with what tells it from others, for messages.
    fn option(&self) -> String;

    /// Its name.
    fn id(&self) -> Option<&str>;

    /// Its name, to be given.
    fn id_mut(&mut self) -> &mut Option<String>;

    /// Where on PCI it is to be.
    fn place(&self) -> PciPlace;
}

/// Declares the configuration of a kind of device: as `options!`, with the kind's name and the settings that tell one device
/// from another in messages; `first` says what the first is called that is given no name. A name and a place on PCI are added.
macro_rules! device_options {
    (
        $(#[doc = $doc:literal])*
        pub struct $name:ident is $kind:literal $(first $first:expr,)? told by $($label:ident),+ {
            $($fields:tt)*
        }
    ) => {
        $crate::config::options::options! {
            $(#[doc = $doc])*
            pub struct $name {
                $($fields)*
                /// Name of the device; made up if not given.
                ["id"] id: Option<String> = None,
                /// PCI segment the device is in.
                ["pci_segment", 0..=63] pci_segment: u16 = 0,
                /// The --pci-port the device is below, instead of on a root bus.
                ["bus"] bus: Option<String> = None,
                /// Device number on a root bus; the first that is free if not given.
                ["pci_device_id", 0..=31] pci_device_id: Option<u8> = None,
                /// Function number, for several devices at one device number; one of them must be function 0.
                ["pci_function", 0..=7] pci_function: u8 = 0,
            }
        }

        impl $crate::config::device::Device for $name {
            fn kind(&self) -> &'static str {
                $kind
            }

            fn first_name(&self) -> Option<std::borrow::Cow<'static, str>> {
                $crate::config::device::first_name(self, $crate::config::device::device_options!(@first $($first)?))
            }

            fn option(&self) -> String {
                let labels = [$((stringify!($label), $crate::config::options::Setting::show(&self.$label))),+];
                match labels.into_iter().find(|(_, value)| !value.is_empty()) {
                    Some((key, value)) => format!("--{} {key}={value}", $kind),
                    None => format!("--{}", $kind),
                }
            }

            fn id(&self) -> Option<&str> {
                self.id.as_deref()
            }

            fn id_mut(&mut self) -> &mut Option<String> {
                &mut self.id
            }

            fn place(&self) -> $crate::config::PciPlace {
                $crate::config::PciPlace {
                    segment: self.pci_segment,
                    bus: self.bus.clone(),
                    device: self.pci_device_id,
                    function: self.pci_function,
                }
            }
        }
    };

    (@first $first:expr) => { Some($first) };
    (@first) => { None };
}
pub(crate) use device_options;

/// How the first of a kind is called.
pub(crate) type FirstName<T> = fn(&T) -> Cow<'static, str>;

/// What `name`, if there is one, says of `device`.
pub(crate) fn first_name<T>(device: &T, name: Option<FirstName<T>>) -> Option<Cow<'static, str>> {
    name.map(|name| name(device))
}

/// Where a configuration keeps the devices of a kind.
pub(super) trait Room<T> {
    /// Puts a device there, if there is room.
    fn put(&mut self, device: T) -> bool;
    /// Forgets those that are not to be kept.
    fn keep(&mut self, wanted: impl Fn(&T) -> bool);
}

impl<T> Room<T> for Vec<T> {
    fn put(&mut self, device: T) -> bool {
        self.push(device);
        true
    }
    fn keep(&mut self, wanted: impl Fn(&T) -> bool) {
        self.retain(wanted);
    }
}

/// A machine has at most one of this kind.
impl<T> Room<T> for Option<T> {
    fn put(&mut self, device: T) -> bool {
        let free = self.is_none();
        if free {
            *self = Some(device);
        }
        free
    }
    fn keep(&mut self, wanted: impl Fn(&T) -> bool) {
        self.take_if(|device| !wanted(device));
    }
}

macro_rules! device_kinds {
    ($($(#[doc = $doc:literal])* $kind:ident($config:ty) in $field:ident,)+) => {
        /// A device that comes or goes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum DeviceConfig {
            $($(#[doc = $doc])* $kind(Box<$config>),)+
        }

        $(impl From<$config> for DeviceConfig {
            fn from(config: $config) -> Self {
                Self::$kind(Box::new(config))
            }
        })+

        impl DeviceConfig {
            /// What all kinds have in common.
            pub fn common(&self) -> &dyn Device {
                match self {
                    $(Self::$kind(config) => &**config,)+
                }
            }
        }

        impl VmConfig {
            /// The devices that can be added and removed.
            pub fn devices(&self) -> impl Iterator<Item = &dyn Device> {
                let devices: Vec<&dyn Device> = Vec::new().into_iter()
                    $(.chain(self.$field.iter().map(|device| device as &dyn Device)))+
                    .collect();
                devices.into_iter()
            }

            /// The same, each by its kind: in the order in which a guest finds them.
            pub fn device_configs(&self) -> Vec<DeviceConfig> {
                Vec::new().into_iter()
                    $(.chain(self.$field.iter().cloned().map(DeviceConfig::from)))+
                    .collect()
            }

            fn devices_mut(&mut self) -> Vec<&mut dyn Device> {
                Vec::new().into_iter()
                    $(.chain(self.$field.iter_mut().map(|device| device as &mut dyn Device)))+
                    .collect()
            }

            /// Puts a device in.
            ///
            /// # Errors
            /// When there can be only one of its kind, and there is one.
            pub fn put_device(&mut self, device: DeviceConfig) -> Result<(), ConfigError> {
                let option = device.common().option();
                let put = match device {
                    $(DeviceConfig::$kind(config) => self.$field.put(*config),)+
                };
                if put {
                    return Ok(());
                }
                Err(ConfigError { option, reason: "the machine has one already, and there is only one".into() })
            }

            /// The device that was put in last of the kind of `like`.
            pub fn last_like(&self, like: &DeviceConfig) -> Option<DeviceConfig> {
                match like {
                    $(DeviceConfig::$kind(_) => self.$field.iter().last().cloned().map(DeviceConfig::from),)+
                }
            }

            /// Forgets the device or port of that id, and where it was told to be; with an upstream port, its switch.
            pub fn forget_device(&mut self, id: &str) {
                self.forget_panics(id);
                $(self.$field.keep(|device| device.id.as_deref() != Some(id));)+
                self.forget_ports(id);
                self.pci_places.retain(|place| place.id != id);
            }
        }
    };
}

device_kinds! {
    /// A console, with channels.
    Console(ConsoleConfig) in console,
    /// A disk.
    Disk(DiskConfig) in disks,
    /// A network interface.
    Net(NetConfig) in net,
    /// A source of entropy.
    Rng(RngConfig) in rng,
    /// Sockets between guest and host.
    Vsock(VsockConfig) in vsock,
    /// A real-time clock.
    Rtc(RtcConfig) in rtc,
    /// Memory shared with others.
    Ivshmem(IvshmemConfig) in ivshmem,
    /// What memory comes and goes by.
    Mem(MemConfig) in mem,
    /// A memory balloon.
    Balloon(BalloonConfig) in balloon,
    /// A watchdog.
    Watchdog(WatchdogConfig) in watchdog,
    /// What the guest reports its panics by.
    Pvpanic(PvpanicConfig) in pvpanic,
    /// Persistent memory.
    Pmem(PmemConfig) in pmem,
}

impl VmConfig {
    /// Whether the device of that id is there for the guest's own ends, so that it may do without: no watchdog and nothing that a machine
    /// has in any case is.
    pub fn is_for_guest(&self, id: &str) -> bool {
        let kinds = ["disk", "net", "pmem", "vsock", "rtc"];
        self.devices().any(|device| device.id() == Some(id) && kinds.contains(&device.kind()))
    }

    /// Gives each device that has no id one that no other device has.
    pub fn name_devices(&mut self) {
        super::watchdog::part(&mut self.watchdog);
        self.mem.say(&self.memory);
        if self.on_crash.as_ref().is_some_and(|crash| crash.pvpanic) {
            self.pvpanic.get_or_insert_with(PvpanicConfig::usual);
        }
        let mut taken: BTreeSet<String> =
            self.devices().filter_map(|device| device.id().map(str::to_owned)).collect();
        let mut next = (0, "");
        for device in self.devices_mut() {
            if next.1 != device.kind() {
                next = (0, device.kind());
            }
            if device.id().is_none()
                && let Some(first) = device.first_name()
                && taken.insert(first.clone().into_owned())
            {
                *device.id_mut() = Some(first.into_owned());
            }
            while device.id().is_none() {
                let id = format!("_{}{}", next.1, next.0);
                next.0 += 1;
                if !taken.contains(&id) {
                    *device.id_mut() = Some(id);
                }
            }
        }
    }

    /// If the device of that id is the one by which panics are told: none takes its place.
    fn forget_panics(&mut self, id: &str) {
        if let (Some(pvpanic), Some(crash)) = (&self.pvpanic, &mut self.on_crash)
            && pvpanic.id.as_deref() == Some(id)
        {
            crash.pvpanic = false;
        }
    }

    /// Whether a device of that id was configured.
    pub fn has_device(&self, id: &str) -> bool {
        self.devices().any(|device| device.id() == Some(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_without_ids_get_ones_that_nobody_has() {
        let disk = |id: Option<&str>| DiskConfig { id: id.map(Into::into), ..DiskConfig::default() };
        let disks = vec![disk(None), disk(Some("_disk1")), disk(None)];
        let mut config = VmConfig { disks, vsock: Some(VsockConfig::default()), ..VmConfig::default() };
        config.name_devices();
        let ids: Vec<_> = config.devices().map(|device| device.id().unwrap().to_owned()).collect();
        assert_eq!(ids, ["_disk0", "_disk1", "_disk2", "__rng", "_vsock0"]);
        config.forget_device("_disk0");
        assert!(!config.has_device("_disk0") && config.has_device("_disk2"));
        let vsock = DeviceConfig::from(VsockConfig::default());
        assert!(config.put_device(vsock.clone()).unwrap_err().to_string().starts_with("--vsock"));
        config.forget_device("_vsock0");
        config.put_device(vsock).unwrap();
    }

    #[test]
    fn the_first_of_a_kind_has_the_name_that_clients_know_while_nobody_has_it() {
        let mut config = VmConfig::default();
        let ids =
            |config: &VmConfig| config.rng.iter().map(|rng| rng.id.clone().unwrap()).collect::<Vec<_>>();
        for _ in 0..2 {
            config.put_device(RngConfig::default().into()).unwrap();
        }
        config.name_devices();
        assert_eq!(ids(&config), ["__rng", "_rng0", "_rng1"]);
        config.forget_device("__rng");
        config.put_device(RngConfig::default().into()).unwrap();
        config.name_devices();
        assert_eq!(ids(&config), ["_rng0", "_rng1", "__rng"]);
        config.validate().unwrap();
        config.disks.push(DiskConfig { id: Some("__rng".into()), ..DiskConfig::default() });
        assert!(config.validate().unwrap_err().to_string().contains("--disk id=__rng: a device's name"));
    }

    #[test]
    fn messages_name_a_device_by_what_was_said_of_it() {
        let option = |net: NetConfig| DeviceConfig::from(net).common().option();
        let mac = Some("12:34:56:78:9a:bc".to_owned());
        assert_eq!(option(NetConfig::default()), "--net");
        assert_eq!(
            option(NetConfig { mac: mac.clone(), ..NetConfig::default() }),
            "--net mac=12:34:56:78:9a:bc"
        );
        assert_eq!(option(NetConfig { mac, tap: Some("t".into()), ..NetConfig::default() }), "--net tap=t");
    }
}
