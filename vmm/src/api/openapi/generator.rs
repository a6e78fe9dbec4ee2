//! Makes the document.

use crate::api::request::{
    AddedReply, Coredump, InfoReply, Opening, PingReply, RemoveDevice, Resize, ResizeDisk, ResizeZone,
    SetAffinity, SetLink, SetRateLimit, SetThrottle, SwitchPorts,
};
use crate::api::routes::{Answer, PREFIX, ROUTES, Route, Serves, Takes};
use crate::config::{
    BalloonConfig, ConsoleConfig, DiskConfig, IvshmemConfig, MemConfig, NetConfig, PciPortConfig, PmemConfig,
    PvpanicConfig, RngConfig, RtcConfig, VmConfig, VsockConfig, WatchdogConfig, several,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The schema of a body or answer, by the name that its route has.
fn schema(name: &str, generator: &mut SchemaGenerator) -> Schema {
    match name {
        "AddDisk" => addition::<DiskConfig>(name, generator),
        "AddPort" => beside::<PciPortConfig, SwitchPorts>(name, SwitchPorts::FIELDS, generator),
        "AddNet" => addition::<NetConfig>(name, generator),
        "AddPmem" => addition::<PmemConfig>(name, generator),
        "AddVsock" => addition::<VsockConfig>(name, generator),
        "AddRng" => addition::<RngConfig>(name, generator),
        "AddIvshmem" => addition::<IvshmemConfig>(name, generator),
        "AddWatchdog" => addition::<WatchdogConfig>(name, generator),
        "AddPvpanic" => addition::<PvpanicConfig>(name, generator),
        "AddMem" => addition::<MemConfig>(name, generator),
        "AddBalloon" => addition::<BalloonConfig>(name, generator),
        "AddConsole" => addition::<ConsoleConfig>(name, generator),
        "AddRtc" => addition::<RtcConfig>(name, generator),
        "VmConfig" => generator.subschema_for::<VmConfig>(),
        "SetThrottle" => generator.subschema_for::<SetThrottle>(),
        "SetAffinity" => generator.subschema_for::<SetAffinity>(),
        "Coredump" => generator.subschema_for::<Coredump>(),
        "Resize" => generator.subschema_for::<Resize>(),
        "ResizeDisk" => generator.subschema_for::<ResizeDisk>(),
        "ResizeZone" => generator.subschema_for::<ResizeZone>(),
        "RemoveDevice" => generator.subschema_for::<RemoveDevice>(),
        "SetRateLimit" => generator.subschema_for::<SetRateLimit>(),
        "SetLink" => generator.subschema_for::<SetLink>(),
        "VmmPingResponse" => generator.subschema_for::<PingReply>(),
        "VmInfo" => generator.subschema_for::<InfoReply>(),
        "PciDeviceInfo" => generator.subschema_for::<AddedReply>(),
        "VmCounters" => schemars::json_schema!({
            "type": "object",
            "description": "By device, and by counter.",
            "additionalProperties": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
        }),
        "Tree" => schemars::json_schema!({
            "description": "A tree of objects, arrays, numbers and texts; addresses are texts in hexadecimal."
        }),
        "OpenApi" => schemars::json_schema!({"type": "object"}),
        other => panic!("the answer or body {other} has no schema: name its type here"),
    }
}

/// A device's configuration, and how it is opened, in one object.
fn addition<T: JsonSchema>(name: &str, generator: &mut SchemaGenerator) -> Schema {
    beside::<T, Opening>(name, Opening::FIELDS, generator)
}

/// Two types in one object. The second has the fields that are named.
fn beside<T: JsonSchema, U: JsonSchema>(
    name: &str,
    fields: &[&str],
    generator: &mut SchemaGenerator,
) -> Schema {
    let mut schema = T::json_schema(generator);
    let further = U::json_schema(generator);
    let own = schema.get_mut("properties").and_then(Value::as_object_mut).expect("a device is an object");
    let further = further.get("properties").and_then(Value::as_object).expect("there are fields");
    assert!(further.keys().map(String::as_str).eq(fields.iter().copied()), "{further:?}");
    own.extend(further.clone());
    generator.definitions_mut().insert(name.to_owned(), schema.to_value());
    Schema::new_ref(format!("#/components/schemas/{name}"))
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in ROUTES {
        let operation = operation(route, &mut generator);
        let path = route.name.strip_prefix('/').map_or_else(|| format!("/{}", route.name), |_| route.path());
        let mut item = json!({ route.method.to_lowercase(): operation });
        if route.name.starts_with('/') {
            item["servers"] = json!([{"url": "http://localhost"}]);
        }
        paths.insert(path, item);
    }
    let mut schemas = generator.take_definitions(true);
    for (one, all) in several::KNOWN_AS_ONE {
        let properties =
            &mut schemas.get_mut("VmConfig").expect("machines have configurations")["properties"];
        let list = properties[one]["anyOf"]
            .as_array()
            .and_then(|forms| forms.iter().find(|form| form["type"] == "array"));
        let mut list = list.unwrap_or_else(|| panic!("{one}: there can be several")).clone();
        list["description"] = format!("All, where `{one}` does not tell all; goes before that.").into();
        properties[all] = list;
    }
    let (switch, device) = several::KNOWN_AS_SWITCH;
    let properties = &mut schemas.get_mut("VmConfig").expect("machines have configurations")["properties"];
    let mut object = properties[switch]["anyOf"][0].clone();
    object["description"] = format!("What `{switch}` does not tell; goes before that.").into();
    properties[device] = object;
    schemas.values_mut().for_each(allow_null);
    schemas.insert(
        "Error".into(),
        json!({
            "type": "array",
            "description": "What is wrong, from the general to the particular, which names the field.",
            "items": {"type": "string"},
            "minItems": 1,
        }),
    );
    schemas.insert(
        "Problem".into(),
        json!({
            "type": "object",
            "description": "What is wrong (RFC 9457).",
            "required": ["title", "status", "detail", "field"],
            "properties": {
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "field": {"type": ["string", "null"], "description": "The field at fault, such as disks[0].path."},
            },
        }),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Vivarium",
            "description": "Drives one virtual machine, over a UNIX socket. Names follow cloud-hypervisor's interface.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": format!("http://localhost{}", PREFIX.trim_end_matches('/'))}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": REFUSALS.map(|(status, description)| (status, error(description))).into_iter().collect::<BTreeMap<_, _>>(),
        },
    })
}

