//! The packed ring (virtio 1.2, 2.8): one ring of descriptors that both sides write, and an event suppression
//! structure for each side.

use super::descriptor::{Descriptor, INDIRECT, NEXT, SIZE, WRITE};
use super::{QueueError, QueueState};
use crate::chain::{Chain, Token};
use crate::host_memory::{RamMap, Table};
use std::sync::atomic::{Ordering, fence};

/// Descriptor flags: equal to the driver's wrap counter when made available.
const AVAILABLE: u16 = 1 << 7;
/// Descriptor flags: equal to the device's wrap counter when used.
const USED: u16 = 1 << 15;

/// Offset of a descriptor's flags; before them are address, length and buffer id.
const FLAGS: usize = 14;

/// Event suppression flags (bits 16 and 17 of the structure): notify always, never, or for one descriptor.
const EVENT_ENABLE: u32 = 0;
const EVENT_DISABLE: u32 = 1;
const EVENT_DESCRIPTOR: u32 = 2;

/// A place in the ring and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    slot: u16,
    wrap: bool,
}

impl Position {
    /// From slot and, in bit 15, wrap counter. A slot past the end becomes the first.
    fn from_bits(bits: u16, size: u16) -> Self {
        let slot = bits & 0x7fff;
        Self { slot: if slot < size { slot } else { 0 }, wrap: bits >> 15 != 0 }
    }

    fn to_bits(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }

    /// Goes on by `count` slots, at most `size`.
    #[inline]
    fn advance(&mut self, count: u16, size: u16) {
        self.slot = self.slot.wrapping_add(count);
        if self.slot >= size {
            self.slot = self.slot.wrapping_sub(size);
            self.wrap = !self.wrap;
        }
    }

    fn retreat(&mut self, count: u16, size: u16) {
        if self.slot < count {
            self.slot = self.slot.wrapping_add(size);
            self.wrap = !self.wrap;
        }
        self.slot = self.slot.wrapping_sub(count);
    }

    /// Slots from `from` to here, going forward: less than two turns.
    fn distance(self, from: Self, size: u16) -> u32 {
        let linear = |position: Self| {
            u32::from(position.slot).wrapping_add(if position.wrap { 0 } else { size.into() })
        };
        let turns = u32::from(size).wrapping_mul(2);
        linear(self).wrapping_add(turns).wrapping_sub(linear(from)).checked_rem(turns).unwrap_or(0)
    }
}

pub(super) struct Packed {
    descriptors: Table,
    driver: Table,
    device: Table,
    size: u16,
    event_idx: bool,
    /// The driver was last asked to ring. Asking for what it does already would only cost it a cache miss.
    notifications: bool,
    next_available: Position,
    next_used: Position,
    /// The first entry written since the last flush, and its flags: writing them shows it and all that follow.
    withheld: Option<(usize, u16)>,
    /// `next_used` when it was last decided whether to interrupt.
    signalled: Position,
    /// Slots used since.
    unsignalled: u32,
}

impl Packed {
    pub(super) fn new(state: &QueueState, event_idx: bool, ram: &mut RamMap) -> Result<Self, QueueError> {
        let mut part = |part, address, len, alignment| {
            let table = ram.table(address, len).filter(|table| table.is_aligned(alignment));
            table.ok_or(QueueError::Ring { part, address })
        };
        let next_used = Position::from_bits(state.next_used, state.size);
        Ok(Self {
            descriptors: part(
                "descriptor ring",
                state.descriptor_area,
                u64::from(state.size).wrapping_mul(16),
                16,
            )?,
            driver: part("driver event suppression", state.driver_area, 4, 4)?,
            device: part("device event suppression", state.device_area, 4, 4)?,
            size: state.size,
            event_idx,
            notifications: true,
            next_available: Position::from_bits(state.next_available, state.size),
            next_used,
            withheld: None,
            signalled: next_used,
            unsignalled: 0,
        })
    }

    /// Offset of a slot's descriptor.
    fn offset(slot: u16) -> usize {
        usize::from(slot).wrapping_mul(SIZE)
    }

    /// The flags of the descriptor at `position`, if it is available.
    #[inline]
    fn available_flags(&self, position: Position) -> Option<u16> {
        // Acquire: the rest of the descriptor, and those it is chained to, are visible.
        let at = Self::offset(position.slot).wrapping_add(FLAGS);
        let flags = self.descriptors.load_u16(at, Ordering::Acquire);
        let (available, used) = (flags & AVAILABLE != 0, flags & USED != 0);
        (available == position.wrap && used != position.wrap).then_some(flags)
    }

