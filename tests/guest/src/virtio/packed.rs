//! Packed rings (virtio 1.2, 2.8), driver side.

use super::ring::{Buffer, Descriptor, Layout, flag, needs_event};
use crate::memory;
use core::sync::atomic::{Ordering, fence};

const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Event area flags (2.8.10).
const EVENTS_ENABLE: u16 = 0;
const EVENTS_DISABLE: u16 = 1;
const EVENTS_DESCRIPTOR: u16 = 2;

/// A packed ring.
pub struct PackedRing {
    size: u16,
    /// Most parts of a chain.
    parts: u16,
    event_idx: bool,
    /// A table of `parts` descriptors for each slot, if chains are indirect.
    tables: Option<*mut Descriptor>,
    descriptors: *mut Descriptor,
    /// Offset and wrap counter, flags.
    driver_events: *mut u16,
    device_events: *mut u16,
    /// How many descriptors each slot's chain has taken.
    taken: *mut u16,
    next_available: u16,
    available_wrap: bool,
    /// Descriptors made available since the last [`PackedRing::publish`].
    added: u16,
    next_used: u16,
    used_wrap: bool,
    interrupts: bool,
}

impl PackedRing {
    /// See [`super::ring::Ring::new`]. Interrupts are off at first.
    pub fn new(size: u16, parts: u16, event_idx: bool, indirect: bool) -> PackedRing {
        let count = u64::from(size);
        let mut ring = PackedRing {
            size,
            parts,
            event_idx,
            tables: indirect.then(|| memory::take(16 * count * u64::from(parts), 16).cast()),
            descriptors: memory::take(16 * count, 4096).cast(),
            driver_events: memory::take(4, 4096).cast(),
            device_events: memory::take(4, 4096).cast(),
            taken: memory::take(2 * count, 64).cast(),
            next_available: 0,
            available_wrap: true,
            added: 0,
            next_used: 0,
            used_wrap: true,
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
            driver: self.driver_events as u64,
            device: self.device_events as u64,
        }
    }

    /// See [`super::ring::Ring::slots`].
    pub fn slots(&self) -> u16 {
        if self.tables.is_some() { self.size } else { self.size / self.parts }
    }

    /// See [`super::ring::Ring::add`]. The buffer ID is the slot.
    pub fn add(&mut self, slot: u16, chain: &[Buffer]) {
        match self.tables {
            Some(tables) => {
                let table = tables.wrapping_add(usize::from(slot) * usize::from(self.parts));
                for (index, part) in chain.iter().enumerate() {
                    let flags = if part.writable { flag::WRITE } else { 0 };
                    let entry =
                        Descriptor { address: part.address, length: part.length, third: 0, fourth: flags };
                    // SAFETY: a chain has at most as many parts as a table has descriptors.
                    unsafe { table.add(index).write_volatile(entry) };
                }
                self.put(slot, &[(table as u64, 16 * chain.len() as u32, flag::INDIRECT)]);
            }
            None => {
                let mut raw = [(0, 0, 0); 8];
                for (index, part) in chain.iter().enumerate() {
                    let more = if index + 1 < chain.len() { flag::NEXT } else { 0 };
                    let write = if part.writable { flag::WRITE } else { 0 };
                    raw[index] = (part.address, part.length, more | write);
                }
                self.put(slot, &raw[..chain.len()]);
            }
        }
    }

