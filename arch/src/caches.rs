//! The caches of CPUs, as tables tell of them. Nothing depends on it in the guest but how well its scheduler places
//! what it runs.

use std::path::Path;
use std::str::FromStr;

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// Instructions.
    Instruction,
    /// Data.
    Data,
    /// Both.
    Unified,
}

/// Which CPUs share a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheScope {
    /// The threads of a core.
    Core,
    /// The cores of a die.
    Die,
}

/// What its size and shape are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Bytes in all.
    pub size: u32,
    /// Bytes of a line.
    pub line: u16,
    /// Sets.
    pub sets: u32,
    /// Lines of a set.
    pub ways: u8,
}

/// A cache that each CPU has, or has a share of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// How far from the CPU, from 1.
    pub level: u8,
    /// What it holds.
    pub kind: CacheKind,
    /// Which CPUs share it.
    pub scope: CacheScope,
    /// Its shape, where that is known.
    pub shape: Option<CacheShape>,
}

/// No CPU has more.
const MOST: usize = 16;

impl Cache {
    /// The caches of the host's CPU that `folder` is about, such as `/sys/devices/system/cpu/cpu0` (Linux,
    /// `Documentation/ABI/testing/sysfs-devices-system-cpu`), nearest first. None where the host does not tell.
    pub fn of_host(folder: &Path) -> Vec<Self> {
        let threads = text(&folder.join("topology/thread_siblings_list")).map_or(1, |list| count(&list));
        let caches = (0..MOST).map(|index| folder.join("cache").join(format!("index{index}")));
        let there = caches.take_while(|folder| folder.exists());
        let mut caches: Vec<_> = there.filter_map(|folder| Self::read(&folder, threads)).collect();
        caches.sort_by_key(|cache| cache.level);
        caches
    }

    fn read(folder: &Path, threads: usize) -> Option<Self> {
        let kind = match text(&folder.join("type"))?.as_str() {
            "Instruction" => CacheKind::Instruction,
            "Data" => CacheKind::Data,
            "Unified" => CacheKind::Unified,
            _ => return None,
        };
        let shared_by = text(&folder.join("shared_cpu_list")).map_or(1, |list| count(&list));
        let scope = if shared_by > threads { CacheScope::Die } else { CacheScope::Core };
        Some(Self { level: number(folder, "level")?, kind, scope, shape: shape(folder) })
    }
}

fn shape(folder: &Path) -> Option<CacheShape> {
    let size = text(&folder.join("size"))?;
    let kib: u32 = size.strip_suffix('K')?.parse().ok()?;
    Some(CacheShape {
        size: kib.checked_mul(1024)?,
        line: number(folder, "coherency_line_size")?,
        sets: number(folder, "number_of_sets")?,
        ways: number(folder, "ways_of_associativity")?,
    })
}

fn text(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number<T: FromStr>(folder: &Path, name: &str) -> Option<T> {
    text(&folder.join(name))?.parse().ok()
}

/// How many CPUs are in a list such as `0-3,8`.
fn count(list: &str) -> usize {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').filter_map(part).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_caches_are_told() {
        let folder = std::env::temp_dir().join(format!("vivarium-caches-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        };
        write("topology/thread_siblings_list", "0,64");
        for (index, level, kind, shared, size) in [
            (0, "1", "Data", "0,64", "64K"),
            (1, "1", "Instruction", "0,64", "64K"),
            (2, "3", "Unified", "0-31,64-95", "32768K"),
            (3, "2", "Unified", "0,64", ""),
        ] {
            let write = |name: &str, text: &str| write(&format!("cache/index{index}/{name}"), text);
            write("level", level);
            write("type", kind);
            write("shared_cpu_list", shared);
            if !size.is_empty() {
                write("size", size);
                write("coherency_line_size", "64");
                write("number_of_sets", "256");
                write("ways_of_associativity", "4");
            }
        }
        let caches = Cache::of_host(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        let shape = |size| Some(CacheShape { size, line: 64, sets: 256, ways: 4 });
        let cache = |level, kind, scope, shape| Cache { level, kind, scope, shape };
        let expected = [
            cache(1, CacheKind::Data, CacheScope::Core, shape(64 << 10)),
            cache(1, CacheKind::Instruction, CacheScope::Core, shape(64 << 10)),
            cache(2, CacheKind::Unified, CacheScope::Core, None),
            cache(3, CacheKind::Unified, CacheScope::Die, shape(32 << 20)),
        ];
        assert_eq!(caches, expected);
        assert_eq!(Cache::of_host(&folder), [], "a host that does not tell");
    }
}
