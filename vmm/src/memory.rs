//! Guest memory as the host provides it: anonymous, shared, huge pages, or from a file, in zones.

use crate::config::hotplug::{BLOCK, HotplugMethod};
use crate::config::{ByteSize, MemoryConfig, MemoryZoneConfig};
use crate::host_pages;
use anyhow::{Context, Result, bail};
use machine::bus::Range;
use machine::memory::{GuestAddress, GuestRam, GuestRegion, Memory};
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::path::Path;
use std::sync::Arc;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion};

/// Where in guest-physical memory a zone is.
#[derive(Clone, Debug)]
pub struct ZoneExtent {
    /// The zone's name; empty if there are no zones.
    pub id: String,
    /// Start and size of each part, in bytes; more than one where the zone goes around a hole.
    pub ranges: Vec<(u64, u64)>,
    /// The memory that can be added to the zone by virtio-mem, if any.
    pub hotplug: Option<HotplugExtent>,
}

impl ZoneExtent {
    /// What it has from the start, in bytes.
    pub fn boot(&self) -> u64 {
        self.ranges.iter().map(|(_, size)| size).sum()
    }

    /// Whether a part of it, or what can be added, begins at guest-physical address `start`.
    pub fn has_region(&self, start: u64) -> bool {
        let added = self.hotplug.is_some_and(|extent| extent.range.start == start);
        added || self.ranges.iter().any(|range| range.0 == start)
    }

    /// What it has when all is added that can be, in bytes.
    pub fn most(&self) -> u64 {
        self.boot().saturating_add(self.hotplug.map_or(0, |extent| extent.range.size))
    }
}

/// Memory that a virtio-mem device gives the guest and takes back. All of it is mapped, and none of it is taken from the
/// host before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotplugExtent {
    /// Where it is.
    pub range: Range,
    /// The unit in which it comes, in bytes.
    pub block_size: u64,
    /// Whether it is of huge pages, of which the host may run out.
    pub hugepages: bool,
}

/// Guest memory, and which zone is where.
pub struct GuestMemory {
    /// The memory.
    pub ram: Memory,
    /// The zones, in guest-physical order.
    pub zones: Vec<ZoneExtent>,
    /// Where memory modules are put. Devices reach all of it from the start, so that those that were started before reach
    /// what is added; the guest reaches what it is given.
    pub modules: Option<Range>,
}

impl GuestMemory {
    /// The regions that the guest is given from the start.
    pub fn boot_regions(&self) -> impl Iterator<Item = &GuestRegion> {
        let modules = self.modules.map(|range| range.start);
        self.ram.iter().filter(move |region| Some(region.start_addr().0) != modules)
    }

    /// The region that memory modules are put in.
    pub fn modules_region(&self) -> Option<&GuestRegion> {
        self.ram.find_region(GuestAddress(self.modules?.start))
    }
}

/// How much address space is needed for what can be added to the memory of `config`, in bytes.
pub fn hotplug_space(config: &MemoryConfig) -> u64 {
    let sizes = zones(config).iter().map(hotplug_size).collect::<Vec<_>>();
    let devices: u64 = sizes.iter().map(|size| size.next_multiple_of(HOTPLUG_ALIGNMENT)).sum();
    devices.saturating_add(config.modules_size())
}

/// Where memory that can be added to a zone begins: at a multiple of any page's size, and of the sections in which Linux
/// manages memory.
const HOTPLUG_ALIGNMENT: u64 = 1 << 30;

