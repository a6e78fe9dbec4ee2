//! `--mem`.

use super::device::{Device, Room, device_options};
use super::options::ByteSize;
use super::{ConfigError, MemoryConfig, VmConfig};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;

device_options! {
    /// A device by which memory comes and goes while the machine runs (virtio-mem), as much as hotplug_size of --memory or of a
    /// --memory-zone says. Without the option, every zone that can grow has one.
    pub struct MemConfig is "mem" first |mem| mem.usual_name(), told by zone {
        /// The zone whose memory it is; left out in a machine without zones.
        ["zone"] zone: String = String::new(),
    }
}

impl MemConfig {
    /// What that of its zone is called.
    fn usual_name(&self) -> Cow<'static, str> {
        if self.zone.is_empty() { "__mem".into() } else { format!("__mem_{}", self.zone).into() }
    }
}

/// The devices by which zones grow: those that are said, or one for each zone that can.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Mems(Option<Vec<MemConfig>>);

impl From<Vec<MemConfig>> for Mems {
    /// These, and no others.
    fn from(all: Vec<MemConfig>) -> Self {
        Self(Some(all))
    }
}

impl Mems {
    /// Those that are said.
    pub fn iter(&self) -> std::slice::Iter<'_, MemConfig> {
        self.0.as_deref().unwrap_or_default().iter()
    }

    pub(super) fn iter_mut(&mut self) -> std::slice::IterMut<'_, MemConfig> {
        self.0.as_deref_mut().unwrap_or_default().iter_mut()
    }

    /// Says which there are in a machine with that memory, unless it is said.
    pub(super) fn say(&mut self, memory: &MemoryConfig) {
        let growing = memory.growing_zones();
        if self.0.is_none() && !growing.is_empty() {
            let device = |zone: &str| MemConfig { zone: zone.to_owned(), ..MemConfig::default() };
            self.0 = Some(growing.into_iter().map(device).collect());
        }
    }
}

impl<'a> IntoIterator for &'a Mems {
    type Item = &'a MemConfig;
    type IntoIter = std::slice::Iter<'a, MemConfig>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Room<MemConfig> for Mems {
    fn put(&mut self, device: MemConfig) -> bool {
        self.0.get_or_insert_default().push(device);
        true
    }

    fn keep(&mut self, wanted: impl Fn(&MemConfig) -> bool) {
        if let Some(all) = &mut self.0 {
            all.retain(wanted);
        }
    }
}

/// Checks that each device has memory to give, and that what is to be added from the start has a device.
///
/// # Errors
/// The first that has not.
pub(super) fn check(config: &VmConfig) -> Result<(), ConfigError> {
    let (memory, mut seen) = (&config.memory, BTreeSet::new());
    for mem in &config.mem {
        let refuse = |reason| Err(ConfigError { option: mem.option(), reason });
        if !memory.growing_zones().contains(&mem.zone.as_str()) {
            return refuse(no_such_zone(memory, &mem.zone));
        }
        if !seen.insert(mem.zone.as_str()) {
            return refuse("this memory has its device already, and there is only one for it".into());
        }
    }
    if config.mem.0.is_none() {
        return Ok(());
    }
    for zone in memory.growing_zones() {
        let first = memory.hotplugged_size(zone);
        if first.0 > 0 && !seen.contains(zone) {
            return Err(ConfigError {
                option: format!("{} hotplugged_size={first}", MemoryConfig::option_of(zone)),
                reason: "there is no device that gives it to the guest; add --mem for it, or leave hotplugged_size out"
                    .into(),
            });
        }
    }
    Ok(())
}

/// Why there is no device for `zone`, which cannot grow, and what to do.
fn no_such_zone(memory: &MemoryConfig, zone: &str) -> String {
    let zones = memory.zones.as_deref().unwrap_or_default();
    match (zones, zone) {
        ([_, ..], "") => "the machine's memory is in zones; say of which one by zone=".into(),
        (_, zone) if !zone.is_empty() && !zones.iter().any(|known| known.id == zone) => {
            format!("there is no memory zone \"{zone}\"; vm.info lists them")
        }
        _ => {
            let option = MemoryConfig::option_of(zone);
            format!(
                "nothing can be added to this memory; create the machine with --memory hotplug_method=virtio-mem and {option} \
                 hotplug_size"
            )
        }
    }
}

