//! Every part of a machine's configuration, one after the other, whatever its type: for what concerns all settings alike.

use super::options::{Field, Options};
use super::{ConfigError, VmConfig};
use serde_json::Value;
use std::path::PathBuf;

/// A part of a configuration: what one option on the command line says.
pub trait Part {
    /// Checks every number against its range.
    ///
    /// # Errors
    /// Names the key, the value and the range.
    fn check_ranges(&self) -> Result<(), super::key_value::Error>;

    /// Its keys.
    fn fields(&self) -> &'static [Field];

    /// Its JSON form.
    fn json(&self) -> Value;
}

impl<T: Options> Part for T {
    fn check_ranges(&self) -> Result<(), super::key_value::Error> {
        Options::check_ranges(self)
    }

    fn fields(&self) -> &'static [Field] {
        T::FIELDS
    }

    fn json(&self) -> Value {
        // What has no JSON form has no settings either.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Options whose files are written to by the guest, and made for it.
const CONSOLES: [&str; 3] = ["--serial", "--console", "--debug-console"];

/// A file that a configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// The option and the key, as in `--disk path`.
    pub option: String,
    /// The path.
    pub path: PathBuf,
    /// It is made, as a socket, not opened.
    pub socket: bool,
    /// It is only read.
    pub read_only: bool,
    /// It is made if it is not there; what only is read or changed has to be there.
    pub made: bool,
    /// It is made where nothing is, and may be taken away again: sockets and core dumps.
    pub anew: bool,
}

impl VmConfig {
    /// All parts that there are, with their options.
    pub fn parts(&self) -> Vec<(&'static str, &dyn Part)> {
        fn all<'a, T: Options + 'a>(
            option: &'static str,
            parts: impl IntoIterator<Item = &'a T>,
        ) -> impl Iterator<Item = (&'static str, &'a dyn Part)> {
            parts.into_iter().map(move |part| (option, part as &dyn Part))
        }
        let mut parts: Vec<(&'static str, &dyn Part)> = vec![
            ("--cpus", &self.cpus),
            ("--memory", &self.memory),
            ("--serial", &self.serial),
            ("--debug-console", &self.debug_console),
            ("--platform", &self.platform),
        ];
        parts.extend(all("--fw-cfg-config", &self.payload.fw_cfg_config));
        parts.extend(all("--memory-zone", self.memory.zones.iter().flatten()));
        parts.extend(all("--rate-limit-group", &self.rate_limit_groups));
        parts.extend(all("--disk", &self.disks));
        parts.extend(all("--rng", &self.rng));
        parts.extend(all("--net", &self.net));
        parts.extend(all("--console", &self.console));
        parts.extend(all("--channel", self.console.iter().flat_map(|console| &console.channels)));
        parts.extend(all("--mem", &self.mem));
        parts.extend(all("--balloon", &self.balloon));
        parts.extend(all("--pmem", &self.pmem));
        parts.extend(all("--vsock", &self.vsock));
        parts.extend(all("--rtc", &self.rtc));
        parts.extend(all("--ivshmem", &self.ivshmem));
        parts.extend(all("--watchdog", &self.watchdog));
        parts.extend(all("--pvpanic", &self.pvpanic));
        parts.extend(all("--on-crash", &self.on_crash));
        parts.extend(all("--numa", &self.numa));
        parts.extend(all("--pci-segment", &self.pci_segments));
        parts.extend(all("--pci-port", &self.pci_ports));
        parts.extend(all("--pci-place", &self.pci_places));
        parts.extend(all("--landlock-rules", &self.landlock_rules));
        parts
    }

    /// Checks each number against its range, whichever way the configuration came.
    pub(super) fn validate_ranges(&self) -> Result<(), ConfigError> {
        self.parts().into_iter().try_for_each(|(option, part)| {
            part.check_ranges()
                .map_err(|error| ConfigError { option: option.into(), reason: error.to_string() })
        })
    }

    /// Every file that the configuration names, found by the form of the settings' values.
    pub fn named_files(&self) -> Vec<NamedFile> {
        let mut files = Vec::new();
        let payload = &self.payload;
        let boot = [
            ("--firmware", &payload.firmware),
            ("--firmware-vars", &payload.firmware_vars),
            ("--kernel", &payload.kernel),
            ("--initramfs", &payload.initramfs),
        ];
        let items = payload.fw_cfg_config.iter().flat_map(|config| &config.items.item_list);
        let items = items.map(|item| ("--fw-cfg-config items file", &item.file));
        for (option, path) in boot.into_iter().chain(items) {
            files.extend(path.iter().map(|path| NamedFile {
                option: option.into(),
                path: path.clone(),
                socket: false,
                made: false,
                anew: false,
                read_only: option != "--firmware-vars",
            }));
        }
        for (option, part) in self.parts().into_iter().filter(|(option, _)| *option != "--landlock-rules") {
            let json = part.json();
            let at = |path: &str| json.pointer(&format!("/{}", path.replace('.', "/")));
            for field in part.fields().iter().filter(|field| field.hint == "<path>") {
                let Some(path) = at(field.path).and_then(Value::as_str).filter(|path| !path.is_empty())
                else {
                    continue;
                };
                // A server's socket is only connected to.
                if option == "--ivshmem" && field.key == "socket" {
                    continue;
                }
                let anew = matches!(field.key, "socket" | "coredump");
                files.push(NamedFile {
                    option: format!("{option} {}", field.key),
                    path: path.into(),
                    socket: field.key == "socket",
                    made: anew || CONSOLES.contains(&option),
                    anew,
                    read_only: option == "--rng" || at("readonly").and_then(Value::as_bool) == Some(true),
                });
            }
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConsoleConfig, ConsoleMode, DiskConfig, MemoryZoneConfig, SerialConfig};

    #[test]
    fn every_file_of_a_configuration_is_found() {
        let mut config = VmConfig::default();
        config.payload.kernel = Some("/k".into());
        config.payload.firmware = Some("/f".into());
        config.payload.firmware_vars = Some("/v".into());
        config.disks.push(DiskConfig { path: Some("/d".into()), readonly: true, ..DiskConfig::default() });
        config.serial = SerialConfig { socket: Some("/s".into()), ..SerialConfig::default() };
        let (mode, file) = (ConsoleMode::File, Some("/c".into()));
        config.console = vec![ConsoleConfig { mode, file, ..ConsoleConfig::default() }].into();
        let zone = MemoryZoneConfig { file: Some("/m".into()), ..MemoryZoneConfig::default() };
        config.memory.zones = Some(vec![zone]);
        let found: Vec<_> = config.named_files();
        let mut told: Vec<_> = found
            .iter()
            .map(|file| (file.option.as_str(), file.path.to_str().unwrap(), file.socket, file.read_only))
            .collect();
        told.sort_unstable();
        assert_eq!(
            told,
            [
                ("--console file", "/c", false, false),
                ("--disk path", "/d", false, true),
                ("--firmware", "/f", false, true),
                ("--firmware-vars", "/v", false, false),
                ("--kernel", "/k", false, true),
                ("--memory-zone file", "/m", false, false),
                ("--rng src", "/dev/urandom", false, true),
                ("--serial socket", "/s", true, false),
            ]
        );
        let made: Vec<_> = found.iter().filter(|file| file.made).map(|file| file.option.as_str()).collect();
        assert_eq!(made, ["--serial socket", "--console file"]);
    }
}
