//! The flattened device tree: what a guest that is not booted by firmware learns of the machine (Devicetree Specification
//! 0.4, and the bindings in Linux, `Documentation/devicetree/bindings`).

mod chosen;

pub use chosen::{Chosen, build_for_efi};

use super::cpu::{PMU_INTERRUPT, TIMER_HYPERVISOR, TIMER_PHYSICAL, TIMER_SECURE, TIMER_VIRTUAL, affinity};
use super::layout::{self, FDT_SIZE};
use crate::caches::{Cache, CacheKind, CacheScope};
use crate::layout::SegmentWindows;
use crate::topology::Topology;
use crate::wiring::InterruptPins;
use hypervisor::aarch64::GicConfig;
use machine::bus::Range;
use thiserror::Error;
use vm_fdt::FdtWriter;

/// What the tree describes.
#[derive(Clone, Debug)]
pub struct FdtConfig {
    /// How CPUs are grouped.
    pub topology: Topology,
    /// The caches of each CPU, nearest first.
    pub caches: Vec<Cache>,
    /// The NUMA node of each CPU that is there.
    pub cpu_nodes: Vec<u32>,
    /// They have a performance monitor.
    pub pmu: bool,
    /// RAM with its NUMA node.
    pub memory: Vec<(Range, u32)>,
    /// Row by row, how far one NUMA node's memory is from another's. Without any the machine has no NUMA nodes.
    pub distances: Vec<Vec<u8>>,
    /// The interrupt controller.
    pub gic: GicConfig,
    /// The PCI segments, by number.
    pub segments: Vec<SegmentWindows>,
    /// Where the PCI interrupt pins are wired.
    pub interrupt_pins: InterruptPins,
    /// The PL011's shared interrupt, if there is one.
    pub serial: Option<u32>,
    /// The PL061's shared interrupt.
    pub gpio: u32,
    /// The pin of the PL061 that is the power button.
    pub power_button: u8,
    /// There is a pvpanic device.
    pub pvpanic: bool,
    /// There is a firmware configuration device.
    pub fw_cfg: bool,
    /// Banks of flash, of two chips of 16 bits beside each other.
    pub flash: Vec<Range>,
    /// What the kernel is started with.
    pub chosen: Chosen,
}

/// Why there is no tree.
#[derive(Debug, Error)]
pub enum FdtError {
    /// A name or value cannot be in a tree.
    #[error("the device tree cannot be made: {0}")]
    Content(#[from] vm_fdt::Error),
    /// It is larger than kernels take.
    #[error("the device tree takes {size} bytes, and a kernel takes at most {FDT_SIZE}: use fewer CPUs")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
}

type Result<T> = std::result::Result<T, FdtError>;

// Nodes that others refer to.
const PHANDLE_GIC: u32 = 1;
const PHANDLE_CLOCK: u32 = 2;
const PHANDLE_GPIO: u32 = 3;
const PHANDLE_ITS: u32 = 0x100;
const PHANDLE_CPU: u32 = 0x1000;
const PHANDLE_CACHE: u32 = 0x10_0000;

// Cells of an interrupt (arm,gic-v3.yaml).
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// Interrupts below are those of software.
const FIRST_PRIVATE: u32 = 16;

/// Linux's key code of a power button.
const KEY_POWER: u32 = 116;
/// The frequency of the clock that PrimeCell devices are told of. Nothing depends on it.
const PRIMECELL_CLOCK_HZ: u32 = 24_000_000;

/// Makes the tree.
///
/// # Errors
/// When it becomes too large.
pub fn build(config: &FdtConfig) -> Result<Vec<u8>> {
    let mut tree = Tree(FdtWriter::new()?);
    tree.node("", |tree| {
        tree.0.property_string("compatible", "linux,dummy-virt")?;
        tree.0.property_string("model", "vivarium")?;
        tree.0.property_u32("#address-cells", 2)?;
        tree.0.property_u32("#size-cells", 2)?;
        tree.0.property_u32("interrupt-parent", PHANDLE_GIC)?;
        tree.0.property_null("dma-coherent")?;
        let serial = format!("/serial@{:x}", layout::SERIAL);
        chosen::node(tree, &config.chosen, |tree| match config.serial {
            Some(_) => Ok(tree.0.property_string("stdout-path", &serial)?),
            None => Ok(()),
        })?;
        memory(tree, config)?;
        cpus(tree, config)?;
        psci(tree)?;
        timer(tree)?;
        if config.pmu {
            pmu(tree)?;
        }
        interrupt_controller(tree, config)?;
        platform(tree, config)?;
        config.segments.iter().zip(0..).try_for_each(|(segment, number)| pci(tree, config, segment, number))
    })?;
    let bytes = tree.0.finish()?;
    let size = bytes.len() as u64;
    if size > FDT_SIZE { Err(FdtError::TooLarge { size }) } else { Ok(bytes) }
}

/// A tree that grows.
struct Tree(FdtWriter);

impl Tree {
    /// Adds a node, and in it what `fill` adds.
    fn node(&mut self, name: &str, fill: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let node = self.0.begin_node(name)?;
        fill(self)?;
        Ok(self.0.end_node(node)?)
    }

