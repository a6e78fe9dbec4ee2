//! Parts of a configuration of which a machine can have several, and clients of cloud-hypervisor say one: the JSON form is an
//! object for one, and a list for any other number. What clients are shown keeps the form they know, with all of them in a field of
//! its own.

use super::VmConfig;
use super::device::Room;
use super::options::Options;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// The names of these parts in a machine's configuration.
pub const NAMES: &[&str] = &["console", "ivshmem", "rng", "watchdog"];

/// Those of them that cloud-hypervisor's clients know as one, and the fields that have all.
pub const KNOWN_AS_ONE: &[(&str, &str)] =
    &[("console", "consoles"), ("rng", "rngs"), ("watchdog", "watchdogs")];

/// The device of which clients know whether there is one, and the field that has what else is said of it.
pub const KNOWN_AS_SWITCH: (&str, &str) = ("pvpanic", "pvpanic_device");

/// Puts a machine's configuration, as JSON, in the form that clients know: one console, one source of entropy, and whether there are a
/// watchdog and a pvpanic device. Where that does not tell all, all is in a field of its own ([`KNOWN_AS_ONE`], [`KNOWN_AS_SWITCH`]).
pub fn show_one(config: &mut Map<String, Value>) {
    for (one, all) in KNOWN_AS_ONE {
        let Some(value) = config.remove(*one) else { continue };
        let is_watchdog = *one == "watchdog";
        let (shown, list) = match value {
            Value::Array(list) if is_watchdog => (Some((!list.is_empty()).into()), Some(list)),
            Value::Array(list) => (list.first().cloned(), Some(list)),
            Value::Object(_) if is_watchdog => (Some(true.into()), Some(vec![value])),
            value => (Some(value), None),
        };
        config.extend(shown.map(|shown| ((*one).to_owned(), shown)));
        config.extend(list.map(|list| ((*all).to_owned(), Value::Array(list))));
    }
    let (switch, device) = KNOWN_AS_SWITCH;
    if let Some(shown) = config.get_mut(switch)
        && shown.is_object()
    {
        let said = std::mem::replace(shown, true.into());
        config.insert(device.to_owned(), said);
    }
}

/// A field that has one, that which has all, and what the first was said to be.
type One = (&'static str, &'static str, Value);

/// Undoes [`show_one`]: a field that has all goes before the one that has one. Gives back those that gave way, which are to
/// [`agree`] with the others.
///
/// # Errors
/// The name of a field that has all and is not of its form, and that form.
pub fn take_all(config: &mut Map<String, Value>) -> Result<Vec<One>, (&'static str, &'static str)> {
    let mut ones = Vec::new();
    let is_list: fn(&Value) -> bool = Value::is_array;
    let lists = KNOWN_AS_ONE.iter().map(|names| (*names, "a list", is_list));
    for ((one, all), form, is_of_it) in
        lists.chain([(KNOWN_AS_SWITCH, "a JSON object", Value::is_object as _)])
    {
        match config.remove(all) {
            None | Some(Value::Null) => {}
            Some(of_all) if is_of_it(&of_all) => {
                let said = config.insert(one.to_owned(), of_all).filter(|said| !said.is_null());
                ones.extend(said.map(|said| (one, all, said)));
            }
            Some(_) => return Err((all, form)),
        }
    }
    Ok(ones)
}

/// Whether a field of one, which was `said` and then `read`, is what [`show_one`] shows of `config`.
pub fn agree(field: &str, said: &Value, read: &VmConfig, config: &VmConfig) -> bool {
    let shown = |config: &VmConfig| {
        let mut value = serde_json::to_value(config).ok()?;
        let fields = value.as_object_mut()?;
        show_one(fields);
        fields.remove(field)
    };
    match (shown(read), shown(config)) {
        (Some(said_one), Some(one)) => {
            said_one == one && said.is_object() == one.is_object() && !said.is_array()
        }
        _ => false,
    }
}

/// What can be there several times.
pub trait Repeated: Options {
    /// What there is when nothing is said.
    fn unless_said() -> Vec<Self> {
        Vec::new()
    }

    /// Whether it says that there is something.
    fn is_there(&self) -> bool {
        true
    }

    /// What `true` and `false` stand for, if they are understood.
    fn of_switch(_on: bool) -> Option<Vec<Self>> {
        None
    }

    /// The JSON form of `all`, if that is neither one object nor a list.
    fn short_form(_all: &[Self]) -> Option<Value> {
        None
    }
}

/// All of a kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Several<T>(Vec<T>);

impl<T: Repeated> Default for Several<T> {
    fn default() -> Self {
        Self(T::unless_said())
    }
}

impl<T: Repeated> From<Vec<T>> for Several<T> {
    /// Those that are there.
    fn from(mut all: Vec<T>) -> Self {
        all.retain(T::is_there);
        Self(all)
    }
}

impl<T> Deref for Several<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T> DerefMut for Several<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

impl<'a, T> IntoIterator for &'a Several<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T> Room<T> for Several<T> {
    fn put(&mut self, device: T) -> bool {
        self.0.push(device);
        true
    }

    fn keep(&mut self, wanted: impl Fn(&T) -> bool) {
        self.0.retain(wanted);
    }
}

