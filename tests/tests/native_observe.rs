//! The figures of a running machine, which are the same wherever they are shown.

use serde_json::Value;
use std::path::Path;
use vivarium_tests::ctl::done;
use vivarium_tests::host::{Folder, Tap};
use vivarium_tests::{MonitorBuilder, Report};

/// A number of nanoseconds as Prometheus is told it.
fn seconds(ns: &Value) -> String {
    let ns = ns.as_u64().unwrap();
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// What is shown of a machine, wherever it is.
struct Shown {
    counters: Value,
    functions: Value,
    metrics: String,
    rates: Value,
}

impl Shown {
    fn of(socket: &Path) -> Self {
        let json = |words: &[&str]| {
            serde_json::from_str::<Value>(&done(socket, &[&["--json"], words].concat())).unwrap()
        };
        Self {
            counters: json(&["counters"]),
            functions: json(&["inspect", "pci"]),
            metrics: done(socket, &["metrics"]),
            rates: json(&["top", "--interval", "100", "--count", "1"]),
        }
    }

    fn function(&self, id: &str) -> &Value {
        let mut functions = self.functions.as_object().unwrap().values();
        functions.find(|function| function["id"] == id).unwrap()
    }

    /// Prometheus is told this of a device.
    fn tells(&self, name: &str, device: &str, labels: &str, value: &str) {
        let line = format!("vivarium_{name}{{device=\"{device}\"{labels}}} {value}");
        assert!(self.metrics.lines().any(|told| told == line), "{line} is not in:\n{}", self.metrics);
    }

    /// A latency of a queue is the one that inspection shows, and is of so many requests.
    fn has_latency(&self, device: &str, queue: usize, name: &str, inspected: &Value, requests: u64) {
        let (key, labels) = (format!("{device}.queue{queue}"), format!(",queue=\"{queue}\""));
        assert_eq!(inspected["count"], requests, "{key}: {inspected}");
        self.tells(&format!("queue_{name}_seconds_count"), device, &labels, &requests.to_string());
        for (percentile, quantile) in [("p50_ns", "0.5"), ("p99_ns", "0.99"), ("p999_ns", "0.999")] {
            let latency = &inspected[percentile];
            assert!(latency.as_u64() > Some(0), "{key}: {inspected}");
            assert_eq!(&self.counters[&key][format!("{name}_{percentile}")], latency);
            let labels = format!("{labels},quantile=\"{quantile}\"");
            self.tells(&format!("queue_{name}_seconds"), device, &labels, &seconds(latency));
        }
        assert_eq!(self.rates["devices"][&key]["p99_since_boot_ns"], inspected["p99_ns"]);
    }
}

#[test]
fn a_disk_that_was_read_has_the_same_figures_wherever_they_are_shown() {
    const BLOCK: u64 = 4096;
    let folder = Folder::on_disk();
    let (socket, image) = (folder.join("api.sock"), folder.sparse("image", 16 << 20));
    let mut monitor = MonitorBuilder::bare("blk-randread bs=4K qd=4 queues=2 n=3000; hello; end=spin")
        .args(["--disk", &format!("path={},id=data,num_queues=2", image.display())])
        .arg("--api-socket")
        .arg(&socket)
        .start();
    monitor.wait_for("@@ hello");
    let read = Report::new(monitor.output()).number("blk-randread", "ops");
    let shown = Shown::of(&socket);
    let disk = shown.function("data");
    let mut sum = 0;
    for queue in 0..2 {
        let (here, key) = (&disk["device"]["queues"][queue], format!("data.queue{queue}"));
        let (counted, labels) = (&shown.counters[&key], format!(",queue=\"{queue}\""));
        let reads = here["reads"].as_u64().unwrap();
        assert!(reads > 0, "each queue is read from: {here}");
        sum += reads;
        assert_eq!(here["read_bytes"], reads * BLOCK);
        assert_eq!((&counted["read_ops"], &counted["requests"]), (&reads.into(), &reads.into()));
        // A byte of each request is its status.
        assert_eq!(counted["written_bytes"], reads * (BLOCK + 1));
        assert_eq!(disk["queue"][queue]["counters"]["written_bytes"], counted["written_bytes"]);
        shown.tells("queue_read_ops_total", "data", &labels, &reads.to_string());
        shown.tells("queue_written_bytes_total", "data", &labels, &counted["written_bytes"].to_string());
        shown.has_latency("data", queue, "read_latency", &here["read_latency"], reads);
        assert!(disk["queue"][queue]["counters"].get("latency").is_none(), "they are timed once");
    }
    let whole = &shown.counters["data"];
    assert_eq!((&whole["read_ops"], &whole["read_bytes"]), (&sum.into(), &(sum * BLOCK).into()));
    assert_eq!(sum, read, "as many as the guest says");
    shown.tells("disk_read_ops_total", "data", "", &sum.to_string());
    shown.tells("disk_read_bytes_total", "data", "", &(sum * BLOCK).to_string());
    for (name, quantile) in [("p50_ns", "0.5"), ("p99_ns", "0.99")] {
        let latency = &whole[format!("read_latency_{name}")];
        let labels = format!(",quantile=\"{quantile}\"");
        shown.tells("disk_read_latency_seconds", "data", &labels, &seconds(latency));
    }
    assert_eq!(shown.rates["devices"]["data"]["p99_since_boot_ns"], whole["read_latency_p99_ns"]);
    done(&socket, &["shutdown-vmm"]);
    assert_eq!(monitor.wait().status, Some(0));
}

#[test]
fn queues_of_other_devices_have_the_same_figures_wherever_they_are_shown() {
    const FRAMES: u64 = 500;
    let folder = Folder::new();
    let socket = folder.join("api.sock");
    let tap = Tap::new("vivt3", 1, "192.0.2.1/24");
    let mut monitor = MonitorBuilder::bare(&format!("net-tx n={FRAMES}; rng bytes=64; hello; end=spin"))
        .args(["--net", &format!("tap={},id=net", tap.name)])
        .arg("--api-socket")
        .arg(&socket)
        .start();
    monitor.wait_for("@@ hello");
    let timed = |shown: &Shown, (id, queue): (&str, usize)| {
        let counters = &shown.function(id)["queue"][queue]["counters"];
        counters["latency"]["count"] == counters["used"]
    };
    // A request is timed after its driver was told.
    while let shown = Shown::of(&socket)
        && ![("net", 1), ("__rng", 0)].into_iter().all(|queue| timed(&shown, queue))
    {
        assert!(monitor.elapsed().as_secs() < 60, "the requests are not timed");
    }
    let shown = Shown::of(&socket);
    for (id, queue, least) in [("net", 1, FRAMES), ("__rng", 0, 1)] {
        let inspected = &shown.function(id)["queue"][queue]["counters"];
        let requests = shown.counters[format!("{id}.queue{queue}")]["requests"].as_u64().unwrap();
        assert!(requests >= least, "{id}: {inspected}");
        assert_eq!(inspected["used"], requests);
        shown.has_latency(id, queue, "latency", &inspected["latency"], requests);
    }
    done(&socket, &["shutdown-vmm"]);
    assert_eq!(monitor.wait().status, Some(0));
}