/// Provides the memory that `config` describes at the guest-physical `ranges` (start and size, ascending),
/// which hold exactly the configured amount, and what can be added to it at `hotplug`, which is as large as
/// [`hotplug_space`] says.
///
/// # Errors
/// When the host cannot give it; says which option asks too much and what to do.
pub fn provide(config: &MemoryConfig, ranges: &[(u64, u64)], hotplug: Option<Range>) -> Result<GuestMemory> {
    let zones = &*zones(config);
    let mut free = ranges.iter().copied();
    let mut current = free.next();
    let (mut regions, mut extents) = (Vec::new(), Vec::new());
    for zone in zones {
        let backing = Backing::of(zone)?;
        let (mut offset, mut parts) = (0, Vec::new());
        while offset < zone.size.0 {
            let Some((start, size)) = current else {
                bail!("--memory-zone id={}: the machine's memory has no room left for it", zone.id);
            };
            let take = size.min(zone.size.0 - offset);
            let region = backing.map(zone, offset, take, Pages::Reserved)?;
            advise(&region, zone, config.thp)?;
            regions.push(
                GuestRegion::new(region, GuestAddress(start))
                    .context("a memory region wraps the address space")?,
            );
            parts.push((start, take));
            offset += take;
            current = if take < size { Some((start + take, size - take)) } else { free.next() };
        }
        extents.push(ZoneExtent { id: zone.id.clone(), ranges: parts, hotplug: None });
    }
    let zone_of_each =
        zones.iter().zip(&extents).flat_map(|(zone, extent)| extent.ranges.iter().map(move |_| zone));
    populate(regions.iter().zip(zone_of_each).filter(|(_, zone)| zone.prefault))?;
    if let Some(space) = hotplug {
        add_hotplug(config, zones, space, &mut extents, &mut regions)?;
    }
    // Modules and virtio-mem exclude each other, so that the whole space is that of the modules.
    let modules = hotplug.filter(|_| config.modules_size() > 0);
    if let Some(range) = modules {
        let room = MemoryZoneConfig { size: ByteSize(range.size), prefault: false, ..as_zone(config) };
        let region = Backing::of(&room)?.map(&room, 0, range.size, Pages::Later)?;
        advise(&region, &room, config.thp)?;
        let region = GuestRegion::new(region, GuestAddress(range.start));
        regions.push(region.context("a memory region wraps the address space")?);
    }
    let ram = GuestRam::from_regions(regions).context("the memory regions overlap")?;
    Ok(GuestMemory { ram: Arc::new(ram), zones: extents, modules })
}

/// Maps what can be added to zones by virtio-mem, within `space`.
fn add_hotplug(
    config: &MemoryConfig,
    zones: &[MemoryZoneConfig],
    space: Range,
    extents: &mut [ZoneExtent],
    regions: &mut Vec<GuestRegion>,
) -> Result<()> {
    let mut next = space.start;
    for (zone, extent) in zones.iter().zip(extents).filter(|(zone, _)| hotplug_size(zone) > 0) {
        let zone = MemoryZoneConfig { size: ByteSize(hotplug_size(zone)), prefault: false, ..zone.clone() };
        let start = next.next_multiple_of(HOTPLUG_ALIGNMENT);
        let region = Backing::of(&zone)?.map(&zone, 0, zone.size.0, Pages::Later)?;
        advise(&region, &zone, config.thp)?;
        regions.push(
            GuestRegion::new(region, GuestAddress(start))
                .context("a memory region wraps the address space")?,
        );
        let page = match zone.hugepage_size {
            _ if !zone.hugepages => 0,
            Some(size) => size.0,
            None => default_hugepage_size().unwrap_or(0),
        };
        let range = Range { start, size: zone.size.0 };
        let block_size = page.max(BLOCK);
        if !range.size.is_multiple_of(block_size) {
            bail!("{}: memory is added in blocks of {}", option(&zone), ByteSize(block_size));
        }
        extent.hotplug = Some(HotplugExtent { range, block_size, hugepages: zone.hugepages });
        next = start + range.size;
    }
    Ok(())
}

/// How much virtio-mem can add to a zone, in bytes.
fn hotplug_size(zone: &MemoryZoneConfig) -> u64 {
    zone.hotplug_size.map_or(0, |size| size.0)
}

/// The zones of the memory: one without a name, if no others are given.
fn zones(config: &MemoryConfig) -> Cow<'_, [MemoryZoneConfig]> {
    match config.zones.as_deref() {
        Some(zones) if !zones.is_empty() => Cow::Borrowed(zones),
        _ => Cow::Owned(vec![as_zone(config)]),
    }
}

