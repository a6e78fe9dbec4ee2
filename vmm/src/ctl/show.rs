//! Answers for a person: aligned, with units.

use crate::api::routes::Route;
use serde_json::{Map, Value};
use std::fmt::Write;

/// An answer, as text that ends with a line's end.
pub(super) fn answer(route: &Route, text: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return format!("{}\n", text.trim_end()) };
    match (route.name, &value) {
        ("vm.info", Value::Object(info)) => self::info(info),
        ("vm.counters", Value::Object(devices)) => counters(devices),
        ("openapi.json", _) => format!("{value:#}\n"),
        _ if value.get("bdf").is_some() => {
            format!("{} at {}\n", plain("id", &value["id"]), plain("bdf", &value["bdf"]))
        }
        (_, Value::Object(_) | Value::Array(_)) => {
            let mut tree = String::new();
            branch(&mut tree, 0, &value);
            tree
        }
        _ => format!("{}\n", plain("", &value)),
    }
}

/// An event, as a line.
pub(super) fn event(data: &str) -> String {
    let Ok(event) = serde_json::from_str::<Value>(data) else { return format!("{data}\n") };
    let time = &event["timestamp"];
    let seconds = time["secs"].as_f64().unwrap_or(0.0) + time["nanos"].as_f64().unwrap_or(0.0) / 1e9;
    let mut line = format!(
        "{:>6}  {seconds:>12.6} s  {:<8} {}",
        plain("id", &event["id"]),
        plain("source", &event["source"]),
        plain("event", &event["event"])
    );
    for (name, value) in event["properties"].as_object().into_iter().flatten() {
        // Writing to a string cannot fail.
        let _ = write!(line, " {name}={}", plain(name, value));
    }
    line.push('\n');
    line
}

fn info(info: &Map<String, Value>) -> String {
    let config = info.get("config").unwrap_or(&Value::Null);
    let cpus = &config["cpus"];
    let state = info.get("state").map(|state| plain("state", state)).unwrap_or_default();
    let memory = info.get("memory_actual_size").and_then(Value::as_u64).map(size).unwrap_or_default();
    let asked = &cpus["boot_vcpus"];
    let there = info.get("cpus_actual").unwrap_or(asked);
    let mut text = format!(
        "state    {state}\nCPUs     {} of at most {}{}\nmemory   {memory}\n",
        plain("", there),
        plain("", cpus.get("max_vcpus").filter(|most| !most.is_null()).unwrap_or(asked)),
        if there == asked { String::new() } else { format!(", {} asked for", plain("", asked)) }
    );
    for (name, key) in [("firmware", "firmware"), ("kernel", "kernel"), ("command", "cmdline")] {
        if let Some(value) = config["payload"][key].as_str() {
            let _ = writeln!(text, "{name:<8} {value}");
        }
    }
    let mut rows = vec![["DEVICE", "PCI", "BACKED BY"].map(String::from).to_vec()];
    for (id, device) in info.get("device_tree").and_then(Value::as_object).into_iter().flatten() {
        rows.push(vec![id.clone(), plain("", &device["pci_bdf"]), backing(config, id)]);
    }
    if rows.len() > 1 {
        text.push('\n');
        text.push_str(&table(&rows));
    }
    text
}

/// What a device of the configuration is made of.
fn backing(config: &Value, id: &str) -> String {
    let parts = config.as_object().into_iter().flatten().flat_map(|(_, part)| match part {
        Value::Array(devices) => devices.iter().collect::<Vec<_>>(),
        device => vec![device],
    });
    let device = parts.into_iter().find(|device| device.get("id").and_then(Value::as_str) == Some(id));
    let names = ["path", "file", "tap", "socket", "src"];
    let found = device.and_then(|device| names.iter().find_map(|name| device.get(name)?.as_str()));
    found.unwrap_or("-").to_owned()
}

fn counters(devices: &Map<String, Value>) -> String {
    let mut rows = vec![["DEVICE", "COUNTER", "VALUE"].map(String::from).to_vec()];
    for (device, numbers) in devices {
        for (name, number) in numbers.as_object().into_iter().flatten() {
            // Of a latency, these are in microseconds, as cloud-hypervisor has them.
            let parts = ["_min", "_max", "_avg"];
            let latency = parts.iter().find_map(|part| name.strip_suffix(part));
            let latency = latency.filter(|latency| numbers.get(format!("{latency}_p50_ns")).is_some());
            let text = match (latency, number.as_u64()) {
                (Some(_), Some(microseconds)) => time(microseconds.saturating_mul(1000)),
                _ => plain(name, number),
            };
            rows.push(vec![device.clone(), name.clone(), text]);
        }
    }
    table(&rows)
}

/// Rows with their columns under each other. A column of numbers is on the right.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let number =
        |cell: &String| cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.contains(':');
    let right: Vec<bool> = (0..columns)
        .map(|column| {
            let cells: Vec<_> = rows.iter().skip(1).filter_map(|row| row.get(column)).collect();
            cells.iter().any(|cell| *cell != "-") && cells.into_iter().all(number)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let gap = " ".repeat(width(column).saturating_sub(cell.chars().count()));
            let (before, after) = if right[column] { (gap.as_str(), "") } else { ("", gap.as_str()) };
            let _ = write!(line, "{before}{cell}{after}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A part of a tree: values that belong together are aligned, parts of their own are indented below their name.
fn branch(text: &mut String, depth: usize, value: &Value) {
    let indent = "  ".repeat(depth);
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, item)| (index.to_string(), item)).collect()
        }
        _ => Vec::new(),
    };
    let is_leaf = |value: &Value| match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.iter().all(|item| !item.is_object() && !item.is_array()),
        _ => true,
    };
    let leaves = entries.iter().filter(|(_, value)| is_leaf(value));
    let width = leaves.map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let is_queue = value.get("max_size").is_some();
    for (name, value) in &entries {
        if is_leaf(value) {
            // What has a greatest size is a queue, whose sizes are numbers of descriptors (virtio 1.2, 2.7).
            let unit = if is_queue && name.ends_with("size") { "" } else { name.as_str() };
            let _ = writeln!(text, "{indent}{name:<width$}  {}", plain(unit, value));
        } else {
            let _ = writeln!(text, "{indent}{name}");
            branch(text, depth + 1, value);
        }
    }
}