    #[inline]
    pub(super) fn pop(
        &mut self,
        ram: &mut RamMap,
        indirect: bool,
        chain: &mut Chain,
    ) -> Result<Option<Token>, QueueError> {
        let Some(first_flags) = self.available_flags(self.next_available) else { return Ok(None) };
        chain.begin(ram.memory());
        let mut position = self.next_available;
        for slots in 1..=self.size {
            let at = Self::offset(position.slot);
            let raw = [self.descriptors.load_u64(at), self.descriptors.load_u64(at.wrapping_add(8))];
            let mut descriptor = Descriptor::packed(raw);
            if slots == 1 {
                // The flags that said it was available, not what they may be by now.
                descriptor.flags = first_flags;
            }
            position.advance(1, self.size);
            if descriptor.has(INDIRECT) {
                if !indirect || descriptor.has(NEXT) {
                    return Err(QueueError::Indirect);
                }
                descriptor.add_table_to(chain, ram, true, self.size)?;
            } else {
                descriptor.add_to(chain, ram)?;
            }
            if !descriptor.has(NEXT) {
                self.next_available = position;
                return Ok(Some(Token { id: descriptor.next, slots, ..Token::default() }));
            }
        }
        Err(QueueError::ChainTooLong)
    }

    pub(super) fn unpop(&mut self, token: Token) {
        self.next_available.retreat(token.slots, self.size);
    }

    #[inline]
    pub(super) fn push(&mut self, token: Token, written: u32) {
        let at = Self::offset(self.next_used.slot);
        self.descriptors.store_u32(at.wrapping_add(8), written);
        self.descriptors.store_u16(at.wrapping_add(12), token.id, Ordering::Relaxed);
        let turn = if self.next_used.wrap { AVAILABLE | USED } else { 0 };
        let flags = turn | if written > 0 { WRITE } else { 0 };
        if self.withheld.is_none() {
            self.withheld = Some((at, flags));
        } else {
            self.descriptors.store_u16(at.wrapping_add(FLAGS), flags, Ordering::Release);
        }
        self.next_used.advance(token.slots, self.size);
        self.unsignalled = self.unsignalled.saturating_add(token.slots.into());
    }

    #[inline]
    pub(super) fn flush(&mut self) {
        if let Some((at, flags)) = self.withheld.take() {
            // Release: the other entries and all buffers are visible before it.
            self.descriptors.store_u16(at.wrapping_add(FLAGS), flags, Ordering::Release);
        }
    }

    /// Whether the driver wants an interrupt for what was flushed since this was last asked; `None`: nothing was.
    #[inline]
    pub(super) fn take_interrupt(&mut self) -> Option<bool> {
        let count = std::mem::take(&mut self.unsignalled);
        let from = std::mem::replace(&mut self.signalled, self.next_used);
        if count == 0 {
            return None;
        }
        // As for a split ring: both sides write, pass a full barrier, then look.
        fence(Ordering::SeqCst);
        let event = self.driver.load_u32(0);
        Some(match event >> 16 & 3 {
            EVENT_DISABLE => false,
            EVENT_DESCRIPTOR if self.event_idx => {
                let wanted = Position::from_bits(event as u16, self.size);
                wanted.distance(from, self.size) < count
            }
            _ => true,
        })
    }

    pub(super) fn enable_notifications(&mut self) -> bool {
        self.notifications = true;
        let event = if self.event_idx {
            EVENT_DESCRIPTOR << 16 | u32::from(self.next_available.to_bits())
        } else {
            EVENT_ENABLE << 16
        };
        self.device.store_u32(0, event);
        fence(Ordering::SeqCst);
        self.has_available()
    }

    pub(super) fn disable_notifications(&mut self) {
        if std::mem::take(&mut self.notifications) {
            self.device.store_u32(0, EVENT_DISABLE << 16);
        }
    }

    #[inline]
    pub(super) fn has_available(&self) -> bool {
        self.available_flags(self.next_available).is_some()
    }

    pub(super) fn progress(&self) -> (u16, u16) {
        (self.next_available.to_bits(), self.next_used.to_bits())
    }
}