    /// Makes descriptors (address, length, flags) available as they are, whatever they say. The first one's flags
    /// are written last, so that the device sees all or none.
    pub fn put(&mut self, id: u16, chain: &[(u64, u32, u16)]) {
        let head = (self.next_available, self.available_wrap);
        for (index, &(address, length, flags)) in chain.iter().enumerate() {
            let turn = if self.available_wrap { AVAILABLE } else { USED };
            let at = self.descriptors.wrapping_add(usize::from(self.next_available));
            // The head stays as the device left it (used: both bits as the last round had them) until the end.
            // SAFETY: the position is below the size; the ring is this one's.
            unsafe {
                (&raw mut (*at).address).write_volatile(address);
                (&raw mut (*at).length).write_volatile(length);
                (&raw mut (*at).third).write_volatile(id);
                if index > 0 {
                    (&raw mut (*at).fourth).write_volatile(flags | turn);
                }
            }
            self.next_available += 1;
            if self.next_available == self.size {
                self.next_available = 0;
                self.available_wrap = !self.available_wrap;
            }
        }
        self.added += chain.len() as u16;
        if id < self.size {
            // SAFETY: there is one count for each descriptor, and the ID is below that.
            unsafe { self.taken.add(usize::from(id)).write(chain.len() as u16) };
        }
        if let Some(&(_, _, flags)) = chain.first() {
            let turn = if head.1 { AVAILABLE } else { USED };
            fence(Ordering::Release);
            // SAFETY: the position is below the size.
            unsafe {
                (&raw mut (*self.descriptors.add(usize::from(head.0))).fourth).write_volatile(flags | turn)
            };
        }
    }

    /// See [`super::ring::Ring::publish`].
    pub fn publish(&mut self) -> bool {
        let new = self.next_available;
        let old = new.wrapping_sub(self.added);
        let any = self.added != 0;
        self.added = 0;
        // The descriptors must be seen before the device's wish is read (2.8.21.3.1).
        fence(Ordering::SeqCst);
        // SAFETY: the area has two fields.
        let (position, flags) =
            unsafe { (self.device_events.read_volatile(), self.device_events.add(1).read_volatile()) };
        match flags & 3 {
            EVENTS_DESCRIPTOR => {
                let mut event = position & 0x7fff;
                if (position >> 15 != 0) != self.available_wrap {
                    event = event.wrapping_sub(self.size);
                }
                any && needs_event(event, new, old)
            }
            EVENTS_DISABLE => false,
            _ => any,
        }
    }

    /// See [`super::ring::Ring::has_completion`].
    pub fn has_completion(&self) -> bool {
        let at = self.descriptors.wrapping_add(usize::from(self.next_used));
        // SAFETY: the position is below the size.
        let flags = unsafe { (&raw const (*at).fourth).read_volatile() };
        (flags & AVAILABLE != 0) == self.used_wrap && (flags & USED != 0) == self.used_wrap
    }

    /// See [`super::ring::Ring::take`].
    pub fn take(&mut self) -> Option<(u16, u32)> {
        let at = self.descriptors.wrapping_add(usize::from(self.next_used));
        if !self.has_completion() {
            return None;
        }
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let (id, length) =
            unsafe { ((&raw const (*at).third).read_volatile(), (&raw const (*at).length).read_volatile()) };
        // SAFETY: there is one count for each descriptor.
        let taken = if id < self.size { unsafe { self.taken.add(usize::from(id)).read() } } else { 1 };
        self.next_used += taken;
        if self.next_used >= self.size {
            self.next_used -= self.size;
            self.used_wrap = !self.used_wrap;
        }
        if self.interrupts && self.event_idx {
            self.want_interrupt(true);
        }
        Some((id, length))
    }

    /// See [`super::ring::Ring::want_interrupt`].
    pub fn want_interrupt(&mut self, want: bool) {
        self.interrupts = want;
        let position = self.next_used | if self.used_wrap { 1 << 15 } else { 0 };
        let flags = match (want, self.event_idx) {
            (false, _) => EVENTS_DISABLE,
            (true, true) => EVENTS_DESCRIPTOR,
            (true, false) => EVENTS_ENABLE,
        };
        // SAFETY: the area has two fields.
        unsafe {
            self.driver_events.write_volatile(position);
            self.driver_events.add(1).write_volatile(flags);
        }
        fence(Ordering::SeqCst);
    }

    /// Writes the driver event area as it is, whatever it says.
    pub fn set_events(&mut self, position: u16, flags: u16) {
        // SAFETY: the area has two fields.
        unsafe {
            self.driver_events.write_volatile(position);
            self.driver_events.add(1).write_volatile(flags);
        }
    }
}
