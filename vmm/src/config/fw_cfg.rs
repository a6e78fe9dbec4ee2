//! `--fw-cfg-config`.

use super::key_value;
use super::options::{Options, Setting, options};
use super::validate::ConfigError;
use devices::fw_cfg::check_name;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

options! {
    /// A firmware configuration device (QEMU's fw_cfg): what the guest's firmware, or the guest, finds by name.
    pub struct FwCfgConfig {
        /// Hold the memory map, as etc/e820 (x86_64).
        ["e820"] e820: bool = true,
        /// Hold the kernel.
        ["kernel"] kernel: bool = true,
        /// Hold the kernel's command line.
        ["cmdline"] cmdline: bool = true,
        /// Hold the initramfs.
        ["initramfs"] initramfs: bool = true,
        /// Hold the ACPI tables, as etc/acpi/tables, etc/acpi/rsdp and etc/table-loader.
        ["acpi_table"] acpi_tables: bool = true,
        /// Let the guest's kernel tell where its note for debuggers is, as etc/vmcoreinfo: core dumps have it then.
        ["vmcoreinfo"] vmcoreinfo: bool = true,
        /// What else it holds, separated by colons: a name of at most 55 bytes, such as opt/org.example/setting, and a file or a string.
        ["items"] items: FwCfgItemList = FwCfgItemList::default(),
    }
}

options! {
    /// An item of the firmware configuration device.
    pub struct FwCfgItem {
        /// What the guest knows it by.
        ["name"] name: String = String::new(),
        /// The file with its content, which is read when the machine is made.
        ["file"] file: Option<PathBuf> = None,
        /// Its content.
        ["string"] string: Option<String> = None,
    }
}

/// The items.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct FwCfgItemList {
    /// One after the other.
    #[cfg_attr(test, schemars(default))]
    pub item_list: Vec<FwCfgItem>,
}

impl Setting for FwCfgItemList {
    const HINT: &'static str = "[name=<name>,file=<path>:name=<name>,string=<text>]";
    fn show(&self) -> String {
        String::new()
    }
}

impl<'de> Deserialize<'de> for FwCfgItemList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = FwCfgItemList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with an item_list")
            }

            /// The command line's form.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<FwCfgItemList, E> {
                let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
                let items = key_value::split(inner, ':').map_err(E::custom)?;
                let items = items.into_iter().filter(|item| !item.trim().is_empty());
                let item_list = items.map(FwCfgItem::parse).collect::<Result<_, _>>().map_err(E::custom)?;
                Ok(FwCfgItemList { item_list })
            }

            fn visit_unit<E: de::Error>(self) -> Result<FwCfgItemList, E> {
                Ok(FwCfgItemList::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FwCfgItemList, A::Error> {
                let mut list = FwCfgItemList::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key != "item_list" {
                        return Err(de::Error::unknown_field(&key, &["item_list"]));
                    }
                    list.item_list = map.next_value()?;
                }
                Ok(list)
            }
        }

        deserializer.deserialize_any(Form)
    }
}

impl FwCfgConfig {
    /// Checks that each item has a name of its own and one content.
    ///
    /// # Errors
    /// The first that has not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut names = BTreeSet::new();
        for item in &self.items.item_list {
            let refuse = |reason: String| {
                Err(ConfigError { option: format!("--fw-cfg-config items=[name={}]", item.name), reason })
            };
            if let Err(error) = check_name(&item.name) {
                return refuse(error.to_string());
            }
            if item.file.is_some() == item.string.is_some() {
                return refuse("needs either a file or a string".into());
            }
            if !names.insert(&item.name) {
                return refuse("is given twice; items need different names".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let text = r#"kernel=off,acpi_table=off,items=[name=opt/a,file=/tmp/x:name=opt/b,string="a,b:c"]"#;
        let config = FwCfgConfig::parse(text).unwrap();
        let json = serde_json::json!({
            "e820": true, "kernel": false, "cmdline": true, "initramfs": true, "acpi_tables": false, "vmcoreinfo": true,
            "items": {"item_list": [
                {"name": "opt/a", "file": "/tmp/x", "string": null},
                {"name": "opt/b", "file": null, "string": "a,b:c"},
            ]},
        });
        assert_eq!(serde_json::to_value(&config).unwrap(), json);
        assert_eq!(serde_json::from_value::<FwCfgConfig>(json).unwrap(), config);
        config.check().unwrap();
        assert_eq!(
            serde_json::from_str::<FwCfgConfig>(r#"{"items": null}"#).unwrap(),
            FwCfgConfig::default()
        );
    }

    #[test]
    fn items_that_cannot_be_are_refused() {
        for text in [
            "items=[string=x]",
            "items=[name=opt/a]",
            "items=[name=opt/a,string=x,file=/y]",
            "items=[name=opt/a,string=x:name=opt/a,string=y]",
            "items=[name=\"opt/a b\",string=x]",
        ] {
            assert!(FwCfgConfig::parse(text).unwrap().check().is_err(), "{text}");
        }
        for text in ["items=[name=opt/a,size=3]", "items=[name=opt/a", "firmware=on"] {
            assert!(FwCfgConfig::parse(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<FwCfgConfig>(r#"{"items": {"list": []}}"#).is_err());
    }
}
