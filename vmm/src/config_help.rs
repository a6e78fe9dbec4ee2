//! The reference of the options, from their definitions: for `--help-option` and `docs/cli.md`.

use crate::api::event_monitor::EventMonitorConfig;
use crate::api::socket::ApiSocketConfig;
use crate::config::options::Field;
use crate::config::{
    BalloonConfig, ChannelOption, ConsoleConfig, CpusConfig, CrashConfig, DebugConsoleConfig, DiskConfig,
    FwCfgConfig, GdbConfig, IvshmemConfig, LandlockConfig, MemConfig, MemoryConfig, MemoryZoneConfig,
    NetConfig, NumaConfig, Options, PciSegmentConfig, PlatformConfig, PmemConfig, PvpanicConfig,
    RateLimitGroupConfig, RngConfig, RtcConfig, SerialConfig, VsockConfig, WatchdogConfig,
};
use crate::config::{PciPlaceConfig, PciPortConfig};
use std::fmt::Write;

/// An option that has keys.
pub struct Entry {
    /// Its name, without hyphens.
    pub name: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// Its keys.
    pub fields: &'static [Field],
    /// A use of it.
    pub example: &'static str,
}

const fn of<T: Options>(name: &'static str, example: &'static str) -> Entry {
    Entry { name, doc: T::DOC, fields: T::FIELDS, example }
}

/// The options that have keys.
pub const ENTRIES: &[Entry] = &[
    of::<CpusConfig>("cpus", "--cpus boot=4,topology=2:2:1:1"),
    of::<MemoryConfig>("memory", "--memory size=4G,hotplug_method=virtio-mem,hotplug_size=4G"),
    of::<MemoryZoneConfig>("memory-zone", "--memory size=0 --memory-zone id=near,size=2G,host_numa_node=0"),
    of::<NumaConfig>("numa", "--numa guest_numa_id=0,cpus=[0-1],memory_zones=[near],distances=[1@20]"),
    of::<DiskConfig>("disk", "--disk path=root.img,num_queues=4,direct=on"),
    of::<NetConfig>("net", "--net tap=tap0,mac=12:34:56:78:9a:bc"),
    of::<GdbConfig>("gdb", "--gdb path=/run/guest-gdb.sock"),
    of::<FwCfgConfig>(
        "fw-cfg-config",
        "--fw-cfg-config items=[name=opt/org.example/role,string=worker:name=opt/org.example/key,file=/etc/guest.key]",
    ),
    of::<RngConfig>("rng", "--rng src=/dev/hwrng"),
    of::<MemConfig>(
        "mem",
        "--memory size=1G,hotplug_method=virtio-mem,hotplug_size=3G --mem pci_device_id=9",
    ),
    of::<BalloonConfig>("balloon", "--balloon size=0,free_page_reporting=on"),
    of::<PmemConfig>("pmem", "--pmem file=/var/lib/guest.pmem,size=1G"),
    of::<RtcConfig>("rtc", "--rtc"),
    of::<IvshmemConfig>("ivshmem", "--ivshmem path=/dev/shm/shared,size=1M"),
    of::<VsockConfig>("vsock", "--vsock cid=3,socket=/run/guest.vsock"),
    of::<WatchdogConfig>("watchdog", "--watchdog action=poweroff"),
    of::<PvpanicConfig>("pvpanic", "--pvpanic pci_device_id=9"),
    of::<CrashConfig>("on-crash", "--on-crash coredump=/var/crash/guest.core,action=reset"),
    of::<ConsoleConfig>("console", "--console socket=/run/guest.sock"),
    of::<ChannelOption>("channel", "--channel name=org.qemu.guest_agent.0,socket=/run/guest-agent.sock"),
    of::<SerialConfig>("serial", "--serial file=/var/log/guest.log"),
    of::<DebugConsoleConfig>("debug-console", "--debug-console file=/tmp/debug.log"),
    of::<PlatformConfig>("platform", "--platform num_pci_segments=2,serial_number=X1"),
    of::<PciSegmentConfig>("pci-segment", "--pci-segment pci_segment=1,mmio64_aperture_weight=8"),
    of::<PciPortConfig>("pci-port", "--pci-port id=rp0 --disk path=data.img,bus=rp0"),
    of::<PciPlaceConfig>("pci-place", "--pci-port id=rp0 --pci-place id=__rng,bus=rp0"),
    of::<RateLimitGroupConfig>(
        "rate-limit-group",
        "--rate-limit-group id=slow,bw_size=10485760,bw_refill_time=1000",
    ),
    of::<LandlockConfig>("landlock-rules", "--landlock-rules path=/srv/images,access=rw"),
    of::<ApiSocketConfig>("api-socket", "--api-socket path=/run/vm.sock"),
    of::<EventMonitorConfig>("event-monitor", "--event-monitor path=/var/log/vm-events.json"),
];

/// How the values of options are written, in Markdown.
pub const SYNTAX: &str = "An option's value is a list of `key=value`, separated by commas. Sizes take the suffixes `K`, `M`, `G` and \
    `T` (powers of 1024). A list is written `[a,b]`, and a list of numbers also `[0-3]`. A text with commas or \
    brackets is put in double quotes.";

/// The names of the options that have keys.
pub fn names() -> Vec<&'static str> {
    ENTRIES.iter().map(|entry| entry.name).collect()
}

/// The option of that name, if it has keys.
pub fn entry(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.name == name)
}

/// The keys of one option, as text for a terminal.
pub fn option(name: &str) -> Option<String> {
    let entry = entry(name)?;
    let mut text = format!("--{}: {}\n\n  {}\n\n", entry.name, entry.doc.trim(), entry.example);
    for field in entry.fields {
        let _ = writeln!(text, "  {}={}\n        {}", field.key, field.hint, remarks(field));
    }
    Some(text)
}

/// The reference page of the command line, in Markdown.
pub fn markdown() -> String {
    let mut page = format!(
        "# The command line\n\n\
         This page is generated from the definitions of the options; `cargo test -p vmm` keeps it true.\n\n\
         `vivarium` runs a machine. {SYNTAX}\n\n\
         `vivarium jail` runs one with as little of the host as it needs, and `vivarium ctl` drives one that runs: both are \
         [below](#vivarium-jail).\n\n## Options\n\n"
    );
    arguments(&mut page, crate::cli::flags());
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
    let _ = write!(page, "\n## `vivarium jail`\n\n{} See [sandbox.md](sandbox.md).\n\n", crate::jail::ABOUT);
    arguments(&mut page, crate::cli::arguments(&crate::jail::command()));
    let _ = write!(page, "\n## `vivarium ctl`\n\n{} See [api.md](api.md).\n\n", crate::ctl::ABOUT);
    let ctl = crate::ctl::command("vivarium ctl");
    arguments(&mut page, crate::cli::arguments(&ctl));
    page.push_str("\n| verb | what it does |\n|---|---|\n");
    for verb in ctl.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        let synopsis = crate::cli::synopsis(verb).replace('|', "\\|");
        let _ = writeln!(page, "| `{synopsis}` | {about} |");
    }
    page
}

fn arguments(page: &mut String, arguments: Vec<(String, String, String)>) {
    page.push_str("| option | value | what it is |\n|---|---|---|\n");
    for (name, value, help) in arguments {
        let value = if value.is_empty() { String::new() } else { format!("`{}`", value.replace('|', "\\|")) };
        let _ = writeln!(page, "| `{name}` | {value} | {} |", help.replace('|', "\\|"));
    }
}

/// What a key means, its range and its default.
pub fn remarks(field: &Field) -> String {
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
