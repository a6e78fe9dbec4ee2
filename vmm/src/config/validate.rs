//! What concerns several settings at once, or needs the host to be asked.

use super::disk::QueueAffinity;
use super::{ByteSize, ConsoleMode, Device, FwCfgConfig, IvshmemConfig, SerialModel, VmConfig};
use crate::machine::HAS_CHOICES;
use crate::pmem::UNIT as PMEM_UNIT;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The least memory a machine can have.
pub const MINIMUM_MEMORY: ByteSize = ByteSize(64 << 20);

/// A setting that cannot be: which option, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The option at fault, with its value, as in `--cpus boot=0`.
    pub option: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.option, self.reason)
    }
}

impl std::error::Error for ConfigError {}

fn error<T>(option: impl Into<String>, reason: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError { option: option.into(), reason: reason.into() })
}

impl VmConfig {
    /// As [`VmConfig::validate`], and that a guest that starts finds every device. While it runs, functions of a device come one after
    /// the other.
    ///
    /// # Errors
    /// The first setting that cannot be.
    pub fn validate_start(&self) -> Result<(), ConfigError> {
        self.validate()?;
        self.validate_functions()
    }

    /// Checks the settings against each other. What only the host can say (files, devices, limits of the
    /// hypervisor) is found when the machine is made.
    ///
    /// # Errors
    /// The first setting that cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_ranges()?;
        self.validate_names()?;
        self.validate_cpus()?;
        self.validate_memory()?;
        self.validate_numa()?;
        self.payload.check()?;
        self.payload.fw_cfg_config.iter().try_for_each(FwCfgConfig::check)?;
        self.validate_devices()?;
        if self.landlock_rules.iter().any(|rule| rule.path.as_os_str().is_empty()) {
            return error("--landlock-rules", "has no path; add path=<file or folder>");
        }
        if let Some(rule) = self.landlock_rules.first().filter(|_| !self.landlock_enable) {
            return error(
                format!("--landlock-rules path={}", rule.path.display()),
                "there is no --landlock, without which rules mean nothing; add --landlock, or leave them out",
            );
        }
        self.validate_pci_ports()?;
        self.validate_platform()
    }

    fn validate_cpus(&self) -> Result<(), ConfigError> {
        let cpus = &self.cpus;
        if !HAS_CHOICES {
            cpus.check_no_features()?;
        }
        if cpus.boot_vcpus == 0 {
            return error("--cpus boot=0", "a machine needs at least one CPU");
        }
        let limit = cpus.limit();
        if limit < cpus.boot_vcpus {
            return error(
                format!("--cpus max={limit}"),
                format!("is less than boot={}; raise max or leave it out", cpus.boot_vcpus),
            );
        }
        if let Some(topology) = cpus.topology
            && topology.cpus() != u64::from(limit)
        {
            let shape = super::options::Setting::show(&topology);
            return error(
                format!("--cpus topology={shape}"),
                format!(
                    "makes {} CPUs, and the machine has {limit}; the product must be max (or boot, without max)",
                    topology.cpus()
                ),
            );
        }
        let mut seen = BTreeSet::new();
        for affinity in &cpus.affinity {
            let option = format!("--cpus affinity={}", super::options::Setting::show(affinity));
            if affinity.vcpu >= limit {
                return error(
                    option,
                    format!("there is no CPU {}; the last is {}", affinity.vcpu, limit - 1),
                );
            }
            if affinity.host_cpus.is_empty() {
                return error(option, "names no host CPU; write it like 0@[1,2]");
            }
            if !seen.insert(affinity.vcpu) {
                return error(option, "is given twice for one CPU");
            }
        }
        Ok(())
    }

    fn validate_memory(&self) -> Result<(), ConfigError> {
        let memory = &self.memory;
        let zones = memory.zones.as_deref().unwrap_or_default();
        memory.check_hotplug()?;
        if let Some(balloon) = &self.balloon {
            balloon.check(memory.boot_size())?;
        }
        if zones.is_empty() {
            check_memory_size("--memory", memory.size, memory.hugepages, memory.hugepage_size)?;
            if memory.size < MINIMUM_MEMORY {
                return error(
                    format!("--memory size={}", memory.size),
                    format!("the least a machine can have is {MINIMUM_MEMORY}"),
                );
            }
            return Ok(());
        }
        if memory.size.0 != 0 {
            return error(
                format!("--memory size={}", memory.size),
                "all of the memory is in zones; write --memory size=0",
            );
        }
        let mut names = BTreeSet::new();
        let mut total = 0u64;
        for zone in zones {
            let option = format!("--memory-zone id={}", zone.id);
            if zone.id.is_empty() {
                return error("--memory-zone", "has no id; add id=<name>");
            }
            if !names.insert(&zone.id) {
                return error(option, "is given twice; zones need different names");
            }
            check_memory_size(&option, zone.size, zone.hugepages, zone.hugepage_size)?;
            if zone.file.is_some() && zone.hugepages {
                return error(option, "has both file and hugepages; map a file in a hugetlbfs instead");
            }
            total = total.saturating_add(zone.size.0);
        }
        if total < MINIMUM_MEMORY.0 {
            return error(
                "--memory-zone",
                format!(
                    "the zones are {} together; the least a machine can have is {MINIMUM_MEMORY}",
                    ByteSize(total)
                ),
            );
        }
        Ok(())
    }

    fn validate_numa(&self) -> Result<(), ConfigError> {
        let zones: BTreeSet<&str> = self.memory.zones.iter().flatten().map(|zone| zone.id.as_str()).collect();
        let nodes: BTreeSet<u32> = self.numa.iter().map(|node| node.guest_numa_id).collect();
        if let Some(id) = twice(self.numa.iter().map(|node| node.guest_numa_id)) {
            return error(
                format!("--numa guest_numa_id={id}"),
                "is given twice; nodes need different numbers",
            );
        }
        let (mut cpu_owner, mut zone_owner) = (BTreeMap::new(), BTreeMap::new());
        for node in &self.numa {
            let id = node.guest_numa_id;
            let option = format!("--numa guest_numa_id={id}");
            for cpu in &node.cpus {
                if *cpu >= self.cpus.limit() {
                    return error(
                        option,
                        format!("there is no CPU {cpu}; the last is {}", self.cpus.limit() - 1),
                    );
                }
                if let Some(other) = cpu_owner.insert(cpu, id) {
                    return error(option, format!("CPU {cpu} is in node {other} already"));
                }
            }
            for zone in &node.memory_zones {
                if !zones.contains(zone.as_str()) {
                    return error(
                        option,
                        format!("there is no memory zone \"{zone}\"; add --memory-zone id={zone}"),
                    );
                }
                if let Some(other) = zone_owner.insert(zone, id) {
                    return error(option, format!("memory zone \"{zone}\" is in node {other} already"));
                }
            }
            for distance in &node.distances {
                if !nodes.contains(&distance.destination) {
                    return error(
                        option,
                        format!("there is no node {} to have a distance to", distance.destination),
                    );
                }
                if distance.distance < 10 {
                    return error(
                        option,
                        format!("distance {} is below 10, the distance to itself", distance.distance),
                    );
                }
                if distance.destination == id && distance.distance != 10 {
                    return error(option, "the distance of a node to itself is 10");
                }
            }
            for segment in &node.pci_segments {
                self.check_segment(&option, *segment)?;
            }
        }
        if !self.numa.is_empty() {
            if let Some(zone) = zones.iter().find(|zone| !zone_owner.keys().any(|owned| owned == *zone)) {
                return error(
                    format!("--memory-zone id={zone}"),
                    "is in no NUMA node; add it to a --numa memory_zones",
                );
            }
            if let Some(cpu) = (0..self.cpus.limit()).find(|cpu| !cpu_owner.contains_key(cpu)) {
                return error("--numa", format!("CPU {cpu} is in no node; add it to a node's cpus"));
            }
            if zones.is_empty() {
                return error(
                    "--numa",
                    "nodes take their memory from zones; write --memory size=0 and --memory-zone",
                );
            }
        }
        Ok(())
    }

    fn validate_devices(&self) -> Result<(), ConfigError> {
        let groups: BTreeSet<&str> = self.rate_limit_groups.iter().map(|group| group.id.as_str()).collect();
        if let Some(id) = twice(self.rate_limit_groups.iter().map(|group| &group.id)) {
            return error(
                format!("--rate-limit-group id={id}"),
                "is given twice; groups need different names",
            );
        }
        for group in &self.rate_limit_groups {
            if group.id.is_empty() {
                return error("--rate-limit-group", "has no id; add id=<name>");
            }
            let option = format!("--rate-limit-group id={}", group.id);
            let limits = &group.rate_limiter_config;
            if limits.bandwidth.is_none() && limits.ops.is_none() {
                return error(
                    option,
                    "limits nothing; give bw_size and bw_refill_time, or ops_size and ops_refill_time",
                );
            }
            limits.check(&option)?;
        }
        let mut ids = BTreeSet::new();
        for device in self.devices() {
            let Some(id) = device.id() else { continue };
            let option = format!("--{} id={id}", device.kind());
            if id.is_empty() || id.starts_with("__") && device.first_name().as_deref() != Some(id) {
                return error(
                    option,
                    "a device's name is not empty and does not start with \"__\"; choose another",
                );
            }
            if !ids.insert(id) {
                return error(option, "is given to two devices; names must differ");
            }
        }
        self.ivshmem.iter().try_for_each(IvshmemConfig::check)?;
        let mut paths = BTreeSet::new();
        for disk in &self.disks {
            let Some(path) = disk.path.as_ref().filter(|path| !path.as_os_str().is_empty()) else {
                return error("--disk", "has no path; add path=<image>");
            };
            let option = format!("--disk path={}", path.display());
            // Whether two paths lead to one file is found when it is locked: to look here could wait for a file system.
            if !paths.insert(path) && !disk.readonly {
                return error(
                    option,
                    "the same disk is given twice; two disks writing one image would destroy it; give each its own",
                );
            }
            check_queue_size(&option, disk.queue_size)?;
            if let Some(serial) = disk.serial.as_ref().filter(|serial| serial.len() > 20) {
                return error(option, format!("serial={serial} has more than 20 characters; shorten it"));
            }
            check_queue_affinity(&option, &disk.queue_affinity, disk.num_queues)?;
            if let Some(group) = &disk.rate_limit_group {
                if !groups.contains(group.as_str()) {
                    return error(
                        option,
                        format!(
                            "there is no rate limit group \"{group}\"; add --rate-limit-group id={group}"
                        ),
                    );
                }
                if disk.rate_limiter_config.is_some() {
                    return error(option, "has both limits of its own and a group; give one");
                }
            }
            disk.rate_limiter_config.iter().try_for_each(|limits| limits.check(&option))?;
        }
        super::net::check(&self.net)?;
        for pmem in &self.pmem {
            if pmem.file.as_ref().is_none_or(|path| path.as_os_str().is_empty()) {
                return error("--pmem", "has no file; add file=<path>");
            }
            if let Some(size) = pmem.size.filter(|size| size.0 == 0 || !size.0.is_multiple_of(PMEM_UNIT)) {
                let unit = ByteSize(PMEM_UNIT);
                return error(
                    format!("{} size={size}", pmem.option()),
                    format!(
                        "is not a multiple of {unit}; make it one, or leave size out to have all of the file"
                    ),
                );
            }
        }
        if let Some(vsock) = &self.vsock {
            let option = format!("--vsock cid={}", vsock.cid);
            let Some(socket) = vsock.socket.as_ref().filter(|socket| !socket.as_os_str().is_empty()) else {
                return error(option, "has no socket; add socket=<path>");
            };
            let longest = ::devices::virtio::vsock::LONGEST_PATH;
            if socket.as_os_str().len() > longest {
                return error(
                    option,
                    format!(
                        "the path of its socket has more than {longest} bytes, and ports have to find room after it"
                    ),
                );
            }
        }
        super::channel::check(&self.console)?;
        super::pvpanic::check(self)?;
        super::mem::check(self)?;
        self.validate_consoles()
    }

    fn validate_consoles(&self) -> Result<(), ConfigError> {
        if !HAS_CHOICES && self.serial.model == Some(SerialModel::Pl011) {
            return error("--serial model=pl011", "a PC's serial port is a 16550; leave model out");
        }
        let (serial, debug) = (&self.serial, &self.debug_console);
        let mut consoles = vec![("--serial", serial.mode, &serial.file, &serial.socket)];
        let several = self.console.iter();
        consoles.extend(several.map(|console| ("--console", console.mode, &console.file, &console.socket)));
        consoles.push(("--debug-console", debug.mode, &debug.file, &None));
        let mut terminal = None;
        for (flag, mode, file, socket) in consoles {
            let (word, path) = match mode {
                ConsoleMode::File => ("file", file),
                ConsoleMode::Socket => ("socket", socket),
                ConsoleMode::Tty => {
                    if let Some(holder) = terminal.replace(flag) {
                        let default = if holder == "--console" { " (that is its default)" } else { "" };
                        return error(
                            format!("{flag} tty"),
                            format!(
                                "{holder} has the terminal already{default}; give one of them off, null or pty"
                            ),
                        );
                    }
                    continue;
                }
                ConsoleMode::Off | ConsoleMode::Null | ConsoleMode::Pty => continue,
            };
            if flag != "--debug-console" && path.as_ref().is_none_or(|path| path.as_os_str().is_empty()) {
                return error(format!("{flag} {word}"), format!("needs a path; write {flag} {word}=<path>"));
            }
        }
        if self.debug_console.mode == ConsoleMode::Socket {
            return error(
                "--debug-console socket",
                "the debug console cannot listen on a socket; use file or pty",
            );
        }
        Ok(())
    }

    fn validate_platform(&self) -> Result<(), ConfigError> {
        if let Some(uuid) = &self.platform.uuid
            && !is_uuid(uuid)
        {
            return error(
                format!("--platform uuid={uuid}"),
                "is not a UUID; write it as 8-4-4-4-12 hexadecimal digits",
            );
        }
        let mut seen = BTreeSet::new();
        for segment in &self.pci_segments {
            let option = format!("--pci-segment pci_segment={}", segment.pci_segment);
            self.check_segment(&option, segment.pci_segment)?;
            if !seen.insert(segment.pci_segment) {
                return error(option, "is given twice");
            }
        }
        Ok(())
    }

    pub(super) fn check_segment(&self, option: &str, segment: u16) -> Result<(), ConfigError> {
        let count = self.platform.num_pci_segments;
        if segment >= count {
            return error(
                option,
                format!(
                    "there is no PCI segment {segment}; there are {count}: raise --platform num_pci_segments"
                ),
            );
        }
        Ok(())
    }
}

