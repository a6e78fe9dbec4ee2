//! The split ring (virtio 1.2, 2.7): a descriptor table, the available ring that the driver writes and the used ring that
//! the device writes.

use super::descriptor::{Descriptor, INDIRECT, NEXT, SIZE};
use super::{QueueError, QueueState};
use crate::chain::{Chain, Token};
use crate::host_memory::{RamMap, Table};
use std::sync::atomic::{Ordering, fence};

/// In both rings: 16 bits of flags, then the index, then the entries, then the other side's event index.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;
/// In the available ring's flags: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;
/// In the used ring's flags: the device wants no doorbell.
const NO_NOTIFY: u16 = 1;

pub(super) struct Split {
    descriptors: Table,
    available: Table,
    used: Table,
    size: u16,
    event_idx: bool,
    /// The driver was last asked to ring. Asking for what it does already would only cost it a cache miss.
    notifications: bool,
    /// Free-running index of the next entry to pop.
    next_available: u16,
    /// The driver's index as read last; not before `next_available`.
    available_index: u16,
    /// Free-running index of the next used entry to write; shown to the driver by `flush`.
    next_used: u16,
    /// What was shown.
    flushed: u16,
    /// Used entries since it was last decided whether to interrupt.
    unsignalled: u32,
}

impl Split {
    pub(super) fn new(state: &QueueState, event_idx: bool, ram: &mut RamMap) -> Result<Self, QueueError> {
        let size = state.size;
        if !size.is_power_of_two() {
            return Err(QueueError::Size(size));
        }
        let entries = u64::from(size);
        // The event indices exist only when they are used: older drivers do not allocate them.
        let event = if event_idx { 2 } else { 0 };
        let mut part = |part, address, len, alignment| {
            let table = ram.table(address, len).filter(|table| table.is_aligned(alignment));
            table.ok_or(QueueError::Ring { part, address })
        };
        let lens = (entries.wrapping_mul(16), entries.wrapping_mul(2), entries.wrapping_mul(8));
        Ok(Self {
            descriptors: part("descriptor table", state.descriptor_area, lens.0, 16)?,
            available: part(
                "available ring",
                state.driver_area,
                lens.1.wrapping_add(4).wrapping_add(event),
                2,
            )?,
            used: part("used ring", state.device_area, lens.2.wrapping_add(4).wrapping_add(event), 4)?,
            size,
            event_idx,
            notifications: true,
            next_available: state.next_available,
            available_index: state.next_available,
            next_used: state.next_used,
            flushed: state.next_used,
            unsignalled: 0,
        })
    }

    /// Index in the rings of a free-running index.
    fn slot(&self, index: u16) -> usize {
        (index & self.size.wrapping_sub(1)).into()
    }

    /// Offset of the used event in the available ring: the driver wants an interrupt when this entry is used.
    fn used_event(&self) -> usize {
        usize::from(self.size).wrapping_mul(2).wrapping_add(ENTRIES)
    }

    /// Offset of the available event in the used ring: the device wants a doorbell when this entry is made available.
    fn available_event(&self) -> usize {
        usize::from(self.size).wrapping_mul(8).wrapping_add(ENTRIES)
    }

    #[inline]
    pub(super) fn pop(
        &mut self,
        ram: &mut RamMap,
        indirect: bool,
        chain: &mut Chain,
    ) -> Result<Option<Token>, QueueError> {
        if self.next_available == self.available_index {
            // Acquire: what the index announces is visible.
            let index = self.available.load_u16(INDEX, Ordering::Acquire);
            if index == self.next_available {
                return Ok(None);
            }
            if index.wrapping_sub(self.next_available) > self.size {
                let (from, to, size) = (self.next_available, index, self.size);
                return Err(QueueError::AvailableIndex { from, to, size });
            }
            self.available_index = index;
        }
        let entry = self.slot(self.next_available).wrapping_mul(2).wrapping_add(ENTRIES);
        let head = self.available.load_u16(entry, Ordering::Relaxed);
        chain.begin(ram.memory());
        self.walk(head, ram, indirect, chain)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(Token { id: head, slots: 1, ..Token::default() }))
    }

    fn walk(&self, head: u16, ram: &mut RamMap, indirect: bool, chain: &mut Chain) -> Result<(), QueueError> {
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(QueueError::DescriptorIndex { index, len: self.size.into() });
            }
            let at = usize::from(index).wrapping_mul(SIZE);
            let raw = [self.descriptors.load_u64(at), self.descriptors.load_u64(at.wrapping_add(8))];
            let descriptor = Descriptor::split(raw);
            if descriptor.has(INDIRECT) {
                if !indirect || descriptor.has(NEXT) {
                    return Err(QueueError::Indirect);
                }
                return descriptor.add_table_to(chain, ram, false, self.size);
            }
            descriptor.add_to(chain, ram)?;
            if !descriptor.has(NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::ChainTooLong)
    }

    pub(super) fn unpop(&mut self, _: Token) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    #[inline]
    pub(super) fn push(&mut self, token: Token, written: u32) {
        let entry = self.slot(self.next_used).wrapping_mul(8).wrapping_add(ENTRIES);
        self.used.store_u32(entry, token.id.into());
        self.used.store_u32(entry.wrapping_add(4), written);
        self.next_used = self.next_used.wrapping_add(1);
        self.unsignalled = self.unsignalled.saturating_add(1);
    }

    #[inline]
    pub(super) fn flush(&mut self) {
        if self.flushed != self.next_used {
            // Release: entries and buffers are visible before the index that announces them.
            self.used.store_u16(INDEX, self.next_used, Ordering::Release);
            self.flushed = self.next_used;
        }
    }

    /// Whether the driver wants an interrupt for what was flushed since this was last asked; `None`: nothing was.
    #[inline]
    pub(super) fn take_interrupt(&mut self) -> Option<bool> {
        let count = std::mem::take(&mut self.unsignalled);
        if count == 0 {
            return None;
        }
        // The driver writes its wish and then looks at the index; the index is written and then its wish looked at. With a
        // full barrier between the two on both sides, at least one of them sees the other.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return Some(self.available.load_u16(FLAGS, Ordering::Relaxed) & NO_INTERRUPT == 0);
        }
        let event = self.available.load_u16(self.used_event(), Ordering::Relaxed);
        // Is the event one of the last `count` entries?
        Some(u32::from(self.next_used.wrapping_sub(event).wrapping_sub(1)) < count)
    }

    pub(super) fn enable_notifications(&mut self) -> bool {
        self.notifications = true;
        if self.event_idx {
            self.used.store_u16(self.available_event(), self.next_available, Ordering::Relaxed);
        } else {
            self.used.store_u16(FLAGS, 0, Ordering::Relaxed);
        }
        // As in `take_interrupt`, the other way round.
        fence(Ordering::SeqCst);
        self.has_available()
    }

    pub(super) fn disable_notifications(&mut self) {
        if !std::mem::take(&mut self.notifications) {
            return;
        }
        if self.event_idx {
            // The entry just behind: the driver passes it, and rings, once in 65536 entries.
            let behind = self.next_available.wrapping_sub(1);
            self.used.store_u16(self.available_event(), behind, Ordering::Relaxed);
        } else {
            self.used.store_u16(FLAGS, NO_NOTIFY, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn has_available(&self) -> bool {
        self.next_available != self.available_index
            || self.next_available != self.available.load_u16(INDEX, Ordering::Acquire)
    }

    pub(super) fn progress(&self) -> (u16, u16) {
        (self.next_available, self.next_used)
    }
}