fn as_zone(config: &MemoryConfig) -> MemoryZoneConfig {
    MemoryZoneConfig {
        size: config.size,
        mergeable: config.mergeable,
        shared: config.shared,
        hugepages: config.hugepages,
        hugepage_size: config.hugepage_size,
        prefault: config.prefault,
        hotplug_size: config.hotplug_size.filter(|_| config.hotplug_method == HotplugMethod::VirtioMem),
        ..MemoryZoneConfig::default()
    }
}

/// How messages name a zone.
fn option(zone: &MemoryZoneConfig) -> String {
    if zone.id.is_empty() {
        format!("--memory size={}", zone.size)
    } else {
        format!("--memory-zone id={},size={}", zone.id, zone.size)
    }
}

/// When huge pages are taken from the pool that the host keeps of them. Others always come when they are used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// Now, so that the guest never waits in vain for one.
    Reserved,
    /// When they are used.
    Later,
}

enum Backing {
    Anonymous { flags: i32 },
    File { file: Arc<File>, shared: bool },
}

impl Backing {
    fn of(zone: &MemoryZoneConfig) -> Result<Self> {
        if let Some(path) = &zone.file {
            let file = open_backing(path, zone)?;
            return Ok(Self::File { file: Arc::new(file), shared: zone.shared });
        }
        if zone.hugepages {
            check_hugepage_size(zone)?;
        }
        let huge = match (zone.hugepages, zone.hugepage_size) {
            (false, _) => 0,
            (true, None) => libc::MAP_HUGETLB,
            (true, Some(size)) => {
                libc::MAP_HUGETLB | (size.0.trailing_zeros().cast_signed() << libc::MAP_HUGE_SHIFT)
            }
        };
        if !zone.shared {
            return Ok(Self::Anonymous { flags: huge });
        }
        // memfd takes the same huge page size bits at the same place as mmap.
        let size_bits = (huge & !libc::MAP_HUGETLB).cast_unsigned();
        let huge = if zone.hugepages { libc::MFD_HUGETLB | size_bits } else { 0 };
        // SAFETY: the name is a C string; the flags are plain numbers.
        let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC | huge) };
        if fd < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("{}: making shared memory", option(zone)));
        }
        // SAFETY: memfd_create just gave this descriptor, which nothing else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(zone.size.0).with_context(|| format!("{}: sizing shared memory", option(zone)))?;
        Ok(Self::File { file: Arc::new(file), shared: true })
    }

    fn map(&self, zone: &MemoryZoneConfig, offset: u64, size: u64, pages: Pages) -> Result<MmapRegion> {
        let length = usize::try_from(size).context("the memory is larger than this host's address space")?;
        let builder = MmapRegionBuilder::new(length).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        let reserve = if pages == Pages::Reserved && self.is_huge() { 0 } else { libc::MAP_NORESERVE };
        let builder = match self {
            Self::Anonymous { flags } => {
                builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | reserve | flags)
            }
            Self::File { file, shared } => {
                let kind = if *shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
                builder
                    .with_mmap_flags(kind | reserve)
                    .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
            }
        };
        let region = builder.build().with_context(|| {
            if zone.hugepages {
                return hugepage_shortage(zone);
            }
            format!("{}: the host cannot give that much memory; make it smaller, or free some", option(zone))
        })?;
        if let Some(node) = zone.host_numa_node {
            bind(&region, node).with_context(|| {
                format!(
                    "{},host_numa_node={node}: this host gives no memory of that node; `ls /sys/devices/system/node` lists them",
                    option(zone)
                )
            })?;
        }
        Ok(region)
    }

    /// Whether it is of huge pages from the host's pool.
    fn is_huge(&self) -> bool {
        match self {
            Self::Anonymous { flags } => flags & libc::MAP_HUGETLB != 0,
            Self::File { file, .. } => host_pages::is_hugetlb(file),
        }
    }
}