fn check_memory_size(
    option: &str,
    size: ByteSize,
    hugepages: bool,
    hugepage_size: Option<ByteSize>,
) -> Result<(), ConfigError> {
    let option = format!("{option} size={size}");
    if size.0 == 0 {
        return error(option, "the memory has no size; write size=1G or the like");
    }
    if let Some(page) = hugepage_size {
        if !hugepages {
            return error(
                option,
                "hugepage_size is given without hugepages=on; add that, or leave hugepage_size out",
            );
        }
        if !page.0.is_power_of_two() || page.0 < 64 << 10 {
            return error(option, format!("hugepage_size={page} is not a huge page size; use 2M or 1G"));
        }
    }
    let unit = if hugepages { hugepage_size.unwrap_or(ByteSize(2 << 20)) } else { ByteSize(4096) };
    if !size.0.is_multiple_of(unit.0) {
        return error(
            option,
            format!("is not a multiple of {unit}; a size is in bytes unless K, M, G or T follows"),
        );
    }
    Ok(())
}

/// The first item that was there before.
pub(super) fn twice<T: Ord + Copy>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = BTreeSet::new();
    items.into_iter().find(|item| !seen.insert(*item))
}

/// Checks which queues are named. `queues` is how many there are.
pub(super) fn check_queue_affinity(
    option: &str,
    affinity: &[QueueAffinity],
    queues: u16,
) -> Result<(), ConfigError> {
    if let Some(bad) = affinity.iter().find(|queue| queue.queue_index >= queues) {
        let last = queues.saturating_sub(1);
        return error(
            option,
            format!("queue_affinity: there is no queue {}; the last is {last}", bad.queue_index),
        );
    }
    match twice(affinity.iter().map(|queue| queue.queue_index)) {
        Some(queue) => error(
            option,
            format!("queue_affinity: queue {queue} is given twice; give it once, with all of its host CPUs"),
        ),
        None => Ok(()),
    }
}

pub(super) fn check_queue_size(option: &str, size: u16) -> Result<(), ConfigError> {
    if !size.is_power_of_two() {
        return error(option, format!("queue_size={size} is not a power of two; write one like 128 or 256"));
    }
    Ok(())
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|c| c.is_ascii_hexdigit()))
}
