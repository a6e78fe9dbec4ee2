//! Address spaces: which device answers an access.
//!
//! A [`Bus`] is an immutable table from address ranges to devices. CPU threads read the table in force
//! through a [`BusHandle`] without taking a lock; the machine thread publishes a changed table.

use crate::effect::Effect;
use arc_swap::{ArcSwap, Cache};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// A device's register window.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes (1 to 8; the access lies within the window) at `offset` from
    /// the window's start. `data` is all ones on entry: what an absent register reads as.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` (1 to 8 bytes, within the window) at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect>;
}

/// A device as the bus holds it. The lock is the device's register lock: it is taken for one register
/// access, never on a data path.
pub type DeviceHandle = Arc<Mutex<dyn BusDevice>>;

/// An inclusive-exclusive range of addresses: `start..start + size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Number of addresses, at least 1.
    pub size: u64,
}

impl Range {
    /// The last address, saturating at the end of the address space.
    pub fn last(self) -> u64 {
        self.start.saturating_add(self.size.saturating_sub(1))
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }
}

/// Why a device could not be put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or runs over the end of the address space.
    #[error("the address range {start:#x}+{size:#x} is empty or wraps", start = .0.start, size = .0.size)]
    Invalid(Range),
    /// Another device has part of the range.
    #[error("the address range {:#x}+{:#x} overlaps {:#x}+{:#x}", .new.start, .new.size, .present.start, .present.size)]
    Overlap {
        /// The range asked for.
        new: Range,
        /// The range that has part of it.
        present: Range,
    },
}

#[derive(Clone)]
struct Entry {
    range: Range,
    device: DeviceHandle,
}

/// A table from address ranges to devices, ordered by address.
#[derive(Clone, Default)]
pub struct Bus {
    entries: Vec<Entry>,
}

impl Bus {
    /// Puts a device on the bus.
    ///
    /// # Errors
    /// When the range is empty, wraps or overlaps a device already there; the bus is then unchanged.
    pub fn insert(&mut self, range: Range, device: DeviceHandle) -> Result<(), BusError> {
        if range.size == 0 || range.start.checked_add(range.size.saturating_sub(1)).is_none() {
            return Err(BusError::Invalid(range));
        }
        let at = self.entries.partition_point(|entry| entry.range.start < range.start);
        let before = at.checked_sub(1).and_then(|i| self.entries.get(i));
        for neighbour in before.into_iter().chain(self.entries.get(at)) {
            if neighbour.range.overlaps(range) {
                return Err(BusError::Overlap { new: range, present: neighbour.range });
            }
        }
        self.entries.insert(at, Entry { range, device });
        Ok(())
    }

    /// Takes the device that starts at `start` off the bus.
    pub fn remove(&mut self, start: u64) -> Option<DeviceHandle> {
        let at = self.entries.iter().position(|entry| entry.range.start == start)?;
        Some(self.entries.remove(at).device)
    }

    /// The ranges in use, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.entries.iter().map(|entry| entry.range)
    }

    /// The device that has all of `address..address + size`, and the offset into its window.
    fn find(&self, address: u64, size: u64) -> Option<(&Entry, u64)> {
        let at = self.entries.partition_point(|entry| entry.range.start <= address);
        let entry = self.entries.get(at.checked_sub(1)?)?;
        let offset = address.checked_sub(entry.range.start)?;
        (offset.checked_add(size)? <= entry.range.size).then_some((entry, offset))
    }

    /// Performs a read of 1 to 8 bytes. An access no device has reads as all ones; `false` says so.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((entry, offset)) = self.find(address, data.len() as u64) else { return false };
        entry.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        true
    }

    /// Performs a write of 1 to 8 bytes. `None` in the first place: no device has the address.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<Option<Effect>> {
        let (entry, offset) = self.find(address, data.len() as u64)?;
        Some(entry.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data))
    }
}

/// Where the table in force is published. Clones name the same bus.
#[derive(Clone, Default)]
pub struct BusHandle(Arc<ArcSwap<Bus>>);

