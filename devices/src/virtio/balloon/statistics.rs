//! Statistics of the guest's memory (virtio 1.2, 5.5.6.3).

use machine::inspect::{Inspect, Value};
use std::sync::atomic::{AtomicU64, Ordering};
use virtio::chain::Chain;

/// Bytes of an entry: tag and value.
const ENTRY: usize = 10;
/// More entries than there are tags are not looked at.
const MOST_ENTRIES: usize = 64;

/// The statistics by their tags (5.5.6.4). All of memory in bytes.
const NAMES: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// What the driver told of its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How often it told, since it took up its device.
    pub updates: u64,
    values: [Option<u64>; NAMES.len()],
}

impl Statistics {
    /// A value by its name, such as `"free_memory"`; in bytes where it is about memory.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All values that the driver gave, with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.values).filter_map(|(name, value)| Some((name, value?)))
    }
}

impl Inspect for Statistics {
    fn inspect(&self) -> Value {
        let values = self.iter().map(|(name, value)| (name.to_owned(), Value::from(value)));
        std::iter::once(("updates".to_owned(), Value::from(self.updates))).chain(values).collect()
    }
}

/// Statistics that one thread writes and others read.
#[derive(Default)]
pub(super) struct StatisticsStore {
    updates: AtomicU64,
    /// One bit for each value that was given.
    present: AtomicU64,
    values: [AtomicU64; NAMES.len()],
}

impl StatisticsStore {
    /// Takes what the driver put into a buffer.
    pub(super) fn take(&self, chain: &Chain) {
        let mut bytes = [0; ENTRY * MOST_ENTRIES];
        let count = chain.read_at(0, &mut bytes);
        let mut present = 0;
        for entry in bytes.get(..count).unwrap_or_default().chunks_exact(ENTRY) {
            let &[t0, t1, v0, v1, v2, v3, v4, v5, v6, v7] = entry else { continue };
            let tag = u16::from_le_bytes([t0, t1]);
            let value = u64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]);
            if let Some(place) = self.values.get(usize::from(tag)) {
                place.store(value, Ordering::Relaxed);
                present |= 1_u64.wrapping_shl(tag.into());
            }
        }
        self.present.store(present, Ordering::Relaxed);
        self.updates.fetch_add(1, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.present.store(0, Ordering::Relaxed);
        self.updates.store(0, Ordering::Release);
    }

    pub(super) fn read(&self) -> Statistics {
        let updates = self.updates.load(Ordering::Acquire);
        let present = self.present.load(Ordering::Relaxed);
        let mut statistics = Statistics { updates, ..Statistics::default() };
        for (tag, (to, from)) in (0_u32..).zip(statistics.values.iter_mut().zip(&self.values)) {
            *to = (present & 1_u64.wrapping_shl(tag) != 0).then(|| from.load(Ordering::Relaxed));
        }
        statistics
    }
}
