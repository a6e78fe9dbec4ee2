//! Bodies of requests: from JSON to what is asked.

use super::request::{AddDevice, AddPort, Opening, Request, SwitchPorts};
use super::routes::Refusal;
use super::tree::Tree;
use crate::config::{DeviceConfig, Options, PciPortConfig, VmConfig, compatibility, several};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

/// A machine's configuration, as clients of cloud-hypervisor send it.
pub(super) fn config(body: &[u8]) -> Result<VmConfig, Refusal> {
    let mut tree = tree(body)?;
    let Value::Object(fields) = &mut tree else { return machine(tree) };
    let ones = several::take_all(fields).map_err(|(field, form)| Refusal {
        field: Some(field.to_owned()),
        ..Refusal::bad(format!("{field}: takes {form}"))
    })?;
    let config = machine(tree)?;
    for (field, all, said) in ones {
        let read = machine(Map::from_iter([(field.to_owned(), said.clone())]).into())?;
        if !several::agree(field, &said, &read, &config) {
            let message = format!("{field}: says something else than {all}; leave one of them out");
            return Err(Refusal { field: Some(field.to_owned()), ..Refusal::bad(message) });
        }
    }
    Ok(config)
}

fn machine(mut tree: Value) -> Result<VmConfig, Refusal> {
    compatibility::adapt_machine(&mut tree);
    from_tree(&tree)
}

/// A device that is to come. `part` is where its configuration is in a machine's.
pub(super) fn addition<T: Options + Into<DeviceConfig>>(body: &[u8], part: &str) -> Result<Request, Refusal> {
    let mut tree = tree(body)?;
    let opening = take(&mut tree, Opening::FIELDS)?;
    let device = options::<T>(tree, part)?.into();
    Ok(Request::Add(AddDevice { device, opening }))
}

/// A port that is to come, or a switch.
pub(super) fn port(body: &[u8]) -> Result<Request, Refusal> {
    let mut tree = tree(body)?;
    let switch: SwitchPorts = take(&mut tree, SwitchPorts::FIELDS)?;
    for (at, port) in switch.ports.iter().enumerate() {
        check_ranges(port).map_err(|refusal| Refusal {
            field: refusal.field.map(|field| format!("ports[{at}].{field}")),
            ..refusal
        })?;
    }
    let port = options::<PciPortConfig>(tree, "pci_ports")?;
    Ok(Request::AddPort(Box::new(AddPort { port, switch })))
}

/// Takes out of a body what is beside a device's configuration.
fn take<T: DeserializeOwned + Serialize>(tree: &mut Value, names: &[&str]) -> Result<T, Refusal> {
    let mut taken = Map::new();
    if let Some(fields) = tree.as_object_mut() {
        taken.extend(names.iter().filter_map(|name| fields.remove_entry(*name)));
    }
    from_tree(&taken.into())
}

/// A device's configuration. `part` is where it is in a machine's.
fn options<T: Options>(mut tree: Value, part: &str) -> Result<T, Refusal> {
    compatibility::adapt_part(part, &mut tree);
    let options: T = from_tree(&tree)?;
    check_ranges(&options)?;
    Ok(options)
}

fn check_ranges<T: Options>(options: &T) -> Result<(), Refusal> {
    options.check_ranges().map_err(|error| {
        // The field as the body names it, which may differ from the key of the command line.
        let field = T::FIELDS.iter().find(|field| Some(field.key) == error.key.as_deref());
        Refusal {
            field: field.map(|field| field.path.to_owned()).or(error.key),
            ..Refusal::bad(error.message)
        }
    })
}

pub(super) fn read<T: DeserializeOwned + Serialize>(body: &[u8]) -> Result<T, Refusal> {
    from_tree(&tree(body)?)
}