impl BusHandle {
    /// Changes the bus: `change` works on a copy, which takes effect if it succeeds. Called by the
    /// machine thread alone.
    ///
    /// # Errors
    /// Whatever `change` returns; the bus is then unchanged.
    pub fn change<T, E>(&self, change: impl FnOnce(&mut Bus) -> Result<T, E>) -> Result<T, E> {
        let mut bus = Bus::clone(&self.0.load());
        let result = change(&mut bus)?;
        self.0.store(Arc::new(bus));
        Ok(result)
    }

    /// A reader for one CPU thread.
    pub fn reader(&self) -> BusReader {
        BusReader(Cache::new(Arc::clone(&self.0)))
    }

    /// The table in force.
    pub fn snapshot(&self) -> Arc<Bus> {
        self.0.load_full()
    }
}

/// A thread's view of a bus: the table in force at each access, without a lock.
pub struct BusReader(Cache<Arc<ArcSwap<Bus>>, Arc<Bus>>);

impl BusReader {
    /// The table in force now.
    pub fn bus(&mut self) -> &Bus {
        self.0.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Cell(u64);

    impl BusDevice for Cell {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = self.0 as u8 + offset as u8;
        }
        fn write(&mut self, _offset: u64, data: &[u8]) -> Option<Effect> {
            self.0 = u64::from(data[0]);
            (data[0] == 0xee).then_some(Effect::PowerOff)
        }
    }

    fn range(start: u64, size: u64) -> Range {
        Range { start, size }
    }

    #[test]
    fn accesses_reach_the_device_that_has_all_of_them() {
        let mut bus = Bus::default();
        bus.insert(range(0x10, 8), Arc::new(Mutex::new(Cell::default()))).unwrap();
        assert_eq!(bus.write(0x10, &[5]), Some(None));
        let mut data = [0];
        assert!(bus.read(0x12, &mut data));
        assert_eq!(data, [7]);
        assert_eq!(bus.write(0x17, &[0xee]), Some(Some(Effect::PowerOff)));
        for address in [0xf, 0x18, u64::MAX] {
            let mut data = [0];
            assert!(!bus.read(address, &mut data));
            assert_eq!(data, [0xff], "an absent register reads as all ones");
            assert_eq!(bus.write(address, &[1]), None);
        }
        assert!(!bus.read(0x17, &mut [0; 2]), "an access that straddles the end is nobody's");
    }

    #[test]
    fn overlapping_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::default();
        let cell = || Arc::new(Mutex::new(Cell::default()));
        bus.insert(range(0x100, 0x10), cell()).unwrap();
        for bad in [range(0x100, 1), range(0x10f, 1), range(0xff, 2), range(0, 0x1000)] {
            assert!(matches!(bus.insert(bad, cell()), Err(BusError::Overlap { .. })), "{bad:?}");
        }
        for bad in [range(0, 0), range(u64::MAX, 2)] {
            assert_eq!(bus.insert(bad, cell()), Err(BusError::Invalid(bad)));
        }
        bus.insert(range(u64::MAX, 1), cell()).unwrap();
        bus.insert(range(0x110, 1), cell()).unwrap();
        assert_eq!(bus.ranges().map(|r| r.start).collect::<Vec<_>>(), [0x100, 0x110, u64::MAX]);
    }

    #[test]
    fn a_reader_sees_a_published_change_and_never_a_failed_one() {
        let handle = BusHandle::default();
        let mut reader = handle.reader();
        let cell = || Arc::new(Mutex::new(Cell::default()));
        handle.change(|bus| bus.insert(range(0, 1), cell())).unwrap();
        assert!(reader.bus().read(0, &mut [0]));
        let failed = handle.change(|bus| {
            bus.remove(0);
            bus.insert(range(0, 0), cell())
        });
        assert!(failed.is_err());
        assert!(reader.bus().read(0, &mut [0]), "a failed change leaves the bus as it was");
    }
}
