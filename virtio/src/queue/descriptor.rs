//! Descriptors, and what a chain of them describes (virtio 1.2, 2.7.5 and 2.8.6).

use super::QueueError;
use crate::chain::Chain;
use crate::host_memory::RamMap;

/// The chain goes on.
pub(super) const NEXT: u16 = 1;
/// The device writes the buffer, rather than reads it.
pub(super) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = 4;

/// Bytes in a descriptor.
pub(super) const SIZE: usize = 16;

/// The fewest descriptors that every queue allows in a chain that uses an indirect table. A driver may not exceed the queue's
/// size (virtio 1.2, 2.7.5.3.1), but drivers that build requests by segment counts do with small queues.
const INDIRECT_LIMIT: u32 = 1024;

/// A descriptor, read once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// In a packed ring this is the buffer id.
    pub(super) next: u16,
}

impl Descriptor {
    /// A split ring's descriptor: address, then from the lowest bits length, flags and next.
    pub(super) fn split([address, rest]: [u64; 2]) -> Self {
        Self { address, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// A packed ring's descriptor: address, then from the lowest bits length, buffer id and flags.
    pub(super) fn packed([address, rest]: [u64; 2]) -> Self {
        Self { address, len: rest as u32, next: (rest >> 32) as u16, flags: (rest >> 48) as u16 }
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Adds the buffer to the chain. A buffer of no bytes adds nothing, wherever it is.
    #[inline]
    pub(super) fn add_to(&self, chain: &mut Chain, ram: &mut RamMap) -> Result<(), QueueError> {
        let segments = chain.grow(self.has(WRITE), self.len)?;
        ram.resolve(self.address, self.len, segments)
            .ok_or(QueueError::Buffer { address: self.address, len: self.len })
    }

    /// Adds to the chain what the table describes that this indirect descriptor points to.
    pub(super) fn add_table_to(
        &self,
        chain: &mut Chain,
        ram: &mut RamMap,
        packed: bool,
        queue_size: u16,
    ) -> Result<(), QueueError> {
        let malformed = QueueError::IndirectTable { address: self.address, len: self.len };
        if self.len == 0 || self.len as usize & SIZE.wrapping_sub(1) != 0 {
            return Err(malformed);
        }
        let limit = INDIRECT_LIMIT.max(queue_size.into());
        let table = ram.borrowed_table(self.address, self.len.into()).ok_or(malformed)?;
        let entries = self.len >> 4;
        let mut index = 0_u32;
        for _ in 0..limit {
            let at = (index as usize).saturating_mul(SIZE);
            let Some(raw) = table.read_16(at) else {
                return Err(QueueError::DescriptorIndex { index: index as u16, len: entries });
            };
            let descriptor = if packed { Self::packed(raw) } else { Self::split(raw) };
            if descriptor.has(INDIRECT) {
                return Err(QueueError::Indirect);
            }
            descriptor.add_to(chain, table.map)?;
            // In a packed table the descriptors are in order and all belong to the chain (virtio 1.2, 2.8.8).
            index = if packed { index.wrapping_add(1) } else { descriptor.next.into() };
            if if packed { index == entries } else { !descriptor.has(NEXT) } {
                return Ok(());
            }
        }
        Err(QueueError::ChainTooLong)
    }
}