/// A body. What is null in it says the same as if it was left out.
fn tree(body: &[u8]) -> Result<Value, Refusal> {
    if body.is_empty() {
        return Err(Refusal::bad("takes a JSON body, and has none"));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let Tree(tree) = serde_path_to_error::deserialize(&mut reader).map_err(refusal)?;
    reader.end().map_err(|error| Refusal::bad(format!("the body goes on after its end: {error}")))?;
    if !tree.is_object() {
        return Err(Refusal::bad("takes a JSON object, and has something else"));
    }
    Ok(tree)
}

fn leave_out_null(tree: &mut Value) {
    match tree {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(leave_out_null);
        }
        Value::Array(items) => items.iter_mut().for_each(leave_out_null),
        _ => {}
    }
}

fn from_tree<T: DeserializeOwned + Serialize>(tree: &Value) -> Result<T, Refusal> {
    let mut said = tree.clone();
    leave_out_null(&mut said);
    let read: T = serde_path_to_error::deserialize(&said).map_err(refusal)?;
    if said != *tree {
        check_names::<T>(tree.clone())?;
    }
    let meant = serde_json::to_value(&read).map_err(|error| Refusal::bad(error.to_string()))?;
    if let Some(field) = array_for_object(&said, &meant) {
        let message = format!("{field}: takes a JSON object, and has an array");
        return Err(Refusal { field: Some(field), ..Refusal::bad(message) });
    }
    Ok(read)
}

/// Checks that there are fields of the names that are null. A field that cannot be null is left out in each turn.
fn check_names<T: DeserializeOwned>(mut tree: Value) -> Result<(), Refusal> {
    while let Err(error) = serde_path_to_error::deserialize::<_, T>(&tree) {
        if error.inner().to_string().starts_with("unknown field") {
            return Err(refusal(error));
        }
        let path: Vec<_> = error.path().iter().cloned().collect();
        if !leave_out_at(&mut tree, &path) {
            break;
        }
    }
    Ok(())
}

/// Leaves out what is null at a path, in all items of the arrays on it. `false`: nothing is.
fn leave_out_at(tree: &mut Value, path: &[Segment]) -> bool {
    match (tree, path) {
        (Value::Object(fields), [Segment::Map { key }]) => {
            let null = fields.get(key).is_some_and(Value::is_null);
            null && fields.remove(key).is_some()
        }
        (Value::Object(fields), [Segment::Map { key }, rest @ ..]) => {
            fields.get_mut(key).is_some_and(|field| leave_out_at(field, rest))
        }
        (Value::Array(items), [Segment::Seq { .. }, rest @ ..]) => {
            items.iter_mut().fold(false, |any, item| leave_out_at(item, rest) | any)
        }
        _ => false,
    }
}

/// The first field that was said as an array and taken for an object: serde takes an object's fields in their order, too.
fn array_for_object(said: &Value, meant: &Value) -> Option<String> {
    match (said, meant) {
        (Value::Array(_), Value::Object(_)) => Some(String::new()),
        (Value::Array(said), Value::Array(meant)) => {
            let mut pairs = said.iter().zip(meant).enumerate();
            pairs.find_map(|(at, (said, meant))| Some(format!("[{at}]{}", array_for_object(said, meant)?)))
        }
        (Value::Object(said), Value::Object(meant)) => said.iter().find_map(|(name, said)| {
            let meant = meant.get(name)?;
            let rest = match (said, meant) {
                // A list of one is shown as that one, and such a list is not taken for an object.
                (Value::Array(items), Value::Object(_)) if several::NAMES.contains(&name.as_str()) => {
                    format!("[0]{}", array_for_object(items.first()?, meant)?)
                }
                _ => array_for_object(said, meant)?,
            };
            let joint = if rest.is_empty() || rest.starts_with('[') { "" } else { "." };
            Some(format!("{name}{joint}{rest}"))
        }),
        _ => None,
    }
}

/// Names the field that could not be read.
fn refusal(error: serde_path_to_error::Error<serde_json::Error>) -> Refusal {
    let path = error.path().to_string();
    let field = (path != ".").then_some(path);
    let message = error.into_inner().to_string();
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    match unknown.filter(|name| compatibility::is_theirs(name)) {
        Some(name) => {
            Refusal { field, ..Refusal::new(501, format!("{name} is not supported yet; leave it out")) }
        }
        None => Refusal { field, ..Refusal::bad(message) },
    }
}
