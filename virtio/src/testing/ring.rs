//! The driver's side of a virtqueue.

use crate::features::Features;
use crate::queue::QueueState;
use machine::memory::{Bytes, GuestAddress, Memory};
use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A buffer of a request, by guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// A request that the device finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What [`DriverRing::add`] returned for it.
    pub id: u16,
    /// How many bytes the device says it wrote.
    pub written: u32,
}

/// The driver's side of one virtqueue, split or packed, laid out in guest memory. Written from the specification and apart
/// from the device's side, so that each checks the other.
pub struct DriverRing {
    memory: Memory,
    state: QueueState,
    packed: bool,
    event_idx: bool,
    /// Descriptors (split) or buffer ids (packed) that are free.
    free: Vec<u16>,
    /// Ring slots that are free (packed).
    free_slots: u16,
    /// For each request in flight by id: its descriptors (split), or as many items as it has slots (packed).
    in_flight: BTreeMap<u16, Vec<u16>>,
    /// Free-running index (split), or slot in the ring (packed).
    available: u16,
    available_wrap: bool,
    used: u16,
    used_wrap: bool,
    /// Entries made available since the last look at whether the device wants the doorbell.
    unkicked: u16,
    /// Used entries are to be announced by an interrupt.
    interrupts: bool,
}

impl DriverRing {
    /// Bytes of guest memory that a ring of `size` takes.
    pub fn footprint(size: u16) -> u64 {
        (u64::from(size) * 26 + 16).next_multiple_of(4096)
    }

    /// A ring of `size` entries at `base`, a multiple of 16, as `features` say.
    pub fn new(memory: &Memory, base: u64, size: u16, features: Features) -> Self {
        let packed = features.contains(Features::RING_PACKED);
        let driver_area = base + u64::from(size) * 16;
        let driver_len = if packed { 4 } else { u64::from(size) * 2 + 6 };
        let device_area = (driver_area + driver_len).next_multiple_of(4);
        let zeroes = vec![0; Self::footprint(size) as usize];
        memory.write_slice(&zeroes, GuestAddress(base)).expect("the ring lies in memory");
        Self {
            memory: memory.clone(),
            state: QueueState::new(size, base, driver_area, device_area, packed),
            packed,
            event_idx: features.contains(Features::EVENT_IDX),
            free: (0..size).rev().collect(),
            free_slots: size,
            in_flight: BTreeMap::new(),
            available: 0,
            available_wrap: true,
            used: 0,
            used_wrap: true,
            unkicked: 0,
            interrupts: true,
        }
    }

    /// Where the ring is, at its beginning: what the driver tells the device.
    pub fn state(&self) -> QueueState {
        self.state
    }

    /// Requests that the device has.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// How many more descriptors fit.
    pub fn room(&self) -> u16 {
        if self.packed { self.free_slots.min(self.free.len() as u16) } else { self.free.len() as u16 }
    }

    fn store16(&self, address: u64, value: u16) {
        self.memory.store(value, GuestAddress(address), Ordering::SeqCst).expect("the ring lies in memory");
    }

    fn load16(&self, address: u64) -> u16 {
        self.memory.load(GuestAddress(address), Ordering::SeqCst).expect("the ring lies in memory")
    }

    fn load32(&self, address: u64) -> u32 {
        self.memory.load(GuestAddress(address), Ordering::SeqCst).expect("the ring lies in memory")
    }

    /// Writes a descriptor: address, length, and the two last fields in their order.
    fn write_descriptor(&self, at: u64, address: u64, len: u32, third: u16, fourth: u16) {
        let rest = u64::from(len) | u64::from(third) << 32 | u64::from(fourth) << 48;
        self.memory.write_obj(address.to_le(), GuestAddress(at)).expect("the table lies in memory");
        self.memory.write_obj(rest.to_le(), GuestAddress(at + 8)).expect("the table lies in memory");
    }

