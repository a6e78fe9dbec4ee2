//! The memory slots of a simulated machine.

use super::lock;
use crate::MemorySlot;
use std::sync::Mutex;

/// The slots, and access to what is mapped in them.
#[derive(Default)]
pub(super) struct Slots(Mutex<Vec<Slot>>);

struct Slot(MemorySlot);

// SAFETY: the pointer in it is to memory that the guest shares with this process, which whoever maps it
// promises to keep mapped; it is accessed byte by byte, as another CPU would.
unsafe impl Send for Slot {}

impl Slots {
    /// Adds a slot, or changes the flags of one.
    ///
    /// # Safety
    /// As for [`crate::Vm::map_memory`].
    pub(super) unsafe fn map(&self, slot: MemorySlot) -> Result<(), &'static str> {
        let last = slot.size.checked_sub(1).and_then(|size| slot.guest_address.checked_add(size));
        let Some(last) = last else { return Err("the range is empty or wraps") };
        let misaligned = (slot.guest_address | slot.size | slot.host_address as u64) & 0xfff != 0;
        if misaligned {
            return Err("the range is not aligned to pages");
        }
        let mut slots = lock(&self.0);
        let mut others = slots.iter().filter(|other| other.0.slot != slot.slot);
        if others.any(|other| {
            // Checked above when the other came.
            let end = other.0.guest_address.saturating_add(other.0.size.saturating_sub(1));
            slot.guest_address <= end && other.0.guest_address <= last
        }) {
            return Err("the range overlaps another slot");
        }
        slots.retain(|other| other.0.slot != slot.slot);
        slots.push(Slot(slot));
        Ok(())
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        lock(&self.0).len()
    }

    /// Removes a slot; `false` if there is none.
    pub(super) fn unmap(&self, slot: u32) -> bool {
        let mut slots = lock(&self.0);
        let before = slots.len();
        slots.retain(|other| other.0.slot != slot);
        slots.len() != before
    }

    /// Reads guest memory; `false` if not all of it is in one slot.
    pub(super) fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let slots = lock(&self.0);
        let Some((_, from)) = find(&slots, address, data.len()) else { return false };
        for (at, byte) in data.iter_mut().enumerate() {
            // SAFETY: within the slot, which is mapped. Volatile: others write to it at any time.
            *byte = unsafe { from.add(at).read_volatile() };
        }
        true
    }

    /// Writes guest memory; `false` if not all of it is in one writable slot.
    pub(super) fn write(&self, address: u64, data: &[u8]) -> bool {
        let slots = lock(&self.0);
        let Some((slot, to)) = find(&slots, address, data.len()) else { return false };
        if slot.readonly {
            return false;
        }
        for (at, byte) in data.iter().enumerate() {
            // SAFETY: as above.
            unsafe { to.add(at).write_volatile(*byte) };
        }
        true
    }
}

/// The slot that has all of `address..+length`, and where that is in this process.
fn find(slots: &[Slot], address: u64, length: usize) -> Option<(&MemorySlot, *mut u8)> {
    slots.iter().find_map(|Slot(slot)| {
        let offset = address.checked_sub(slot.guest_address)?;
        let end = offset.checked_add(length as u64)?;
        // Within the slot, as compared before the sum is used.
        (end <= slot.size).then(|| (slot, slot.host_address.wrapping_add(offset as usize)))
    })
}
