//! The reference of the options, from their definitions: for `--help-option` and `docs/cli.md`.

use crate::api::event_monitor::EventMonitorConfig;
use crate::api::socket::ApiSocketConfig;
use crate::config::options::Field;
use crate::config::{
    BalloonConfig, ChannelConfig, ConsoleConfig, CpusConfig, CrashConfig, DebugConsoleConfig, DiskConfig,
    FwCfgConfig, GdbConfig, IvshmemConfig, LandlockConfig, MemoryConfig, MemoryZoneConfig, NetConfig,
    NumaConfig, Options, PciSegmentConfig, PlatformConfig, PmemConfig, RateLimitGroupConfig, RngConfig,
    RtcConfig, SerialConfig, VsockConfig, WatchdogConfig,
};
use crate::config::{PciPlaceConfig, PciPortConfig};
use std::fmt::Write;

struct Entry {
    name: &'static str,
    doc: &'static str,
    fields: &'static [Field],
    example: &'static str,
}

const fn entry<T: Options>(name: &'static str, example: &'static str) -> Entry {
    Entry { name, doc: T::DOC, fields: T::FIELDS, example }
}

const ENTRIES: &[Entry] = &[
    entry::<CpusConfig>("cpus", "--cpus boot=4,topology=2:2:1:1"),
    entry::<MemoryConfig>("memory", "--memory size=4G,hotplug_method=virtio-mem,hotplug_size=4G"),
    entry::<MemoryZoneConfig>(
        "memory-zone",
        "--memory size=0 --memory-zone id=near,size=2G,host_numa_node=0",
    ),
    entry::<NumaConfig>("numa", "--numa guest_numa_id=0,cpus=[0-1],memory_zones=[near],distances=[1@20]"),
    entry::<DiskConfig>("disk", "--disk path=root.img,num_queues=4,direct=on"),
    entry::<NetConfig>("net", "--net tap=tap0,mac=12:34:56:78:9a:bc"),
    entry::<GdbConfig>("gdb", "--gdb path=/run/guest-gdb.sock"),
    entry::<FwCfgConfig>(
        "fw-cfg-config",
        "--fw-cfg-config items=[name=opt/org.example/role,string=worker:name=opt/org.example/key,file=/etc/guest.key]",
    ),
    entry::<RngConfig>("rng", "--rng src=/dev/hwrng"),
    entry::<BalloonConfig>("balloon", "--balloon size=0,free_page_reporting=on"),
    entry::<PmemConfig>("pmem", "--pmem file=/var/lib/guest.pmem,size=1G"),
    entry::<RtcConfig>("rtc", "--rtc"),
    entry::<IvshmemConfig>("ivshmem", "--ivshmem path=/dev/shm/shared,size=1M"),
    entry::<VsockConfig>("vsock", "--vsock cid=3,socket=/run/guest.vsock"),
    entry::<WatchdogConfig>("watchdog", "--watchdog action=poweroff"),
    entry::<CrashConfig>("on-crash", "--on-crash coredump=/var/crash/guest.core,action=reset"),
    entry::<ConsoleConfig>("console", "--console socket=/run/guest.sock"),
    entry::<ChannelConfig>("channel", "--channel name=org.qemu.guest_agent.0,socket=/run/guest-agent.sock"),
    entry::<SerialConfig>("serial", "--serial file=/var/log/guest.log"),
    entry::<DebugConsoleConfig>("debug-console", "--debug-console file=/tmp/debug.log"),
    entry::<PlatformConfig>("platform", "--platform num_pci_segments=2,serial_number=X1"),
    entry::<PciSegmentConfig>("pci-segment", "--pci-segment pci_segment=1,mmio64_aperture_weight=8"),
    entry::<PciPortConfig>("pci-port", "--pci-port id=rp0 --disk path=data.img,bus=rp0"),
    entry::<PciPlaceConfig>("pci-place", "--pci-port id=rp0 --pci-place id=__rng,bus=rp0"),
    entry::<RateLimitGroupConfig>(
        "rate-limit-group",
        "--rate-limit-group id=slow,bw_size=10485760,bw_refill_time=1000",
    ),
    entry::<LandlockConfig>("landlock-rules", "--landlock-rules path=/srv/images,access=rw"),
    entry::<ApiSocketConfig>("api-socket", "--api-socket path=/run/vm.sock"),
    entry::<EventMonitorConfig>("event-monitor", "--event-monitor path=/var/log/vm-events.json"),
];

/// The options that have keys.
pub fn names() -> Vec<&'static str> {
    ENTRIES.iter().map(|entry| entry.name).collect()
}

/// The keys of one option, as text for a terminal.
pub fn option(name: &str) -> Option<String> {
    let entry = ENTRIES.iter().find(|entry| entry.name == name)?;
    let mut text = format!("--{}: {}\n\n  {}\n\n", entry.name, entry.doc.trim(), entry.example);
    for field in entry.fields {
        let _ = writeln!(text, "  {}={}\n        {}", field.key, field.hint, remarks(field));
    }
    Some(text)
}

/// The reference page of the command line, in Markdown.
pub fn markdown() -> String {
    let mut page = String::from(
        "# The command line\n\n\
         This page is generated from the definitions of the options; `cargo test -p vmm` keeps it true.\n\n\
         An option's value is a list of `key=value`, separated by commas. Sizes take the suffixes `K`, `M`, `G` and \
         `T` (powers of 1024). A list is written `[a,b]`, and a list of numbers also `[0-3]`. A text with commas or \
         brackets is put in double quotes.\n\n## Options\n\n| option | value | what it is |\n|---|---|---|\n",
    );
    for (name, value, help) in crate::cli::flags() {
        let value = if value.is_empty() { String::new() } else { format!("`{}`", value.replace('|', "\\|")) };
        let _ = writeln!(page, "| `{name}` | {value} | {} |", help.replace('|', "\\|"));
    }
    for entry in ENTRIES {
        let _ = write!(
            page,
            "\n## `--{}`\n\n{}\n\n```\n{}\n```\n\n| key | value | what it is |\n|---|---|---|\n",
            entry.name,
            entry.doc.trim(),
            entry.example
        );
        for field in entry.fields {
            let hint = field.hint.replace('|', "\\|");
            let _ = writeln!(page, "| `{}` | `{hint}` | {} |", field.key, remarks(field));
        }
    }
    page
}

fn remarks(field: &Field) -> String {
    let mut text = field.doc.trim().to_owned();
    if let Some((low, high)) = field.range {
        let _ = write!(text, " {low} to {high}.");
    }
    if let Some(default) = field.default.map(|default| default()).filter(|default| !default.is_empty()) {
        let _ = write!(text, " Default: {default}.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_is_what_the_definitions_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        if std::env::var_os("VIVARIUM_BLESS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == markdown(),
            "docs/cli.md is out of date: run VIVARIUM_BLESS=1 cargo test -p vmm reference_page"
        );
    }

    #[test]
    fn every_example_is_of_the_form_its_option_reads() {
        for entry in ENTRIES {
            let words = entry.example.split_whitespace().map(Into::into);
            let line = ["vivarium", "--kernel", "k"].map(Into::into).into_iter().chain(words);
            if let Err(error) = crate::cli::parse(line) {
                // Some refer to options that are not part of the example.
                assert!(error.0.contains("there is no "), "{}: {}", entry.name, error.0);
            }
        }
    }
}