impl VmConfig {
    /// If `id` is a device by which memory comes: its zone, and how much of it the guest has or is to get.
    pub fn growth_of(&self, id: &str) -> Option<(&str, ByteSize)> {
        let mem = self.mem.iter().find(|mem| mem.id.as_deref() == Some(id))?;
        Some((&mem.zone, self.memory.hotplugged_size(&mem.zone)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config(mem: &Value, first: &str) -> VmConfig {
        let zone = |id: &str, more: &str| json!({"id": id, "size": "128M", "hotplug_size": more, "hotplugged_size": if id == "b" { first } else { "0" }});
        let memory = json!({"size": 0, "hotplug_method": "VirtioMem", "zones": [zone("a", "1G"), zone("b", "1G"), zone("c", "0")]});
        let mut config: VmConfig = serde_json::from_value(json!({"memory": memory, "mem": mem})).unwrap();
        config.payload.kernel = Some("k".into());
        config.name_devices();
        config
    }

    fn ids(config: &VmConfig) -> Vec<&str> {
        config.mem.iter().map(|mem| mem.id.as_deref().unwrap()).collect()
    }

    #[test]
    fn every_zone_that_can_grow_has_a_device_unless_others_are_said() {
        assert_eq!(ids(&config(&Value::Null, "512M")), ["__mem_a", "__mem_b"]);
        let mut one = config(&json!([{"zone": "b", "pci_device_id": 9}]), "512M");
        one.validate().unwrap();
        assert_eq!(
            (ids(&one), one.growth_of("__mem_b")),
            (vec!["__mem_b"], Some(("b", ByteSize(512 << 20))))
        );
        assert!(config(&json!([]), "0").validate().is_ok());
        // What was removed does not come back by itself.
        one.forget_device("__mem_b");
        one.name_devices();
        let again: VmConfig = serde_json::from_value(serde_json::to_value(&one).unwrap()).unwrap();
        assert!(ids(&one).is_empty() && again == one);
        one.put_device(MemConfig { zone: "a".into(), ..MemConfig::default() }.into()).unwrap();
        one.name_devices();
        assert_eq!(ids(&one), ["__mem_a"]);
        let mut plain = VmConfig::default();
        plain.name_devices();
        assert_eq!(serde_json::to_value(&plain).unwrap()["mem"], Value::Null);
        plain.memory =
            serde_json::from_value(json!({"hotplug_method": "VirtioMem", "hotplug_size": "1G"})).unwrap();
        plain.name_devices();
        assert_eq!(ids(&plain), ["__mem"]);
    }

    #[test]
    fn a_device_without_memory_and_memory_without_a_device_are_refused_with_a_remedy() {
        for (mem, first, expected) in [
            (json!([{}]), "0", "--mem: the machine's memory is in zones; say of which"),
            (json!([{"zone": "d"}]), "0", "--mem zone=d: there is no memory zone \"d\""),
            (json!([{"zone": "c"}]), "0", "--mem zone=c: nothing can be added to this memory; create"),
            (json!([{"zone": "a"}, {"zone": "a"}]), "0", "--mem zone=a: this memory has its device already"),
            (json!([{"zone": "a"}]), "512M", "--memory-zone id=b hotplugged_size=512M: there is no device"),
        ] {
            let refused = config(&mem, first).validate().unwrap_err().to_string();
            assert!(refused.starts_with(expected), "{mem}: {refused}");
        }
        let mut plain = VmConfig { mem: vec![MemConfig::default()].into(), ..VmConfig::default() };
        plain.payload.kernel = Some("k".into());
        let refused = plain.validate().unwrap_err().to_string();
        assert!(refused.starts_with("--mem: nothing can be added to this memory"), "{refused}");
    }
}