impl<T: Repeated> Serialize for Several<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (T::short_form(&self.0), self.0.as_slice()) {
            (Some(short), _) => short.serialize(serializer),
            (None, [one]) => one.serialize(serializer),
            (None, all) => all.serialize(serializer),
        }
    }
}

impl<'de, T: Repeated> Deserialize<'de> for Several<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SeveralVisitor(PhantomData)).map(Self::from)
    }
}

struct SeveralVisitor<T>(PhantomData<T>);

impl<'de, T: Repeated> Visitor<'de> for SeveralVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object, or a list of objects")?;
        if T::of_switch(true).is_some() { f.write_str(", or true or false") } else { Ok(()) }
    }

    fn visit_bool<E: Error>(self, on: bool) -> Result<Self::Value, E> {
        T::of_switch(on).ok_or_else(|| E::invalid_type(serde::de::Unexpected::Bool(on), &self))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(T::unless_said())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Item(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(all)
    }
}

/// One of a list: an object, and not the list of its fields that serde takes for one.
struct Item<T>(T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ItemVisitor(PhantomData)).map(Self)
    }
}

struct ItemVisitor<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for ItemVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
impl<T: Repeated + schemars::JsonSchema> schemars::JsonSchema for Several<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Several{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let one = generator.subschema_for::<T>().to_value();
        let mut forms = vec![one.clone(), serde_json::json!({"type": "array", "items": one})];
        if T::of_switch(true).is_some() {
            forms.push(serde_json::json!({"type": "boolean"}));
        }
        forms.push(serde_json::json!({"type": "null"}));
        schemars::json_schema!({ "anyOf": forms })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{RngConfig, VmConfig};
    use serde_json::{Value, json};

    fn rng(json: &Value) -> VmConfig {
        serde_json::from_value(json!({ "rng": json })).unwrap()
    }

    #[test]
    fn clients_are_shown_what_they_know_and_all_of_it_comes_back() {
        for (said, one, all) in [
            (json!({}), json!({"console": true, "rng": true, "watchdog": false}), 0),
            (json!({"watchdog": true}), json!({"console": true, "rng": true, "watchdog": true}), 0),
            (json!({"pvpanic": true}), json!({"console": true, "rng": true, "watchdog": false}), 0),
            (
                json!({"pvpanic": {"pci_device_id": 7}}),
                json!({"console": true, "rng": true, "watchdog": false}),
                0,
            ),
            (
                json!({"rng": [], "watchdog": {"action": "none"}, "console": [{"mode": "Null"}, {"mode": "Pty"}]}),
                json!({"console": true, "watchdog": true}),
                3,
            ),
            (
                json!({"rng": [{}, {}], "watchdog": [{}]}),
                json!({"console": true, "rng": true, "watchdog": true}),
                1,
            ),
        ] {
            let mut config: VmConfig = serde_json::from_value(said.clone()).unwrap();
            config.name_devices();
            let mut shown = serde_json::to_value(&config).unwrap();
            let fields = shown.as_object_mut().unwrap();
            super::show_one(fields);
            for (name, _) in super::KNOWN_AS_ONE {
                let form = fields.get(*name).map(|value| value.as_bool().unwrap_or(value.is_object()));
                assert_eq!(form, one.get(name).and_then(Value::as_bool), "{said}: {name}");
            }
            let lists = super::KNOWN_AS_ONE.iter().filter(|(_, all)| fields.contains_key(*all));
            assert_eq!(lists.count(), all, "{said}");
            let pvpanic = (&fields["pvpanic"], fields.contains_key("pvpanic_device"));
            let is_said = said["pvpanic"].is_object();
            assert_eq!(pvpanic, (&(is_said || said["pvpanic"] == true).into(), is_said), "{said}");
            let ones = super::take_all(fields).unwrap();
            assert_eq!(serde_json::from_value::<VmConfig>(shown).unwrap(), config, "{said}");
            for (one, _, said) in ones {
                let read: VmConfig = serde_json::from_value(json!({one: said})).unwrap();
                assert!(super::agree(one, &said, &read, &config), "{said}");
                assert!(!super::agree(one, &json!([said]), &read, &config), "{said}");
            }
        }
    }

    #[test]
    fn one_is_an_object_and_any_other_number_a_list() {
        let sources = |config: &VmConfig| {
            config.rng.iter().map(|rng| rng.src.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(sources(&VmConfig::default()), ["/dev/urandom"]);
        assert_eq!(sources(&rng(&Value::Null)), ["/dev/urandom"]);
        assert_eq!(sources(&rng(&json!({"src": "/a"}))), ["/a"]);
        assert_eq!(sources(&rng(&json!([{"src": "/a"}, {}]))), ["/a", "/dev/urandom"]);
        assert!(rng(&json!([])).rng.is_empty());
        for form in [json!({"src": "/a"}), json!([{"src": "/a"}, {}]), json!([])] {
            let config = rng(&form);
            let json = serde_json::to_value(&config).unwrap();
            assert_eq!(json["rng"].is_object(), config.rng.len() == 1);
            assert_eq!(serde_json::from_value::<VmConfig>(json).unwrap(), config);
        }
        for wrong in [json!([["/a"]]), json!(true), json!("/a"), json!({"source": "/a"})] {
            assert!(serde_json::from_value::<VmConfig>(json!({ "rng": wrong })).is_err(), "{wrong}");
        }
        assert_eq!(RngConfig::default().src.to_str(), Some("/dev/urandom"));
    }
}
