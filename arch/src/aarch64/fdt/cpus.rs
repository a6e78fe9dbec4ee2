//! CPUs with their caches (Devicetree Specification 0.4, 3.8 and 3.9), and what each of them has: firmware to call, timers, a
//! performance monitor.

use super::{FIRST_PRIVATE, FdtConfig, LEVEL_HIGH, PRIVATE, Result, Tree};
use crate::aarch64::cpu::{
    PMU_INTERRUPT, TIMER_HYPERVISOR, TIMER_PHYSICAL, TIMER_SECURE, TIMER_VIRTUAL, affinity,
};
use crate::caches::{Cache, CacheKind, CacheScope};
use crate::topology::Topology;

// Nodes that others refer to; the number of one is added.
const PHANDLE_CPU: u32 = 0x1000;
const PHANDLE_CACHE: u32 = 0x10_0000;

/// Adds the CPUs, their caches and how they are grouped.
pub(super) fn nodes(tree: &mut Tree, config: &FdtConfig) -> Result<()> {
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

/// Adds the firmware that is called to start CPUs (`arm,psci.yaml`).
pub(super) fn psci(tree: &mut Tree) -> Result<()> {
    tree.node("psci", |tree| {
        tree.strings("compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
        Ok(tree.0.property_string("method", "hvc")?)
    })
}

/// Adds the timers (`arm,arch_timer.yaml`).
pub(super) fn timer(tree: &mut Tree) -> Result<()> {
    tree.node("timer", |tree| {
        tree.0.property_string("compatible", "arm,armv8-timer")?;
        tree.0.property_null("always-on")?;
        let interrupts = [TIMER_SECURE, TIMER_PHYSICAL, TIMER_VIRTUAL, TIMER_HYPERVISOR];
        let cells: Vec<u32> =
            interrupts.into_iter().flat_map(|number| [PRIVATE, number - FIRST_PRIVATE, LEVEL_HIGH]).collect();
        Ok(tree.0.property_array_u32("interrupts", &cells)?)
    })
}

/// Adds the performance monitor (`arm,pmu.yaml`).
pub(super) fn pmu(tree: &mut Tree) -> Result<()> {
    tree.node("pmu", |tree| {
        tree.0.property_string("compatible", "arm,armv8-pmuv3")?;
        let interrupt = [PRIVATE, PMU_INTERRUPT - FIRST_PRIVATE, LEVEL_HIGH];
        Ok(tree.0.property_array_u32("interrupts", &interrupt)?)
    })
}
