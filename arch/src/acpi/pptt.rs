//! The PPTT (ACPI 6.5, 5.2.30): how CPUs are grouped, and which caches they share.

use super::table::{HEADER_SIZE, TableWriter};
use crate::caches::{Cache, CacheKind, CacheScope};
use crate::topology::Topology;

const PROCESSOR: u8 = 0;
const CACHE: u8 = 1;
/// Bytes of a cache's structure.
const CACHE_SIZE: u8 = 28;
// Flags of a processor hierarchy node.
const PHYSICAL_PACKAGE: u32 = 1 << 0;
const UID_VALID: u32 = 1 << 1;
const IS_THREAD: u32 = 1 << 2;
const LEAF: u32 = 1 << 3;
const IDENTICAL: u32 = 1 << 4;

// Flags of a cache.
const SHAPE_VALID: u32 = 0b100_0111;
const KIND_VALID: u32 = 0b11_1000;
const ID_VALID: u32 = 1 << 7;

/// Makes the PPTT of `cpus` CPUs, those of a place in `topology` being numbered as in [`Topology::place`]. A CPU's number is
/// its ACPI processor UID.
pub(crate) fn pptt(topology: Topology, cpus: u32, caches: &[Cache]) -> Vec<u8> {
    let mut tree = Tree { table: TableWriter::new(*b"PPTT", 3), size: HEADER_SIZE, caches, next_id: 1 };
    let levels = Levels {
        cpus,
        threads: topology.threads(),
        per_die: topology.threads() * topology.cores(),
        per_package: topology.cpus_per_package(),
    };
    for (number, package) in levels.groups(0, cpus, levels.per_package) {
        // With one die in it, a package is its die.
        let flags = PHYSICAL_PACKAGE | IDENTICAL;
        if levels.per_package == levels.per_die {
            let shared = tree.caches(CacheScope::Die, 0);
            let node = tree.node(flags, 0, number, &shared.first());
            levels.cores(&mut tree, node, package, shared.outermost());
            continue;
        }
        let node = tree.node(flags, 0, number, &[]);
        for (number, die) in levels.groups(package, levels.per_package, levels.per_die) {
            let shared = tree.caches(CacheScope::Die, 0);
            let node = tree.node(IDENTICAL, node, number, &shared.first());
            levels.cores(&mut tree, node, die, shared.outermost());
        }
    }
    tree.table.finish()
}

/// How many CPUs there are at each level.
struct Levels {
    cpus: u32,
    threads: u32,
    per_die: u32,
    per_package: u32,
}

impl Levels {
    /// The groups of `size` CPUs among the `count` from `first` on, those that have a CPU: number and first CPU.
    fn groups(&self, first: u32, count: u32, size: u32) -> impl Iterator<Item = (u32, u32)> + use<> {
        let end = self.cpus.min(first + count);
        (first..end).step_by(size.max(1) as usize).map(move |first| (first / size.max(1), first))
    }

    /// Adds the cores of a die whose first CPU is `first`. The caches in them lead to the one at `shared`.
    fn cores(&self, tree: &mut Tree<'_>, die: u32, first: u32, shared: u32) {
        for (number, core) in self.groups(first, self.per_die, self.threads) {
            let private = tree.caches(CacheScope::Core, shared);
            if self.threads == 1 {
                tree.node(UID_VALID | LEAF, die, core, &private.first());
                continue;
            }
            let node = tree.node(IDENTICAL, die, number, &private.first());
            for (_, thread) in self.groups(core, self.threads, 1) {
                tree.node(UID_VALID | IS_THREAD | LEAF, node, thread, &[]);
            }
        }
    }
}

/// The table as far as it is made. Structures refer to others by their offset in it.
struct Tree<'a> {
    table: TableWriter,
    size: usize,
    caches: &'a [Cache],
    /// Every cache has an id of its own.
    next_id: u32,
}

/// Where a group's caches are: each with its level.
struct Placed(Vec<(u8, u32)>);

impl Placed {
    /// Those that nothing of the group is nearer to a CPU than.
    fn first(&self) -> Vec<u32> {
        let level = self.0.iter().map(|(level, _)| *level).min();
        self.0.iter().filter(|(found, _)| Some(*found) == level).map(|(_, at)| *at).collect()
    }

    /// What a nearer cache of another group leads to: 0 for nothing.
    fn outermost(&self) -> u32 {
        self.first().first().copied().unwrap_or(0)
    }
}

impl Tree<'_> {
    /// Adds a processor hierarchy node (5.2.30.1), and returns where.
    fn node(&mut self, flags: u32, parent: u32, id: u32, resources: &[u32]) -> u32 {
        let at = self.size as u32;
        let length = 20 + resources.len() * 4;
        self.table.bytes(&[PROCESSOR, length as u8, 0, 0]);
        for value in [flags, parent, id, resources.len() as u32] {
            self.table.u32(value);
        }
        for resource in resources {
            self.table.u32(*resource);
        }
        self.size += length;
        at
    }

    /// Adds the caches of a group, of which the farthest lead to the cache at `next`.
    fn caches(&mut self, scope: CacheScope, next: u32) -> Placed {
        let mut chosen: Vec<_> = self.caches.iter().copied().filter(|cache| cache.scope == scope).collect();
        chosen.sort_by_key(|cache| std::cmp::Reverse(cache.level));
        let mut placed: Vec<(u8, u32)> = Vec::new();
        for cache in chosen {
            let farther = placed.iter().rev().find(|(level, _)| *level > cache.level);
            let next = farther.map_or(next, |(_, at)| *at);
            placed.push((cache.level, self.cache(cache, next)));
        }
        Placed(placed)
    }

    /// Adds a cache (5.2.30.2), and returns where.
    fn cache(&mut self, cache: Cache, next: u32) -> u32 {
        let at = self.size as u32;
        // Write-back, and allocated for both reads and writes.
        let attributes = match cache.kind {
            CacheKind::Data => 0b0_0010,
            CacheKind::Instruction => 0b0_0110,
            CacheKind::Unified => 0b0_1010,
        };
        let shape_flags = if cache.shape.is_some() { SHAPE_VALID } else { 0 };
        self.table.bytes(&[CACHE, CACHE_SIZE, 0, 0]);
        self.table.u32(shape_flags | KIND_VALID | ID_VALID);
        self.table.u32(next);
        let (size, line, sets, ways) =
            cache.shape.map_or((0, 0, 0, 0), |shape| (shape.size, shape.line, shape.sets, shape.ways));
        self.table.u32(size);
        self.table.u32(sets);
        self.table.bytes(&[ways, attributes]);
        self.table.u16(line);
        self.table.u32(self.next_id);
        self.next_id += 1;
        self.size += usize::from(CACHE_SIZE);
        at
    }
}