/// Says of what may be left out of a body that it may also be null, which means the same.
fn allow_null(schema: &mut Value) {
    // Bodies, and what is in them, have no fields but those that are named; answers may get more.
    if schema["additionalProperties"] != Value::Bool(false) {
        return;
    }
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    for (_, property) in properties.iter_mut().filter(|(name, _)| !required.contains(&json!(name))) {
        let Value::Object(property) = property else { continue };
        match property.remove("type") {
            Some(Value::String(kind)) => drop(property.insert("type".into(), json!([kind, "null"]))),
            Some(kinds) => drop(property.insert("type".into(), kinds)),
            None => {}
        }
        if let Some(reference) = property.remove("$ref") {
            property.insert("anyOf".into(), json!([{"$ref": reference}, {"type": "null"}]));
        }
    }
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut operation = json!({
        "operationId": route.name.trim_start_matches('/').replace(['.', '-'], "_"),
        "summary": route.summary,
        "responses": responses(route, generator),
    });
    let parameter = |name: &str, schema: Value, description: &str| json!([{"name": name, "in": "query", "required": false, "schema": schema, "description": description}]);
    match &route.serves {
        Serves::Call(Takes::Body(name, _)) => {
            operation["requestBody"] = json!({
                "required": true,
                "content": {"application/json": {"schema": schema(name, generator)}},
            });
        }
        Serves::Call(Takes::Unsupported(_)) => {
            operation["requestBody"] = json!({
                "required": false,
                "content": {"application/json": {"schema": {}}},
            });
        }
        Serves::Call(Takes::Path(_)) => {
            operation["parameters"] = parameter(
                "path",
                json!({"type": "string"}),
                "Names from the root, separated by /; all, if empty.",
            );
        }
        Serves::Events => {
            operation["parameters"] = parameter(
                "after",
                json!({"type": "integer", "minimum": 0, "maximum": u64::MAX}),
                "First those of the last events whose number is above this.",
            );
        }
        Serves::Call(Takes::Nothing(_)) | Serves::OpenApi => {}
    }
    operation
}

