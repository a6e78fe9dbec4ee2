//! Split rings (virtio 1.2, 2.7), driver side.

use super::ring::{Buffer, Descriptor, Layout, flag, needs_event};
use crate::memory;
use core::sync::atomic::{Ordering, fence};

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A split ring.
pub struct SplitRing {
    size: u16,
    /// Most parts of a chain.
    parts: u16,
    event_idx: bool,
    /// A table of `parts` descriptors for each slot, if chains are indirect.
    tables: Option<*mut Descriptor>,
    descriptors: *mut Descriptor,
    /// Flags, index, ring, used_event.
    available: *mut u16,
    /// Flags, index, ring of (id, length) in 32 bits each, avail_event.
    used: *mut u16,
    next_available: u16,
    published: u16,
    next_used: u16,
    interrupts: bool,
}

impl SplitRing {
    /// See [`super::ring::Ring::new`]. Interrupts are off at first.
    pub fn new(size: u16, parts: u16, event_idx: bool, indirect: bool) -> SplitRing {
        let count = u64::from(size);
        let mut ring = SplitRing {
            size,
            parts,
            event_idx,
            tables: indirect.then(|| memory::take(16 * count * u64::from(parts), 16).cast()),
            descriptors: memory::take(16 * count, 4096).cast(),
            available: memory::take(6 + 2 * count, 4096).cast(),
            used: memory::take(6 + 8 * count, 4096).cast(),
            next_available: 0,
            published: 0,
            next_used: 0,
            interrupts: false,
        };
        ring.want_interrupt(false);
        ring
    }

    /// See [`super::ring::Ring::layout`].
    pub fn layout(&self) -> Layout {
        Layout {
            size: self.size,
            descriptors: self.descriptors as u64,
            driver: self.available as u64,
            device: self.used as u64,
        }
    }

    /// See [`super::ring::Ring::slots`].
    pub fn slots(&self) -> u16 {
        if self.tables.is_some() { self.size } else { self.size / self.parts }
    }

    /// See [`super::ring::Ring::add`]. Slot s begins at descriptor s (indirect) or s times the parts of a chain.
    pub fn add(&mut self, slot: u16, chain: &[Buffer]) {
        let head = match self.tables {
            Some(tables) => {
                let table = tables.wrapping_add(usize::from(slot) * usize::from(self.parts));
                write_chain(table, 0, chain);
                let length = 16 * chain.len() as u32;
                self.set_descriptor(slot, table as u64, length, flag::INDIRECT, 0);
                slot
            }
            None => {
                let head = slot * self.parts;
                write_chain(self.descriptors.wrapping_add(usize::from(head)), head, chain);
                head
            }
        };
        self.offer(head);
    }

    /// Writes descriptor `index` as it is, whatever it says.
    pub fn set_descriptor(&mut self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let descriptor = Descriptor { address, length, third: flags, fourth: next };
        // SAFETY: callers pass an index below the size; the table is this ring's.
        unsafe { self.descriptors.add(usize::from(index)).write_volatile(descriptor) };
    }

    /// Puts a chain's head into the available ring, whatever it is.
    pub fn offer(&mut self, head: u16) {
        let position = 2 + usize::from(self.next_available & (self.size - 1));
        // SAFETY: the position is within the available ring.
        unsafe { self.available.add(position).write_volatile(head) };
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Lets the available index jump by `distance`, without entries behind it.
    pub fn jump(&mut self, distance: u16) {
        self.next_available = self.next_available.wrapping_add(distance);
    }

    /// See [`super::ring::Ring::publish`].
    pub fn publish(&mut self) -> bool {
        if self.event_idx && !self.interrupts {
            self.set_used_event(self.next_used.wrapping_sub(1));
        }
        let (old, new) = (self.published, self.next_available);
        self.published = new;
        fence(Ordering::Release);
        // SAFETY: index 1 is the ring's index field.
        unsafe { self.available.add(1).write_volatile(new) };
        // The index must be seen before the device's wish is read (2.7.13.4.1).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let position = 2 + 4 * usize::from(self.size);
            // SAFETY: avail_event lies behind the used ring.
            needs_event(unsafe { self.used.add(position).read_volatile() }, new, old)
        } else {
            // SAFETY: index 0 is the flags field.
            new != old && unsafe { self.used.read_volatile() } & NO_NOTIFY == 0
        }
    }

    /// See [`super::ring::Ring::has_completion`].
    pub fn has_completion(&self) -> bool {
        // SAFETY: index 1 is the used ring's index field.
        unsafe { self.used.add(1).read_volatile() != self.next_used }
    }

    /// See [`super::ring::Ring::take`].
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if !self.has_completion() {
            return None;
        }
        fence(Ordering::Acquire);
        let position = 2 + 4 * usize::from(self.next_used & (self.size - 1));
        // SAFETY: the position is within the used ring; elements are 8 bytes, 4-byte aligned.
        let (id, length) = unsafe {
            let element = self.used.add(position).cast::<u32>();
            (element.read_volatile(), element.add(1).read_volatile())
        };
        self.next_used = self.next_used.wrapping_add(1);
        if self.event_idx && self.interrupts {
            self.set_used_event(self.next_used);
        }
        let slot = if self.tables.is_some() { id } else { id / u32::from(self.parts) };
        Some((slot.min(0xffff) as u16, length))
    }

    /// See [`super::ring::Ring::want_interrupt`].
    pub fn want_interrupt(&mut self, want: bool) {
        self.interrupts = want;
        // SAFETY: index 0 is the available ring's flags field.
        unsafe { self.available.write_volatile(if want || self.event_idx { 0 } else { NO_INTERRUPT }) };
        if self.event_idx {
            // An event behind the next index never comes as long as `publish` keeps it there.
            self.set_used_event(if want { self.next_used } else { self.next_used.wrapping_sub(1) });
        }
        fence(Ordering::SeqCst);
    }

    fn set_used_event(&mut self, index: u16) {
        let position = 2 + usize::from(self.size);
        // SAFETY: used_event lies behind the available ring.
        unsafe { self.available.add(position).write_volatile(index) };
    }
}

/// Writes a chain into consecutive descriptors, the first of which has index `first` in its table.
fn write_chain(to: *mut Descriptor, first: u16, chain: &[Buffer]) {
    for (index, part) in chain.iter().enumerate() {
        let more = if index + 1 < chain.len() { flag::NEXT } else { 0 };
        let write = if part.writable { flag::WRITE } else { 0 };
        let next = if more != 0 { first + index as u16 + 1 } else { 0 };
        let descriptor =
            Descriptor { address: part.address, length: part.length, third: more | write, fourth: next };
        // SAFETY: a chain has at most as many parts as a slot has descriptors.
        unsafe { to.add(index).write_volatile(descriptor) };
    }
}