fn open_backing(path: &Path, zone: &MemoryZoneConfig) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let what = || format!("{},file={}", option(zone), path.display());
    let mut options = File::options();
    options.read(true).write(true);
    if path.is_dir() {
        // An unnamed file in a directory of hugetlbfs or tmpfs.
        let file = options.custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC).open(path).with_context(what)?;
        file.set_len(zone.size.0).with_context(what)?;
        return Ok(file);
    }
    let file = options.open(path).with_context(what)?;
    let size = file.metadata().with_context(what)?.len();
    if size < zone.size.0 {
        bail!("{}: the file has {}, less than the zone; enlarge it with truncate", what(), ByteSize(size));
    }
    Ok(file)
}

/// The sizes of the host's huge pages, for the user.
fn hugepage_sizes() -> String {
    let folders = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let sizes = folders.filter_map(|folder| {
        let name = folder.file_name().into_string().ok()?;
        name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()
    });
    let mut sizes: Vec<u64> = sizes.collect();
    sizes.sort_unstable();
    match sizes.as_slice() {
        [] => "none: leave hugepages out".to_owned(),
        sizes => sizes.iter().map(|size| ByteSize(size << 10).to_string()).collect::<Vec<_>>().join(", "),
    }
}

/// Where the host tells of its huge pages of the size that a zone wants.
fn hugepage_folder(page: u64) -> String {
    format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page >> 10)
}

/// The size of a zone's huge pages, in bytes.
fn hugepage_size(zone: &MemoryZoneConfig) -> Option<u64> {
    zone.hugepage_size.map_or_else(default_hugepage_size, |size| Some(size.0))
}

/// Refuses a size of huge pages that the host does not have.
fn check_hugepage_size(zone: &MemoryZoneConfig) -> Result<()> {
    let page = hugepage_size(zone).context("this host has no huge pages")?;
    if !Path::new(&hugepage_folder(page)).exists() {
        bail!(
            "{},hugepage_size={}: this host has no huge pages of that size; it has {}",
            option(zone),
            ByteSize(page),
            hugepage_sizes()
        );
    }
    Ok(())
}

