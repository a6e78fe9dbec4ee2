//! What a monitor told in a file (`--event-monitor`).

use serde_json::Value;
use std::path::Path;

/// The names and properties of the events that the file at `path` has whole.
///
/// # Panics
/// When there is no such file, or something else is in it.
pub fn events(path: &Path) -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(path).expect("the monitor writes its events");
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let read = |line| {
        let event: Value = serde_json::from_str(line).expect("each line is an event");
        (event["event"].as_str().expect("it has a name").to_owned(), event["properties"].clone())
    };
    whole.lines().map(read).collect()
}