fn responses(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    let nothing = json!({"description": "It is done."});
    let mut json_of = |name: &str| {
        let schema = schema(name, generator);
        json!({"description": "It is done.", "content": {"application/json": {"schema": schema}}})
    };
    match route.answer {
        Answer::Nothing => {
            responses.insert("204".into(), nothing);
        }
        Answer::Json(name) => {
            responses.insert("200".into(), json_of(name));
        }
        Answer::JsonOrNothing(name) => {
            responses.insert("200".into(), json_of(name));
            responses.insert("204".into(), nothing);
        }
        Answer::Text => {
            let kind =
                if matches!(route.serves, Serves::Events) { "text/event-stream" } else { "text/plain" };
            let content = json!({ kind: {"schema": {"type": "string"}} });
            responses.insert("200".into(), json!({"description": "It is done.", "content": content}));
        }
        Answer::NotSupported => {}
    }
    let mut refused = vec!["400", "405", "408", "413", "415", "503"];
    if matches!(route.serves, Serves::Call(_)) && route.name != "vmm.ping" {
        refused.extend(["404", "500", "501"]);
    }
    if matches!(route.serves, Serves::Call(Takes::Body(..))) {
        refused.push("409");
    }
    for status in refused {
        responses.insert(status.into(), json!({"$ref": format!("#/components/responses/{status}")}));
    }
    responses.into()
}

/// Why a request is refused, by status.
const REFUSALS: [(&str, &str); 10] = [
    ("400", "The request is wrong."),
    ("404", "There is no such machine, device or part."),
    ("405", "The path has another method, or the machine is not in a state for this."),
    ("408", "The body did not arrive, or the guest or the host did not do its part, in time."),
    ("409", "It is there already."),
    ("413", "The body is too large."),
    ("415", "The body is not JSON."),
    ("500", "The host refused."),
    ("501", "This is not supported."),
    ("503", "The process ends, or too many calls wait or listen to events."),
];

fn error(description: &str) -> Value {
    json!({
        "description": description,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Error"}},
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}},
        },
    })
}

#[test]
fn the_openapi_reference_page_is_what_the_types_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("VIVARIUM_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert!(
        std::fs::read_to_string(path).unwrap_or_default() == text,
        "docs/openapi.json is out of date: run VIVARIUM_BLESS=1 cargo test -p vmm reference_page"
    );
}

/// All that can be in a body of a request.
fn of_requests(document: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let bodies = document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap());
    let bodies = bodies.filter_map(|(_, operation)| {
        let name = operation["operationId"].as_str()?.to_owned();
        Some((name, operation.pointer("/requestBody/content/application~1json/schema")?))
    });
    let mut left: Vec<_> = bodies.collect();
    while let Some((place, value)) = left.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref")
                    && seen.insert(reference)
                {
                    let schema = document.pointer(reference.trim_start_matches('#')).unwrap();
                    left.push((reference.clone(), schema));
                }
                left.extend(fields.iter().map(|(name, field)| (format!("{place}/{name}"), field)));
                found.push((place, value.clone()));
            }
            Value::Array(items) => left.extend(items.iter().map(|item| (place.clone(), item))),
            _ => {}
        }
    }
    found
}

#[test]
fn bodies_of_requests_have_no_fields_but_those_that_are_named() {
    let schemas = of_requests(&document());
    let is_object = |schema: &Value| match &schema["type"] {
        Value::String(kind) => kind == "object",
        Value::Array(kinds) => kinds.contains(&json!("object")),
        _ => false,
    };
    let objects: Vec<_> = schemas.iter().filter(|(_, schema)| is_object(schema)).collect();
    assert!(objects.len() > 30, "they are found: {}", objects.len());
    let open = objects.iter().filter(|(_, schema)| schema["additionalProperties"] != false);
    let open: Vec<_> = open.map(|(place, _)| place).collect();
    assert!(open.is_empty(), "these need #[serde(deny_unknown_fields)]: {open:?}");
}

#[test]
fn every_schema_that_is_referred_to_is_there() {
    fn check(value: &Value, document: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
                }
                fields.values().for_each(|field| check(field, document));
            }
            Value::Array(items) => items.iter().for_each(|item| check(item, document)),
            _ => {}
        }
    }
    let document = document();
    check(&document, &document);
}