    /// Adds the property that says where a device's registers are.
    fn registers(&mut self, ranges: &[Range]) -> Result<()> {
        let cells: Vec<u64> = ranges.iter().flat_map(|range| [range.start, range.size]).collect();
        Ok(self.0.property_array_u64("reg", &cells)?)
    }

    fn strings(&mut self, name: &str, values: &[&str]) -> Result<()> {
        Ok(self.0.property_string_list(name, values.iter().map(|value| (*value).to_owned()).collect())?)
    }

    /// Says which NUMA node it belongs to.
    fn numa(&mut self, config: &FdtConfig, node: u32) -> Result<()> {
        if config.distances.is_empty() {
            return Ok(());
        }
        Ok(self.0.property_u32("numa-node-id", node)?)
    }
}

fn memory(tree: &mut Tree, config: &FdtConfig) -> Result<()> {
    for (range, node) in &config.memory {
        tree.node(&format!("memory@{:x}", range.start), |tree| {
            tree.0.property_string("device_type", "memory")?;
            tree.registers(&[*range])?;
            tree.numa(config, *node)
        })?;
    }
    if config.distances.is_empty() {
        return Ok(());
    }
    tree.node("distance-map", |tree| {
        tree.0.property_string("compatible", "numa-distance-map-v1")?;
        let rows = config.distances.iter().zip(0u32..);
        let cells: Vec<u32> = rows
            .flat_map(|(row, from)| {
                row.iter().zip(0..).flat_map(move |(far, to)| [from, to, u32::from(*far)])
            })
            .collect();
        Ok(tree.0.property_array_u32("distance-matrix", &cells)?)
    })
}

fn cpus(tree: &mut Tree, config: &FdtConfig) -> Result<()> {
    tree.node("cpus", |tree| {
        tree.0.property_u32("#address-cells", 1)?;
        tree.0.property_u32("#size-cells", 0)?;
        for (node, index) in config.cpu_nodes.iter().zip(0u32..) {
            let affinity = affinity(index) as u32;
            tree.node(&format!("cpu@{affinity:x}"), |tree| {
                tree.0.property_string("device_type", "cpu")?;
                tree.0.property_string("compatible", "arm,armv8")?;
                tree.0.property_u32("reg", affinity)?;
                tree.0.property_string("enable-method", "psci")?;
                tree.numa(config, *node)?;
                for cache in config.caches.iter().filter(|cache| cache.level == 1) {
                    cache_shape(tree, cache)?;
                }
                next_cache(tree, config, 1, index)?;
                Ok(tree.0.property_phandle(PHANDLE_CPU + index)?)
            })?;
        }
        caches(tree, config)?;
        tree.node("cpu-map", |tree| cpu_map(tree, config.topology, config.cpu_nodes.len() as u32))
    })
}

/// The nodes of the caches behind those of CPUs (Devicetree Specification 0.4, 3.9).
fn caches(tree: &mut Tree, config: &FdtConfig) -> Result<()> {
    for cache in outer_caches(config) {
        for first in (0..config.cpu_nodes.len() as u32).step_by(sharers(config, cache.scope)) {
            tree.node(&format!("l{}-cache{first}", cache.level), |tree| {
                tree.0.property_string("compatible", "cache")?;
                tree.0.property_u32("cache-level", cache.level.into())?;
                tree.0.property_null("cache-unified")?;
                cache_shape(tree, cache)?;
                next_cache(tree, config, cache.level, first)?;
                Ok(tree.0.property_phandle(cache_phandle(cache.level, first))?)
            })?;
        }
    }
    Ok(())
}

/// Caches that have nodes of their own. A binding for others than unified ones there is only at the first level.
fn outer_caches(config: &FdtConfig) -> impl Iterator<Item = &Cache> {
    config.caches.iter().filter(|cache| cache.level > 1 && cache.kind == CacheKind::Unified)
}

/// Refers to the cache that follows level `level` for CPU `index`, if there is one.
fn next_cache(tree: &mut Tree, config: &FdtConfig, level: u8, index: u32) -> Result<()> {
    let Some(next) = outer_caches(config).find(|cache| cache.level > level) else { return Ok(()) };
    let sharers = sharers(config, next.scope) as u32;
    let first = index - index % sharers;
    Ok(tree.0.property_u32("next-level-cache", cache_phandle(next.level, first))?)
}

/// How many CPUs share a cache.
fn sharers(config: &FdtConfig, scope: CacheScope) -> usize {
    let topology = config.topology;
    let count = match scope {
        CacheScope::Core => topology.threads(),
        CacheScope::Die => topology.threads() * topology.cores(),
    };
    count as usize
}

fn cache_phandle(level: u8, first: u32) -> u32 {
    PHANDLE_CACHE * u32::from(level) + first
}

fn cache_shape(tree: &mut Tree, cache: &Cache) -> Result<()> {
    let Some(shape) = cache.shape else { return Ok(()) };
    let prefix = match cache.kind {
        CacheKind::Instruction => "i-",
        CacheKind::Data => "d-",
        CacheKind::Unified => "",
    };
    tree.0.property_u32(&format!("{prefix}cache-size"), shape.size)?;
    tree.0.property_u32(&format!("{prefix}cache-line-size"), shape.line.into())?;
    Ok(tree.0.property_u32(&format!("{prefix}cache-sets"), shape.sets)?)
}

/// How CPUs are grouped (Linux, `Documentation/devicetree/bindings/cpu/cpu-topology.txt`).
fn cpu_map(tree: &mut Tree, topology: Topology, present: u32) -> Result<()> {
    // Nodes must not be empty, and CPUs are numbered in the order of the nodes.
    let group = |first: u32, size: u32, count: u32| {
        (0..count)
            .map(move |number| (number, first + number * size))
            .take_while(move |(_, first)| *first < present)
    };
    let per_core = topology.threads();
    let per_die = per_core * topology.cores();
    let per_package = topology.cpus_per_package();
    for (package, first) in group(0, per_package, topology.packages()) {
        tree.node(&format!("socket{package}"), |tree| {
            for (die, first) in group(first, per_die, topology.dies()) {
                tree.node(&format!("cluster{die}"), |tree| {
                    for (core, first) in group(first, per_core, topology.cores()) {
                        tree.node(&format!("core{core}"), |tree| {
                            if per_core == 1 {
                                return Ok(tree.0.property_u32("cpu", PHANDLE_CPU + first)?);
                            }
                            group(first, 1, per_core).try_for_each(|(thread, index)| {
                                tree.node(&format!("thread{thread}"), |tree| {
                                    Ok(tree.0.property_u32("cpu", PHANDLE_CPU + index)?)
                                })
                            })
                        })?;
                    }
                    Ok(())
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn psci(tree: &mut Tree) -> Result<()> {
    tree.node("psci", |tree| {
        tree.strings("compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
        Ok(tree.0.property_string("method", "hvc")?)
    })
}

fn timer(tree: &mut Tree) -> Result<()> {
    tree.node("timer", |tree| {
        tree.0.property_string("compatible", "arm,armv8-timer")?;
        tree.0.property_null("always-on")?;
        let interrupts = [TIMER_SECURE, TIMER_PHYSICAL, TIMER_VIRTUAL, TIMER_HYPERVISOR];
        let cells: Vec<u32> =
            interrupts.into_iter().flat_map(|number| [PRIVATE, number - FIRST_PRIVATE, LEVEL_HIGH]).collect();
        Ok(tree.0.property_array_u32("interrupts", &cells)?)
    })
}

fn pmu(tree: &mut Tree) -> Result<()> {
    tree.node("pmu", |tree| {
        tree.0.property_string("compatible", "arm,armv8-pmuv3")?;
        let interrupt = [PRIVATE, PMU_INTERRUPT - FIRST_PRIVATE, LEVEL_HIGH];
        Ok(tree.0.property_array_u32("interrupts", &interrupt)?)
    })
}

fn interrupt_controller(tree: &mut Tree, config: &FdtConfig) -> Result<()> {
    let gic = config.gic;
    tree.node(&format!("interrupt-controller@{:x}", gic.distributor), |tree| {
        tree.0.property_string("compatible", "arm,gic-v3")?;
        tree.0.property_u32("#interrupt-cells", 3)?;
        tree.0.property_null("interrupt-controller")?;
        let redistributors = u64::from(gic.cpus) * GicConfig::REDISTRIBUTOR_SIZE;
        tree.registers(&[
            Range { start: gic.distributor, size: GicConfig::DISTRIBUTOR_SIZE },
            Range { start: gic.redistributors, size: redistributors },
        ])?;
        tree.0.property_u32("#address-cells", 2)?;
        tree.0.property_u32("#size-cells", 2)?;
        tree.0.property_null("ranges")?;
        tree.0.property_phandle(PHANDLE_GIC)?;
        for (start, number) in gic.its().zip(0..) {
            tree.node(&format!("msi-controller@{start:x}"), |tree| {
                tree.0.property_string("compatible", "arm,gic-v3-its")?;
                tree.0.property_null("msi-controller")?;
                tree.0.property_u32("#msi-cells", 1)?;
                tree.registers(&[Range { start, size: GicConfig::ITS_SIZE }])?;
                Ok(tree.0.property_phandle(PHANDLE_ITS + number)?)
            })?;
        }
        Ok(())
    })
}

fn platform(tree: &mut Tree, config: &FdtConfig) -> Result<()> {
    tree.node("apb-pclk", |tree| {
        tree.0.property_string("compatible", "fixed-clock")?;
        tree.0.property_u32("#clock-cells", 0)?;
        tree.0.property_u32("clock-frequency", PRIMECELL_CLOCK_HZ)?;
        Ok(tree.0.property_phandle(PHANDLE_CLOCK)?)
    })?;
    if let Some(interrupt) = config.serial {
        primecell(tree, "serial", "arm,pl011", layout::SERIAL, Some(interrupt), |tree| {
            tree.0.property_array_u32("clocks", &[PHANDLE_CLOCK, PHANDLE_CLOCK])?;
            tree.strings("clock-names", &["uartclk", "apb_pclk"])
        })?;
    }
    let clock = |tree: &mut Tree| -> Result<()> {
        tree.0.property_u32("clocks", PHANDLE_CLOCK)?;
        Ok(tree.0.property_string("clock-names", "apb_pclk")?)
    };
    primecell(tree, "rtc", "arm,pl031", layout::RTC, None, clock)?;
    primecell(tree, "gpio", "arm,pl061", layout::GPIO, Some(config.gpio), |tree| {
        clock(tree)?;
        tree.0.property_null("gpio-controller")?;
        tree.0.property_u32("#gpio-cells", 2)?;
        tree.0.property_null("interrupt-controller")?;
        tree.0.property_u32("#interrupt-cells", 2)?;
        Ok(tree.0.property_phandle(PHANDLE_GPIO)?)
    })?;
    tree.node("gpio-keys", |tree| {
        tree.0.property_string("compatible", "gpio-keys")?;
        tree.node("key-power", |tree| {
            tree.0.property_string("label", "Power Button")?;
            tree.0.property_u32("linux,code", KEY_POWER)?;
            Ok(tree.0.property_array_u32("gpios", &[PHANDLE_GPIO, config.power_button.into(), 0])?)
        })
    })?;
    if let Some(first) = config.flash.first() {
        tree.node(&format!("flash@{:x}", first.start), |tree| {
            tree.0.property_string("compatible", "cfi-flash")?;
            tree.registers(&config.flash)?;
            Ok(tree.0.property_u32("bank-width", 4)?)
        })?;
    }
    if config.fw_cfg {
        tree.node(&format!("fw-cfg@{:x}", layout::FW_CFG.start), |tree| {
            tree.0.property_string("compatible", "qemu,fw-cfg-mmio")?;
            tree.registers(&[layout::FW_CFG])?;
            Ok(tree.0.property_null("dma-coherent")?)
        })?;
    }
    if config.pvpanic {
        tree.node(&format!("pvpanic@{:x}", layout::PVPANIC.start), |tree| {
            tree.0.property_string("compatible", "qemu,pvpanic-mmio")?;
            tree.registers(&[Range { start: layout::PVPANIC.start, size: 2 }])
        })?;
    }
    Ok(())
}

fn primecell(
    tree: &mut Tree,
    kind: &str,
    compatible: &str,
    start: u64,
    interrupt: Option<u32>,
    fill: impl FnOnce(&mut Tree) -> Result<()>,
) -> Result<()> {
    tree.node(&format!("{kind}@{start:x}"), |tree| {
        tree.strings("compatible", &[compatible, "arm,primecell"])?;
        tree.registers(&[Range { start, size: 0x1000 }])?;
        if let Some(interrupt) = interrupt {
            tree.0.property_array_u32("interrupts", &[SHARED, interrupt, LEVEL_HIGH])?;
        }
        fill(tree)
    })
}

/// A PCI segment (`host-generic-pci.yaml`).
fn pci(tree: &mut Tree, config: &FdtConfig, segment: &SegmentWindows, number: u32) -> Result<()> {
    const MEMORY_32: u32 = 0x0200_0000;
    const MEMORY_64: u32 = 0x0300_0000;
    const PREFETCHABLE: u32 = 0x4000_0000;
    // EDK2 takes no window for prefetchable memory alone, and would be left without addresses for large BARs.
    let above = if config.flash.is_empty() { MEMORY_64 | PREFETCHABLE } else { MEMORY_64 };
    let buses = (segment.ecam.size >> 20).clamp(1, 256) as u32;
    tree.node(&format!("pcie@{:x}", segment.ecam.start), |tree| {
        tree.0.property_string("compatible", "pci-host-ecam-generic")?;
        tree.0.property_string("device_type", "pci")?;
        tree.registers(&[segment.ecam])?;
        tree.0.property_array_u32("bus-range", &[0, buses - 1])?;
        tree.0.property_u32("linux,pci-domain", number)?;
        tree.0.property_u32("#address-cells", 3)?;
        tree.0.property_u32("#size-cells", 2)?;
        let windows = [(MEMORY_32, segment.bars_32), (above, segment.bars_64)];
        let ranges: Vec<u32> = windows
            .into_iter()
            .filter(|(_, range)| range.size > 0)
            .flat_map(|(kind, range)| {
                let [start, size] =
                    [range.start, range.size].map(|value| [(value >> 32) as u32, value as u32]);
                [kind, start[0], start[1], start[0], start[1], size[0], size[1]]
            })
            .collect();
        tree.0.property_array_u32("ranges", &ranges)?;
        tree.0.property_null("dma-coherent")?;
        tree.0.property_array_u32("msi-map", &[0, PHANDLE_ITS + number, 0, buses << 8])?;
        interrupt_map(tree, config.interrupt_pins)
    })
}

/// Which interrupt each pin of each device on the root bus is wired to.
fn interrupt_map(tree: &mut Tree, pins: InterruptPins) -> Result<()> {
    // The wiring repeats after as many devices as there are interrupts, which is a power of two.
    let period = pins.count.next_power_of_two().min(32) as u8;
    let mut map = Vec::new();
    for device in 0..period {
        for pin in 1..=4u8 {
            let gsi = pins.gsi(device, pin);
            map.extend([
                u32::from(device) << 11,
                0,
                0,
                pin.into(),
                PHANDLE_GIC,
                0,
                0,
                SHARED,
                gsi,
                LEVEL_HIGH,
            ]);
        }
    }
    tree.0.property_u32("#interrupt-cells", 1)?;
    tree.0.property_array_u32("interrupt-map-mask", &[u32::from(period - 1) << 11, 0, 0, 7])?;
    Ok(tree.0.property_array_u32("interrupt-map", &map)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::layout::{LayoutRequest, MemoryLayout};
    use crate::caches::CacheShape;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn config(cpus: u32, segments: u16) -> FdtConfig {
        let request = LayoutRequest { segments, ..LayoutRequest::new(1 << 30, 44) };
        let layout = MemoryLayout::new(&request).unwrap();
        FdtConfig {
            topology: Topology::flat(cpus),
            caches: caches_of_a_server(),
            cpu_nodes: vec![0; cpus as usize],
            pmu: true,
            memory: layout.ram().iter().map(|range| (*range, 0)).collect(),
            distances: Vec::new(),
            gic: layout.gic(cpus),
            segments: layout.segments().to_vec(),
            interrupt_pins: InterruptPins { first_gsi: 3, count: 4 },
            serial: Some(1),
            gpio: 7,
            power_button: 3,
            pvpanic: true,
            fw_cfg: true,
            flash: layout::FLASH.to_vec(),
            chosen: Chosen {
                command_line: "quiet console=ttyAMA0".into(),
                initramfs: Some(Range { start: 0x7000_0000, size: 0x1234 }),
                seed: vec![0xa5; 40],
            },
        }
    }

    fn caches_of_a_server() -> Vec<Cache> {
        let shape = |size| Some(CacheShape { size, line: 64, sets: size / 64 / 4, ways: 4 });
        let cache = |level, kind, scope, shape| Cache { level, kind, scope, shape };
        vec![
            cache(1, CacheKind::Instruction, CacheScope::Core, shape(65_536)),
            cache(1, CacheKind::Data, CacheScope::Core, shape(65_536)),
            cache(2, CacheKind::Unified, CacheScope::Core, None),
            cache(3, CacheKind::Unified, CacheScope::Die, shape(32 << 20)),
        ]
    }

    /// The tree as the device tree compiler reads it, and what it warns of; `None` where there is no such program, which it
    /// says.
    fn decompiled(tree: &[u8]) -> Option<(String, String)> {
        let dtc = Command::new("dtc")
            .args(["-I", "dtb", "-O", "dts", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut dtc = dtc.inspect_err(|_| crate::testing::skip_without("dtc")).ok()?;
        dtc.stdin.take().unwrap().write_all(tree).unwrap();
        let output = dtc.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Some((text(output.stdout), text(output.stderr)))
    }

    fn config_of_numa() -> FdtConfig {
        FdtConfig {
            topology: Topology::new(2, 2, 1, 2, 8).unwrap(),
            cpu_nodes: vec![0, 0, 0, 0, 1, 1, 1, 1],
            distances: vec![vec![10, 20], vec![20, 10]],
            ..config(8, 3)
        }
    }

    /// What a device tree compiler before version 1.7.0 misses in each interrupt controller, and the binding of the PL061 does
    /// not allow.
    const OUTDATED: &str =
        "(interrupt_provider): /gpio@9030000: Missing #address-cells in interrupt provider";

    /// Whether `version`, as the device tree compiler tells its own, is before 1.7.0.
    fn is_outdated(version: &str) -> bool {
        let numbers = version.rsplit(' ').next().unwrap().split(['.', '-', '+']);
        let numbers: Vec<u32> = numbers.map_while(|number| number.trim().parse().ok()).collect();
        numbers < vec![1, 7]
    }

    #[test]
    fn the_device_tree_compiler_finds_nothing_to_warn_of() {
        let Ok(version) = Command::new("dtc").arg("--version").output() else {
            return crate::testing::skip_without("dtc");
        };
        let outdated = is_outdated(String::from_utf8(version.stdout).unwrap().trim());
        for config in [config(1, 1), config(123, 1), config_of_numa()] {
            let Some((_, warnings)) = decompiled(&build(&config).unwrap()) else { return };
            let wrong: Vec<_> =
                warnings.lines().filter(|line| !(outdated && line.contains(OUTDATED))).collect();
            assert!(wrong.is_empty(), "{warnings}");
        }
    }

    #[test]
    fn versions_of_the_device_tree_compiler_are_told_apart() {
        for (version, outdated) in [("1.6.1", true), ("1.7.0", false), ("1.7.2-g1234", false), ("2.0", false)]
        {
            assert_eq!(is_outdated(&format!("Version: DTC {version}")), outdated, "{version}");
        }
    }

    /// What the kernel's own schemas say. `VIVARIUM_DT_VALIDATE` is a program with its options that checks a tree and says
    /// nothing if it is right.
    #[test]
    fn the_tree_is_as_the_bindings_have_it() {
        let Ok(program) = std::env::var("VIVARIUM_DT_VALIDATE") else {
            println!("@@SKIP VIVARIUM_DT_VALIDATE does not name a program");
            return;
        };
        let words: Vec<_> = program.split(' ').collect();
        let path = std::env::temp_dir().join(format!("vivarium-fdt-{}.dtb", std::process::id()));
        for config in [config(20, 1), config_of_numa()] {
            std::fs::write(&path, build(&config).unwrap()).unwrap();
            let output = Command::new(words[0]).args(&words[1..]).arg(&path).output().unwrap();
            std::fs::remove_file(&path).unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success() && text.is_empty(), "{text}");
        }
    }

    #[test]
    fn every_cpu_leads_to_its_caches() {
        let Some((text, _)) = decompiled(&build(&config_of_numa()).unwrap()) else { return };
        let node = |name: &str| {
            let start = text.find(&format!("{name} {{")).unwrap_or_else(|| panic!("{name} in\n{text}"));
            text[start..].split("};").next().unwrap().to_owned()
        };
        assert!(node("cpu@0").contains("d-cache-size = <0x10000>"));
        let phandle = |name: &str| {
            let node = node(name);
            node.split("\tphandle = ").nth(1).unwrap().split(';').next().unwrap().to_owned()
        };
        for (from, to) in [
            ("cpu@0", "l2-cache0"),
            ("cpu@3", "l2-cache2"),
            ("cpu@7", "l2-cache6"),
            ("l2-cache2", "l3-cache0"),
            ("l2-cache6", "l3-cache4"),
        ] {
            let expected = format!("next-level-cache = {};", phandle(to));
            assert!(node(from).contains(&expected), "{from} {to}: {}", node(from));
        }
        assert!(!node("l3-cache0").contains("next-level-cache"));
    }

    #[test]
    fn the_tree_says_what_the_machine_has() {
        let Some((text, _)) = decompiled(&build(&config(20, 2)).unwrap()) else { return };
        for expected in [
            "bootargs = \"quiet console=ttyAMA0\"",
            "stdout-path = \"/serial@9000000\"",
            "linux,initrd-end = <0x00 0x70001234>",
            "memory@40000000",
            "cpu@103 {",
            "msi-controller@80a0000",
            "msi-map = <0x00 0x101 0x00 0x10000>",
            "linux,pci-domain = <0x01>",
            "interrupts = <0x01 0x07 0x04>",
            "flash@0 {",
            "reg = <0x00 0x00 0x00 0x4000000 0x00 0x4000000 0x00 0x4000000>",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        assert_eq!(text.matches("enable-method = \"psci\"").count(), 20);
    }

    #[test]
    fn a_machine_with_most_cpus_has_a_tree() {
        let size = build(&config(layout::MAX_CPUS, layout::MAX_SEGMENTS)).unwrap().len() as u64;
        assert!(size < FDT_SIZE, "{size}");
    }
}
