//! The JSON schema of a configuration struct, from its one definition. Only the OpenAPI document is made of it, by a test.

use schemars::{Schema, json_schema};
use serde_json::{Map, Value};

/// One field of a struct.
pub(crate) struct FieldSchema {
    /// Its name in JSON.
    pub name: &'static str,
    /// What its type allows.
    pub schema: Schema,
    /// What it means.
    pub doc: &'static str,
    /// The least and the greatest value.
    pub range: Option<(u64, u64)>,
}

/// The schema of a struct of these fields, none of which has to be given. `defaults` is the struct when none is.
pub(crate) fn object(doc: &str, defaults: &Value, fields: Vec<FieldSchema>) -> Schema {
    let mut properties = Map::new();
    for field in fields {
        let mut schema = field.schema;
        if let Some((low, high)) = field.range {
            schema.insert("minimum".into(), low.into());
            schema.insert("maximum".into(), high.into());
        }
        schema.insert("description".into(), field.doc.trim().into());
        if let Some(default) = defaults.get(field.name).filter(|default| !default.is_null()) {
            schema.insert("default".into(), default.clone());
        }
        properties.insert(field.name.into(), schema.into());
    }
    json_schema!({
        "type": "object",
        "description": doc.trim(),
        "properties": properties,
        "additionalProperties": false,
    })
}