/// A value without quotes; a number whose name says that it is of bytes or a time has its unit.
fn plain(name: &str, value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Bool(value) => if *value { "yes" } else { "no" }.into(),
        Value::Number(number) => match number.as_u64() {
            // A queue's size is a number of descriptors (virtio 1.2, 2.7).
            Some(number) if name == "queue_size" => number.to_string(),
            Some(number) if name.ends_with("bytes") || name.ends_with("size") => size(number),
            // A balloon's.
            Some(number) if name == "actual" => size(number),
            Some(number) if name == "ns" || name.ends_with("_ns") => time(number),
            _ => number.to_string(),
        },
        Value::Array(items) if !items.is_empty() => {
            items.iter().map(|item| plain(name, item)).collect::<Vec<_>>().join(", ")
        }
        Value::Object(fields) if !fields.is_empty() => value.to_string(),
        // Nothing, of whatever kind.
        _ => "-".into(),
    }
}

/// Bytes, with three digits at most before the point.
pub(super) fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        None => format!("{bytes} B"),
        Some((shift, unit)) if bytes.is_multiple_of(1 << shift) => format!("{} {unit}", bytes >> shift),
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
    }
}

/// A time, with three digits at most before the point where that can be.
pub(super) fn time(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::routes::{PREFIX, find};
    use serde_json::json;

    fn shown(name: &str, value: &Value) -> String {
        answer(find("GET", &format!("{PREFIX}{name}")).unwrap(), &value.to_string())
    }

    #[test]
    fn info_is_a_summary_and_a_table_of_devices() {
        let info = json!({
            "state": "Running",
            "memory_actual_size": 1536 << 20,
            "config": {
                "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
                "payload": {"kernel": "/k", "cmdline": null},
                "disks": [{"id": "data", "path": "/d.img"}],
            },
            "device_tree": {"__rng": {"pci_bdf": "0000:00:01.0"}, "data": {"pci_bdf": "0000:00:02.0"}},
        });
        assert_eq!(
            shown("vm.info", &info),
            "state    Running\n\
             CPUs     2 of at most 4\n\
             memory   1.5 GiB\n\
             kernel   /k\n\
             \n\
             DEVICE  PCI           BACKED BY\n\
             __rng   0000:00:01.0  -\n\
             data    0000:00:02.0  /d.img\n"
        );
    }

    #[test]
    fn cpus_are_those_that_are_there() {
        let mut info = json!({"state": "Running", "config": {"cpus": {"boot_vcpus": 2, "max_vcpus": 4}}, "cpus_actual": 3});
        assert!(shown("vm.info", &info).contains("\nCPUs     3 of at most 4, 2 asked for\n"));
        info["cpus_actual"] = json!(2);
        assert!(shown("vm.info", &info).contains("\nCPUs     2 of at most 4\n"));
    }

    #[test]
    fn a_queues_size_is_one_of_descriptors_and_nothing_is_a_hyphen() {
        let queue =
            json!({"size": 128, "max_size": 256, "counters": {}, "vector": null, "name": "", "list": []});
        assert_eq!(
            shown("vm.inspect", &queue),
            "counters  -\nlist      -\nmax_size  256\nname      -\nsize      128\nvector    -\n"
        );
    }

    #[test]
    fn trees_are_indented_and_numbers_have_units() {
        let tree = json!({"bar": {"0": {"size": 262144, "wait_p99_ns": 1500, "ready": true}}, "id": "x"});
        assert_eq!(
            shown("vm.inspect", &tree),
            "bar\n  0\n    ready        yes\n    size         256 KiB\n    wait_p99_ns  1.5 µs\nid  x\n"
        );
        let exit = json!({"count": 1, "ns": 7822});
        assert_eq!(shown("vm.inspect", &exit), "count  1\nns     7.8 µs\n");
        let counters = json!({"disk": {"read_bytes": 1024, "read_ops": 7}});
        assert_eq!(
            shown("vm.counters", &counters),
            "DEVICE  COUNTER     VALUE\ndisk    read_bytes  1 KiB\ndisk    read_ops        7\n"
        );
        let counters = json!({"disk": {"latency_avg": 36, "latency_p50_ns": 9200, "tries_max": 36}});
        assert_eq!(
            shown("vm.counters", &counters),
            "DEVICE  COUNTER           VALUE\n\
             disk    latency_avg     36.0 µs\n\
             disk    latency_p50_ns   9.2 µs\n\
             disk    tries_max            36\n"
        );
        let data = r#"{"id":3,"timestamp":{"secs":1,"nanos":500000000},"source":"vm","event":"device-added","properties":{"id":"data"}}"#;
        assert_eq!(event(data), "     3      1.500000 s  vm       device-added id=data\n");
    }
}
