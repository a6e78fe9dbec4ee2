//! What was counted and timed, for whoever asks: `vm.counters` and Prometheus show the same [`Sample`]s.

mod help;

use machine::inspect::{Value, json};
use machine::metrics::{Figure, Reading};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The figures of one device, queue, worker or CPU.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its name in `vm.counters`: a device's id, or what begins with the id or with an underscore.
    pub key: String,
    /// The kind of thing: the first part of the name of a Prometheus metric.
    pub kind: &'static str,
    /// What tells it from others of its kind.
    pub labels: Vec<(&'static str, String)>,
    /// The figures.
    pub readings: Vec<Reading>,
}

/// The body of `vm.counters`: an object of numbers for each sample. A latency is several: least, greatest and mean in
/// microseconds, the percentiles in nanoseconds.
pub fn counters(samples: &[Sample]) -> Value {
    let mut tree = serde_json::Map::new();
    for sample in samples {
        let mut numbers = serde_json::Map::new();
        for Reading { name, figure } in &sample.readings {
            match figure {
                Figure::Total(number) | Figure::Level(number) => {
                    numbers.insert((*name).to_owned(), json!(number));
                }
                Figure::Latency(latency) => {
                    for (part, number) in [
                        ("min", latency.min_ns / 1000),
                        ("max", latency.max_ns / 1000),
                        ("avg", latency.mean_ns() / 1000),
                        ("p50_ns", latency.p50_ns),
                        ("p99_ns", latency.p99_ns),
                        ("p999_ns", latency.p999_ns),
                    ] {
                        numbers.insert(format!("{name}_{part}"), json!(number));
                    }
                }
            }
        }
        tree.insert(sample.key.clone(), Value::Object(numbers));
    }
    Value::Object(tree)
}

/// The content type of [`prometheus`].
pub const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The body of `/metrics`: Prometheus' text format (version 0.0.4). Times are in seconds.
pub fn prometheus(samples: &[Sample]) -> String {
    // The lines of a metric stand together, after its type.
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for sample in samples {
        let pairs = sample.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
        let pairs = pairs.collect::<Vec<_>>();
        let labels = braced(&pairs);
        for Reading { name, figure } in &sample.readings {
            let help = help::of(sample.kind, name);
            let (name, scale) = match name.strip_suffix("_ns") {
                Some(name) => (format!("vivarium_{}_{name}_seconds", sample.kind), true),
                None => (format!("vivarium_{}_{name}", sample.kind), false),
            };
            let number = |number: u64| if scale { seconds(number) } else { number.to_string() };
            let mut add = |name: String, kind, lines: String| {
                let metric = || Metric { kind, help, lines: String::new() };
                metrics.entry(name).or_insert_with(metric).lines.push_str(&lines);
            };
            match figure {
                Figure::Total(total) => {
                    let name = format!("{name}_total");
                    let line = format!("{name}{labels} {}\n", number(*total));
                    add(name, "counter", line);
                }
                Figure::Level(level) => {
                    let line = format!("{name}{labels} {}\n", number(*level));
                    add(name, "gauge", line);
                }
                Figure::Latency(latency) => {
                    let name = format!("{name}_seconds");
                    let mut lines = String::new();
                    for (quantile, ns) in
                        [("0.5", latency.p50_ns), ("0.99", latency.p99_ns), ("0.999", latency.p999_ns)]
                    {
                        let labels = braced(&[&pairs[..], &[format!("quantile=\"{quantile}\"")]].concat());
                        // What was never timed has no percentile.
                        let value = if latency.count == 0 { "NaN".to_owned() } else { seconds(ns) };
                        // Writing to a string cannot fail.
                        let _ = writeln!(lines, "{name}{labels} {value}");
                    }
                    let _ = writeln!(lines, "{name}_sum{labels} {}", seconds(latency.sum_ns));
                    let _ = writeln!(lines, "{name}_count{labels} {}", latency.count);
                    add(name, "summary", lines);
                }
            }
        }
    }
    let mut text = String::new();
    for (name, Metric { kind, help, lines }) in metrics {
        if let Some(help) = help {
            let _ = writeln!(text, "# HELP {name} {help}");
        }
        let _ = write!(text, "# TYPE {name} {kind}\n{lines}");
    }
    text
}

