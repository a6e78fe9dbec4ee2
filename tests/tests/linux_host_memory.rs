//! Guest memory, seen from the host: what its kernel was told of it, and that huge pages are reserved.
//!
//! The guest is the bare-metal one; what is wanted here is a host whose huge pages may be used up.

use std::path::{Path, PathBuf};
use vivarium_tests::{Monitor, MonitorBuilder};

/// A machine with 192 MiB that has said hello and halts.
fn start(memory: &[&str]) -> Monitor {
    let mut monitor =
        MonitorBuilder::bare("hello; end=halt").replace("--memory", memory[0]).args(&memory[1..]).start();
    monitor.wait_for("@@ hello");
    monitor
}

/// The lines on the mapping of guest memory in a file of `/proc/PID`: `smaps`.
fn mapping(monitor: &Monitor, kib: u64) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps", monitor.pid())).unwrap();
    let mut mapping = Vec::new();
    for line in text.lines() {
        // A mapping's first line begins with its addresses.
        if line.split(' ').next().is_some_and(|word| word.contains('-') && !word.contains(':')) {
            mapping.clear();
        }
        mapping.push(line.to_owned());
        if line.starts_with("VmFlags:")
            && mapping.iter().any(|line| line.starts_with("Size:") && number(line) == kib)
        {
            return mapping;
        }
    }
    panic!("no mapping has {kib} KiB:\n{text}");
}

fn number(line: &str) -> u64 {
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn flags(mapping: &[String]) -> Vec<&str> {
    mapping.last().unwrap().split_whitespace().skip(1).collect()
}

#[test]
fn the_host_is_told_of_memory_what_the_options_say() {
    for (option, has, has_not) in [
        ("size=192M", "hg", "mg"),
        ("size=192M,thp=off", "nh", "hg"),
        ("size=192M,shared=on,thp=off", "nh", "hg"),
        ("size=192M,mergeable=on", "mg", "nh"),
    ] {
        if has == "mg" && !Path::new("/sys/kernel/mm/ksm").exists() {
            println!("@@SKIP this host's kernel merges no pages");
            continue;
        }
        let monitor = start(&[option]);
        let mapping = mapping(&monitor, 192 << 10);
        let flags = flags(&mapping);
        assert!(flags.contains(&has) && !flags.contains(&has_not), "{option}: {mapping:?}");
    }
}

#[test]
fn a_zone_is_of_the_hosts_node() {
    if !Path::new("/sys/devices/system/node/node0").exists() {
        println!("@@SKIP this host's kernel knows no nodes");
        return;
    }
    let monitor = start(&["size=0", "--memory-zone", "id=near,size=192M,host_numa_node=0"]);
    let mapping = mapping(&monitor, 192 << 10);
    let start = mapping[0].split('-').next().unwrap();
    let nodes = std::fs::read_to_string(format!("/proc/{}/numa_maps", monitor.pid())).unwrap();
    let line =
        nodes.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {nodes}"));
    assert!(line.contains(" bind:0 "), "{line}");
}

#[test]
fn prefaulted_memory_is_there_before_the_guest_uses_it() {
    // More than one thread takes at a time.
    for option in
        ["size=192M,prefault=on", "size=192M,prefault=on,shared=on", "size=192M,prefault=on,thp=off"]
    {
        let monitor = start(&[option]);
        let mapping = mapping(&monitor, 192 << 10);
        let resident = mapping.iter().find(|line| line.starts_with("Rss:")).unwrap();
        assert_eq!(number(resident), 192 << 10, "{option}");
    }
}

/// Huge pages of 2 MiB that the host keeps for this test.
struct HugePages(PathBuf, String);

impl HugePages {
    fn keep(count: u64) -> Option<Self> {
        let folder = PathBuf::from("/sys/kernel/mm/hugepages/hugepages-2048kB");
        let before = std::fs::read_to_string(folder.join("nr_hugepages")).unwrap_or_default();
        let free = |pages: &Self| pages.count("free_hugepages") - pages.count("resv_hugepages");
        if std::fs::write(folder.join("nr_hugepages"), count.to_string()).is_err() {
            println!("@@SKIP this host's huge pages cannot be set");
            return None;
        }
        let pages = Self(folder, before);
        if free(&pages) != count {
            println!("@@SKIP this host's huge pages are used by others, or it has too few");
            return None;
        }
        Some(pages)
    }

    fn count(&self, name: &str) -> u64 {
        std::fs::read_to_string(self.0.join(name)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("nr_hugepages"), &self.1);
    }
}

#[test]
fn huge_pages_are_reserved_before_the_guest_uses_them() {
    let Some(pages) = HugePages::keep(96) else { return };
    let refused = |memory: &[&str], wanted: &str| {
        let builder = MonitorBuilder::bare("hello").replace("--memory", memory[0]).args(&memory[1..]);
        let exit = builder.start().wait();
        assert_eq!((exit.status, exit.errors.lines().count()), (Some(1), 1), "{memory:?}: {}", exit.errors);
        assert!(exit.errors.contains(wanted), "{memory:?}: {}", exit.errors);
    };
    for kind in ["", ",shared=on"] {
        let monitor = start(&[&format!("size=128M,hugepages=on{kind}")]);
        assert!(flags(&mapping(&monitor, 128 << 10)).contains(&"ht"));
        let taken = 96 - pages.count("free_hugepages") + pages.count("resv_hugepages");
        assert_eq!(taken, 64, "those not used yet are reserved");
        refused(
            &[&format!("size=128M,hugepages=on{kind}")],
            "needs 64 huge pages of 2M, and the host has 32 free; reserve them with: echo 128 >",
        );
    }
    // Each zone alone would have enough.
    let zone = |id: &str| format!("id={id},size=128M,hugepages=on");
    refused(
        &["size=0", "--memory-zone", &zone("a"), &zone("b")],
        "--memory-zone id=b,size=128M,hugepages=on: needs 64",
    );
    let monitor = start(&["size=192M,hugepages=on,prefault=on"]);
    assert_eq!((pages.count("free_hugepages"), pages.count("resv_hugepages")), (0, 0));
    drop(monitor);
}