/// What to say when the host has too few huge pages for a zone. What other mappings have reserved is free only for them.
fn hugepage_shortage(zone: &MemoryZoneConfig) -> String {
    let page = hugepage_size(zone).unwrap_or(BLOCK);
    let directory = hugepage_folder(page);
    let count = |name: &str| {
        let text = std::fs::read_to_string(format!("{directory}/{name}")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let needed = zone.size.0.div_ceil(page);
    let free = count("free_hugepages").saturating_sub(count("resv_hugepages"));
    let total = count("nr_hugepages").saturating_add(needed.saturating_sub(free));
    format!(
        "{},hugepages=on: needs {needed} huge pages of {}, and the host has {free} free; \
         reserve them with: echo {total} > {directory}/nr_hugepages",
        option(zone),
        ByteSize(page)
    )
}

/// The size of huge pages where none is said, if the host has any.
pub fn default_hugepage_size() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn bind(region: &MmapRegion, node: u32) -> io::Result<()> {
    const MPOL_BIND: libc::c_long = 2;
    const MPOL_MF_STRICT: libc::c_long = 1;
    let mut mask = [0u64; 16];
    let word = mask
        .get_mut(node as usize / 64)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "nodes are 0 to 1023"))?;
    *word = 1 << (node % 64);
    // SAFETY: the range is this mapping, and the mask outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            region.as_ptr(),
            region.size(),
            MPOL_BIND,
            mask.as_ptr(),
            mask.len() * 64,
            MPOL_MF_STRICT,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn advise(region: &MmapRegion, zone: &MemoryZoneConfig, thp: bool) -> Result<()> {
    if zone.mergeable {
        madvise(region, libc::MADV_MERGEABLE).with_context(|| {
            format!("{},mergeable=on: the host's kernel cannot merge pages", option(zone))
        })?;
    }
    // A wish: a kernel without transparent huge pages just does not have them.
    if !thp {
        let _ = madvise(region, libc::MADV_NOHUGEPAGE);
    } else if !zone.hugepages && zone.file.is_none() {
        let _ = madvise(region, libc::MADV_HUGEPAGE);
    }
    // A guest's memory does not belong into the monitor's core dump.
    let _ = madvise(region, libc::MADV_DONTDUMP);
    Ok(())
}

fn madvise(region: &MmapRegion, advice: i32) -> io::Result<()> {
    // SAFETY: the range is this mapping; the advice does not change its contents.
    let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes pages from the host now, on as many threads as there are CPUs.
fn populate<'a>(wanted: impl Iterator<Item = (&'a GuestRegion, &'a MemoryZoneConfig)>) -> Result<()> {
    const CHUNK: usize = 64 << 20;
    const MADV_POPULATE_WRITE: i32 = 23;
    let (mut chunks, mut needed) = (Vec::new(), 0_u64);
    for (region, zone) in wanted {
        let (start, size) = (region.as_ptr() as usize, usize::try_from(region.len())?);
        chunks.extend((0..size).step_by(CHUNK).map(|at| (start + at, CHUNK.min(size - at))));
        // Huge pages come from a pool of their own, which has them: they are reserved.
        let huge =
            zone.hugepages || region.file_offset().is_some_and(|file| host_pages::is_hugetlb(file.file()));
        needed = needed.saturating_add(if huge { 0 } else { region.len() });
    }
    if chunks.is_empty() {
        return Ok(());
    }
    if let Some(available) = available_memory().filter(|available| *available < needed) {
        bail!(
            "--memory prefault=on: needs {} MiB now, and the host has {} MiB available; make the memory smaller, \
             or leave prefault off",
            needed >> 20,
            available >> 20
        );
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    while let Some((start, size)) =
                        chunks.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                    {
                        // SAFETY: the range lies in a guest memory mapping that outlives this scope.
                        let result =
                            unsafe { libc::madvise(*start as *mut libc::c_void, *size, MADV_POPULATE_WRITE) };
                        if result < 0 {
                            return Err(io::Error::last_os_error());
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            let result = worker.join().map_err(|_| anyhow::anyhow!("a prefault thread died"))?;
            result.context("--memory prefault=on: the host cannot give the memory")?;
        }
        Ok(())
    })
}

fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::memory::{Bytes, GuestMemoryBackend};
    use std::os::fd::AsRawFd;

    const M: u64 = 1 << 20;

    fn zone(id: &str, size: u64) -> MemoryZoneConfig {
        MemoryZoneConfig { id: id.into(), size: ByteSize(size), ..MemoryZoneConfig::default() }
    }

    #[test]
    fn zones_fill_the_ranges_in_order_and_go_around_the_hole() {
        let config = MemoryConfig {
            size: ByteSize(0),
            zones: Some(vec![zone("a", 3 * M), zone("b", 2 * M)]),
            ..MemoryConfig::default()
        };
        let memory = provide(&config, &[(0, 2 * M), (16 * M, 3 * M)], None).unwrap();
        assert_eq!(memory.zones[0].ranges, [(0, 2 * M), (16 * M, M)]);
        assert_eq!(memory.zones[1].ranges, [(17 * M, 2 * M)]);
        assert!(memory.ram.write_obj(7u8, GuestAddress(19 * M - 1)).is_ok());
        assert!(memory.ram.write_obj(7u8, GuestAddress(2 * M)).is_err(), "the hole has no memory");
    }

    #[test]
    fn shared_memory_is_one_file_seen_at_both_sides_of_the_hole() {
        let config = MemoryConfig { size: ByteSize(4 * M), shared: true, ..MemoryConfig::default() };
        let memory = provide(&config, &[(0, 2 * M), (16 * M, 2 * M)], None).unwrap();
        memory.ram.write_obj(0x55u8, GuestAddress(16 * M)).unwrap();
        let region = memory.ram.iter().next().unwrap();
        let file = region.file_offset().unwrap();
        assert_eq!(file.start(), 0);
        let fd = file.file().as_raw_fd();
        let mut byte = [0u8];
        // SAFETY: reads one byte into a buffer of one byte.
        let read = unsafe { libc::pread(fd, byte.as_mut_ptr().cast(), 1, (2 * M).cast_signed()) };
        assert_eq!((read, byte[0]), (1, 0x55));
    }

    #[test]
    fn what_the_host_cannot_give_is_refused_with_the_option_and_a_remedy() {
        let impossible = MemoryConfig { size: ByteSize(1 << 60), ..MemoryConfig::default() };
        let error = format!("{:#}", provide(&impossible, &[(0, 1 << 60)], None).err().unwrap());
        assert!(
            error.starts_with("--memory size=1048576T: the host cannot give that much memory"),
            "{error}"
        );

        let huge = MemoryConfig { size: ByteSize(1 << 50), hugepages: true, ..MemoryConfig::default() };
        let error = format!("{:#}", provide(&huge, &[(0, 1 << 50)], None).err().unwrap());
        assert!(error.contains("reserve them with: echo") || error.contains("no huge pages"), "{error}");

        let prefault = MemoryConfig { size: ByteSize(1 << 45), prefault: true, ..MemoryConfig::default() };
        let error = format!("{:#}", provide(&prefault, &[(0, 1 << 45)], None).err().unwrap());
        assert!(error.contains("leave prefault off") || error.contains("cannot give"), "{error}");
    }

    #[test]
    fn prefaulted_memory_is_resident() {
        let config =
            MemoryConfig { size: ByteSize(4 * M), prefault: true, thp: false, ..MemoryConfig::default() };
        let memory = provide(&config, &[(0, 4 * M)], None).unwrap();
        let region = memory.ram.iter().next().unwrap();
        let mut pages = vec![0u8; (4 * M / 4096) as usize];
        // SAFETY: one byte for each page of the mapping.
        let result = unsafe { libc::mincore(region.as_ptr().cast(), (4 * M) as usize, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        assert!(pages.iter().all(|page| page & 1 == 1));
    }

    #[test]
    fn memory_to_be_added_follows_ram_zone_by_zone() {
        let grows =
            |id: &str, hotplug| MemoryZoneConfig { hotplug_size: Some(ByteSize(hotplug)), ..zone(id, 2 * M) };
        let config = MemoryConfig {
            size: ByteSize(0),
            hotplug_method: HotplugMethod::VirtioMem,
            zones: Some(vec![grows("a", 6 * M), zone("b", 2 * M), grows("c", 4 * M)]),
            ..MemoryConfig::default()
        };
        let space = Range { start: 4 << 30, size: hotplug_space(&config) };
        assert_eq!(space.size, 2 << 30);
        let memory = provide(&config, &[(0, 6 * M)], Some(space)).unwrap();
        let extents: Vec<_> =
            memory.zones.iter().map(|zone| zone.hotplug.map(|extent| extent.range)).collect();
        let expected = [(4 << 30, 6 * M), (5 << 30, 4 * M)].map(|(start, size)| Some(Range { start, size }));
        assert_eq!(extents, [expected[0], None, expected[1]]);
        memory.ram.write_obj(1u8, GuestAddress((5 << 30) + 4 * M - 1)).unwrap();
        assert!(memory.ram.write_obj(1u8, GuestAddress((5 << 30) + 4 * M)).is_err());

        // ACPI's memory comes in whole pieces.
        let (size, room) = (ByteSize(M), Some(ByteSize(257 * M)));
        let acpi = MemoryConfig { size, hotplug_size: room, ..MemoryConfig::default() };
        assert_eq!(hotplug_space(&acpi), 256 * M);
        let memory = provide(&acpi, &[(0, M)], Some(Range { start: 1 << 32, size: 256 * M })).unwrap();
        assert_eq!(memory.zones[0].hotplug, None, "ACPI's memory is not virtio-mem's");
        assert_eq!((memory.boot_regions().count(), memory.ram.num_regions()), (1, 2));
    }
}