struct Metric {
    kind: &'static str,
    help: Option<&'static str>,
    lines: String,
}

fn braced(labels: &[String]) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) }
}

/// What there is to tell of the process and its machine as a whole: `state` as [`VmState`](crate::api::request::VmState) has it, or none.
pub fn overview(state: &str, cpus: u32, memory: u64) -> Vec<Sample> {
    let sample = |kind, labels, readings| Sample { key: format!("_{kind}"), kind, labels, readings };
    vec![
        sample(
            "build",
            vec![("version", env!("CARGO_PKG_VERSION").to_owned())],
            vec![Reading::level("info", 1)],
        ),
        sample("vm", vec![("state", state.to_owned())], vec![Reading::level("state", 1)]),
        sample(
            "vm",
            Vec::new(),
            vec![Reading::level("cpus", cpus.into()), Reading::level("memory_bytes", memory)],
        ),
    ]
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::metrics::Histogram;

    fn samples() -> Vec<Sample> {
        let histogram = Histogram::default();
        histogram.record(5_000);
        let disk = |id: &str| Sample {
            key: id.to_owned(),
            kind: "disk",
            labels: vec![("device", id.to_owned())],
            readings: vec![
                Reading::total("read_bytes", 4096),
                Reading::total("poll_ns", 1_500_000_000),
                Reading::level("depth", 3),
                Reading::latency("read_latency", [&histogram]),
            ],
        };
        vec![disk("_disk0"), disk("a\"b")]
    }

    #[test]
    fn counters_are_objects_of_numbers() {
        let tree = counters(&samples());
        assert_eq!(tree["_disk0"]["read_bytes"], 4096);
        assert_eq!(tree["_disk0"]["read_latency_avg"], 5);
        assert_eq!(tree["_disk0"]["read_latency_p99_ns"], 5000);
        let objects = tree.as_object().unwrap().values();
        assert!(objects.flat_map(|object| object.as_object().unwrap().values()).all(Value::is_u64));
    }

    #[test]
    fn prometheus_gets_each_metric_in_one_piece() {
        let text = prometheus(&samples());
        let expected = "\
# TYPE vivarium_disk_depth gauge
vivarium_disk_depth{device=\"_disk0\"} 3
vivarium_disk_depth{device=\"a\\\"b\"} 3
# TYPE vivarium_disk_poll_seconds_total counter
vivarium_disk_poll_seconds_total{device=\"_disk0\"} 1.500000000
vivarium_disk_poll_seconds_total{device=\"a\\\"b\"} 1.500000000
# HELP vivarium_disk_read_bytes_total Bytes that the guest read.
# TYPE vivarium_disk_read_bytes_total counter
vivarium_disk_read_bytes_total{device=\"_disk0\"} 4096
";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains(
            "\nvivarium_disk_read_latency_seconds{device=\"_disk0\",quantile=\"0.99\"} 0.000005000\n"
        ));
        assert!(text.contains("\nvivarium_disk_read_latency_seconds_count{device=\"_disk0\"} 1\n"));
        let idle = Histogram::default();
        let readings = vec![Reading::level("cpus", 2), Reading::latency("wait", [&idle])];
        let text = prometheus(&[Sample { key: "_vm".into(), kind: "vm", labels: Vec::new(), readings }]);
        assert!(text.contains("\nvivarium_vm_cpus 2\n"), "{text}");
        assert!(text.contains("\nvivarium_vm_wait_seconds{quantile=\"0.99\"} NaN\n"), "{text}");
    }
}