    /// Makes a request available. `None`: the ring is full.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let flagged: Vec<_> =
            buffers.iter().map(|b| (b.address, b.len, if b.writable { WRITE } else { 0 })).collect();
        self.add_raw(&flagged)
    }

    /// Makes a request available through an indirect table written at `table`. `None`: the ring is full.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Option<u16> {
        for (i, buffer) in buffers.iter().enumerate() {
            let mut flags = if buffer.writable { WRITE } else { 0 };
            if !self.packed && i + 1 < buffers.len() {
                flags |= NEXT;
            }
            let (third, fourth) = if self.packed { (0, flags) } else { (flags, i as u16 + 1) };
            self.write_descriptor(table + i as u64 * 16, buffer.address, buffer.len, third, fourth);
        }
        self.add_raw(&[(table, buffers.len() as u32 * 16, INDIRECT)])
    }

    /// Makes a chain available of descriptors given as address, length and flags; those after the first get `NEXT` set on their
    /// predecessor. For requests that a well-behaved driver would not make.
    pub fn add_raw(&mut self, descriptors: &[(u64, u32, u16)]) -> Option<u16> {
        let count = descriptors.len() as u16;
        if count == 0 || self.room() < if self.packed { count.max(1) } else { count } {
            return None;
        }
        let id = if self.packed { self.add_packed(descriptors) } else { self.add_split(descriptors) };
        Some(id)
    }

    fn add_split(&mut self, descriptors: &[(u64, u32, u16)]) -> u16 {
        let indices = self.free.split_off(self.free.len() - descriptors.len());
        for (i, &(address, len, flags)) in descriptors.iter().enumerate() {
            let next = indices.get(i + 1);
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            let at = self.state.descriptor_area + u64::from(indices[i]) * 16;
            self.write_descriptor(at, address, len, flags, next.copied().unwrap_or(0));
        }
        let head = indices[0];
        let entry = u64::from(self.available % self.state.size);
        self.store16(self.state.driver_area + 4 + entry * 2, head);
        self.available = self.available.wrapping_add(1);
        self.unkicked = self.unkicked.saturating_add(1);
        self.store16(self.state.driver_area + 2, self.available);
        self.in_flight.insert(head, indices);
        head
    }

    fn add_packed(&mut self, descriptors: &[(u64, u32, u16)]) -> u16 {
        let id = self.free.pop().expect("room was checked");
        let first = (self.available, self.available_wrap);
        let mut first_flags = 0;
        for (i, &(address, len, flags)) in descriptors.iter().enumerate() {
            let turn = if self.available_wrap { 1 << 7 } else { 1 << 15 };
            let next = if i + 1 < descriptors.len() { NEXT } else { 0 };
            let flags = flags | turn | next;
            let at = self.state.descriptor_area + u64::from(self.available) * 16;
            if i == 0 {
                // Its flags are written last: they make the whole chain available.
                first_flags = flags;
                let stale = self.load16(at + 14);
                self.write_descriptor(at, address, len, id, stale);
            } else {
                self.write_descriptor(at, address, len, id, flags);
            }
            self.available += 1;
            if self.available == self.state.size {
                self.available = 0;
                self.available_wrap = !self.available_wrap;
            }
        }
        self.free_slots -= descriptors.len() as u16;
        self.unkicked = self.unkicked.saturating_add(descriptors.len() as u16);
        self.store16(self.state.descriptor_area + u64::from(first.0) * 16 + 14, first_flags);
        self.in_flight.insert(id, vec![0; descriptors.len()]);
        id
    }

    /// Takes the next request that the device finished.
    ///
    /// # Panics
    /// When the device gives back what it does not have.
    pub fn take_used(&mut self) -> Option<Used> {
        let used = if self.packed { self.take_packed() } else { self.take_split() }?;
        if self.event_idx && self.interrupts {
            self.set_interrupts(true);
        }
        Some(used)
    }

    fn take_split(&mut self) -> Option<Used> {
        if self.load16(self.state.device_area + 2) == self.used {
            return None;
        }
        let at = self.state.device_area + 4 + u64::from(self.used % self.state.size) * 8;
        let id = u16::try_from(self.load32(at)).expect("the device gives back a descriptor's index");
        let written = self.load32(at + 4);
        self.used = self.used.wrapping_add(1);
        let descriptors = self.in_flight.remove(&id).expect("the device gives back what it was given");
        self.free.extend(descriptors);
        Some(Used { id, written })
    }

    fn take_packed(&mut self) -> Option<Used> {
        let at = self.state.descriptor_area + u64::from(self.used) * 16;
        let flags = self.load16(at + 14);
        let (available, used) = (flags & 1 << 7 != 0, flags & 1 << 15 != 0);
        if available != self.used_wrap || used != self.used_wrap {
            return None;
        }
        let written = self.load32(at + 8);
        let id = self.load16(at + 12);
        let slots = self.in_flight.remove(&id).expect("the device gives back what it was given").len() as u16;
        self.free.push(id);
        self.free_slots += slots;
        self.used += slots;
        if self.used >= self.state.size {
            self.used -= self.state.size;
            self.used_wrap = !self.used_wrap;
        }
        Some(Used { id, written })
    }

    /// Whether the device wants the doorbell for what was added since this was last asked.
    pub fn take_kick(&mut self) -> bool {
        let count = std::mem::take(&mut self.unkicked);
        fence(Ordering::SeqCst);
        if self.packed {
            let event = self.load32(self.state.device_area);
            match event >> 16 & 3 {
                0 => count > 0,
                2 => {
                    let mut wanted = i32::from(event as u16 & 0x7fff);
                    if (event >> 15 & 1 != 0) != self.available_wrap {
                        wanted -= i32::from(self.state.size);
                    }
                    let new = i32::from(self.available);
                    (new - i32::from(count)..new).contains(&wanted)
                }
                _ => false,
            }
        } else if self.event_idx {
            let event = self.load16(self.state.device_area + 4 + u64::from(self.state.size) * 8);
            self.available.wrapping_sub(event).wrapping_sub(1) < count
        } else {
            count > 0 && self.load16(self.state.device_area) & 1 == 0
        }
    }

    /// Asks for an interrupt on the next used request (and, with event indices, on each after it as they are taken), or for none.
    pub fn set_interrupts(&mut self, wanted: bool) {
        self.interrupts = wanted;
        let area = self.state.driver_area;
        if self.packed {
            let event: u32 = match (wanted, self.event_idx) {
                (false, _) => 1 << 16,
                (true, false) => 0,
                (true, true) => 2 << 16 | u32::from(self.used) | u32::from(self.used_wrap) << 15,
            };
            self.memory.store(event, GuestAddress(area), Ordering::SeqCst).expect("the ring lies in memory");
        } else if self.event_idx {
            let event = if wanted { self.used } else { self.used.wrapping_sub(1) };
            self.store16(area + 4 + u64::from(self.state.size) * 2, event);
        } else {
            self.store16(area, u16::from(!wanted));
        }
        fence(Ordering::SeqCst);
    }
}
