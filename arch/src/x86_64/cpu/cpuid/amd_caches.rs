//! AMD's description of caches (AMD APM 3, E.4.5, E.4.6 and E.4.15).
//!
//! Only leaf 0x8000_001D says who shares a cache. A host that lacks it still has the sizes in leaves
//! 0x8000_0005 and 0x8000_0006, from which it is made here.

use super::{AMD_CACHES, CpuidEntry, find};

const LEVEL_1: u32 = 0x8000_0005;
const LEVELS_2_AND_3: u32 = 0x8000_0006;

/// EAX of leaf 0x8000_001D: what is cached, and that no software sets the cache up.
const DATA: u32 = 1;
const INSTRUCTIONS: u32 = 2;
const UNIFIED: u32 = 3;
const SELF_INITIALIZING: u32 = 1 << 8;

/// A cache as the old leaves tell it.
struct Cache {
    kind: u32,
    level: u32,
    kib: u32,
    ways: u32,
    line: u32,
}

/// Adds leaf 0x8000_001D. That no CPU shares a cache yet is what its zeroes say.
pub(super) fn add(leaves: &mut Vec<CpuidEntry>) {
    let caches = from_old_leaves(leaves);
    let end = CpuidEntry { function: AMD_CACHES, indexed: true, ..Default::default() };
    let caches = caches.iter().filter_map(subleaf).chain([end]);
    leaves.extend((0..).zip(caches).map(|(index, leaf)| CpuidEntry { index, ..leaf }));
}

fn from_old_leaves(leaves: &[CpuidEntry]) -> Vec<Cache> {
    let mut caches = Vec::new();
    if let Some(leaf) = find(leaves, LEVEL_1, 0) {
        for (kind, register) in [(DATA, leaf.ecx), (INSTRUCTIONS, leaf.edx)] {
            let ways = register >> 16 & 0xff;
            caches.push(Cache { kind, level: 1, kib: register >> 24, ways, line: register & 0xff });
        }
    }
    if let Some(leaf) = find(leaves, LEVELS_2_AND_3, 0) {
        for (level, register, kib) in [(2, leaf.ecx, leaf.ecx >> 16), (3, leaf.edx, (leaf.edx >> 18) * 512)] {
            caches.push(Cache {
                kind: UNIFIED,
                level,
                kib,
                ways: ways(register >> 12 & 0xf),
                line: register & 0xff,
            });
        }
    }
    caches
}

/// The number of ways that a code in leaf 0x8000_0006 stands for; 0 where there is no cache or it tells none.
fn ways(code: u32) -> u32 {
    match code {
        1..=4 => code,
        5 => 6,
        6 => 8,
        8 => 16,
        0xa => 32,
        0xb => 48,
        0xc => 64,
        0xd => 96,
        0xe => 128,
        _ => 0,
    }
}

/// `None` if there is no such cache, or it has no whole number of sets.
fn subleaf(cache: &Cache) -> Option<CpuidEntry> {
    let &Cache { kind, level, kib, ways, line } = cache;
    let bytes = kib.checked_mul(1024)?;
    if bytes == 0 || ways == 0 || line == 0 || !bytes.is_multiple_of(ways * line) {
        return None;
    }
    Some(CpuidEntry {
        function: AMD_CACHES,
        indexed: true,
        eax: kind | level << 5 | SELF_INITIALIZING,
        ebx: (ways - 1) << 22 | (line - 1),
        ecx: bytes / (ways * line) - 1,
        ..Default::default()
    })
}
