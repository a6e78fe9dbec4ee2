//! `--pvpanic`.

use super::device::device_options;
use super::{ConfigError, ConsoleMode, VmConfig};
use ::devices::pvpanic::Pvpanic;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

device_options! {
    /// The device by which the guest reports its panics (pvpanic), with `--pvpanic` alone at a place that is free. A machine that
    /// begins with it also has it on the mainboard, for guests that know only that.
    pub struct PvpanicConfig is "pvpanic" first |_| "__pvpanic".into(), told by id {
    }
}

impl PvpanicConfig {
    /// The one that `true` stands for.
    pub fn usual() -> Self {
        Self { id: Some("__pvpanic".into()), ..Self::default() }
    }
}

/// Checks that nothing is in its place on the mainboard.
///
/// # Errors
/// When a debug console is.
pub(super) fn check(config: &VmConfig) -> Result<(), ConfigError> {
    let console = &config.debug_console;
    let taken = u64::from(console.iobase) == Pvpanic::PORTS.start && console.mode != ConsoleMode::Off;
    if taken && config.hears_panics() {
        return Err(ConfigError {
            option: format!("--debug-console iobase={:#x}", console.iobase),
            reason: "is the port by which a guest reports its panics; choose another, or do without pvpanic"
                .into(),
        });
    }
    Ok(())
}

/// The JSON form: whether there is one, as clients of cloud-hypervisor know it; one of which more is said is an object.
///
/// # Errors
/// Those of the serializer.
pub(super) fn serialize<S: Serializer>(
    pvpanic: &Option<PvpanicConfig>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match pvpanic {
        None => serializer.serialize_bool(false),
        Some(device) if *device == PvpanicConfig::usual() => serializer.serialize_bool(true),
        Some(device) => device.serialize(serializer),
    }
}

/// Reads it.
///
/// # Errors
/// When it is anything else.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PvpanicConfig>, D::Error> {
    deserializer.deserialize_any(SwitchVisitor)
}

struct SwitchVisitor;

impl<'de> Visitor<'de> for SwitchVisitor {
    type Value = Option<PvpanicConfig>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false, or an object")
    }

    fn visit_bool<E: Error>(self, on: bool) -> Result<Self::Value, E> {
        Ok(on.then(PvpanicConfig::usual))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        PvpanicConfig::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Seq, &self))
    }
}

/// The schema of that form.
#[cfg(test)]
pub(super) struct Switched;

#[cfg(test)]
impl schemars::JsonSchema for Switched {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Switched".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let device = generator.subschema_for::<PvpanicConfig>().to_value();
        let kinds = serde_json::json!({"type": ["boolean", "null"]});
        schemars::json_schema!({ "anyOf": [device, kinds] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CrashConfig, DebugConsoleConfig};
    use serde_json::{Value, json};

    fn named(json: Value) -> VmConfig {
        let mut config: VmConfig = serde_json::from_value(json).unwrap();
        config.name_devices();
        config.validate().unwrap();
        config
    }

    fn shown(config: &VmConfig) -> Value {
        serde_json::to_value(config).unwrap()["pvpanic"].clone()
    }

    #[test]
    fn it_is_a_switch_and_an_object_where_more_is_said() {
        for off in [json!({}), json!({"pvpanic": false}), json!({"pvpanic": null})] {
            assert_eq!(shown(&named(off)), false);
        }
        for on in [json!(true), json!({}), json!({"id": "__pvpanic"})] {
            assert_eq!(shown(&named(json!({ "pvpanic": on }))), true);
        }
        let placed = named(json!({"pvpanic": {"id": "p", "pci_device_id": 7}}));
        assert_eq!(shown(&placed)["pci_device_id"], 7);
        let again: VmConfig = serde_json::from_value(serde_json::to_value(&placed).unwrap()).unwrap();
        assert_eq!(again, placed);
        for wrong in [json!([]), json!([{}]), json!(1), json!("on"), json!({"port": 1})] {
            assert!(serde_json::from_value::<VmConfig>(json!({ "pvpanic": wrong })).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_asks_for_something_to_be_done_on_a_crash_has_one_until_it_is_removed() {
        let mut config = named(json!({"on_crash": {"action": "reset"}, "pvpanic": false}));
        assert_eq!(shown(&config), true);
        config.forget_device("__pvpanic");
        config.name_devices();
        assert_eq!(shown(&config), false);
        let mut again: VmConfig = serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
        again.name_devices();
        assert_eq!(again, config);
        again.put_device(PvpanicConfig::default().into()).unwrap();
        again.name_devices();
        assert!(again.hears_panics());
        let mut taken = again.clone();
        let mode = ConsoleMode::Pty;
        taken.debug_console = DebugConsoleConfig { mode, iobase: 0x505, ..DebugConsoleConfig::default() };
        assert!(taken.validate().unwrap_err().to_string().contains("reports its panics"));
        taken.forget_device("__pvpanic");
        taken.validate().unwrap();
        // What was said of another device is not about it.
        let mut other = VmConfig { on_crash: Some(CrashConfig::default()), ..VmConfig::default() };
        other.forget_device("__rng");
        other.name_devices();
        assert!(other.hears_panics());
    }
}
