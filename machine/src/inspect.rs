//! Looking at live state: the tree that the API, the metrics and the tests read.

pub use serde_json::{Value, json};

/// Something whose live fields and counters can be looked at without stopping it.
pub trait Inspect {
    /// The fields, as a tree of objects. Addresses are strings in hexadecimal, sizes are in bytes,
    /// counters only grow.
    fn inspect(&self) -> Value;
}
