//! MSI-X (PCIe 6.0, 6.1.4.2 and 7.7.2): the vector table and the pending bit array, which lie in a BAR.

use crate::vectors::VectorHandle;
use machine::interrupt::{MsiAllocator, MsiMessage};
use machine::state::StateError;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Signals a function's MSI-X vectors; see [`VectorHandle::signal`].
pub type MsixHandle = VectorHandle;
pub use crate::vectors::NO_VECTOR;

/// The most vectors a function may have.
pub const MAX_VECTORS: u16 = 2048;

/// Bytes one vector takes in the table.
pub const TABLE_ENTRY_SIZE: u64 = 16;

/// The vector control register's mask bit, the only one it has.
const VECTOR_MASKED: u32 = 1;

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    routed: Option<MsiMessage>,
}

impl Entry {
    /// As at power-on: masked.
    const RESET: Self = Self { address: 0, data: 0, control: VECTOR_MASKED, routed: None };

    fn bytes(&self) -> [u8; 16] {
        let words = u128::from(self.address) | u128::from(self.data) << 64 | u128::from(self.control) << 96;
        words.to_le_bytes()
    }

    fn set_bytes(&mut self, bytes: [u8; 16]) {
        let words = u128::from_le_bytes(bytes);
        // Messages are dword writes: the two low address bits are read-only zero.
        self.address = words as u64 & !3;
        self.data = (words >> 64) as u32;
        self.control = (words >> 96) as u32 & VECTOR_MASKED;
    }
}

/// A function's MSI-X table and pending bits. The message control register is in the configuration space,
/// which tells this what is written there.
pub struct Msix {
    entries: Vec<Entry>,
    handle: MsixHandle,
    requester: u16,
    enabled: bool,
    function_masked: bool,
}

/// What is saved of [`Msix`]. Enable and function mask are saved with the configuration space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MsixState {
    /// The table.
    pub table: Vec<MsixEntryState>,
    /// Vectors that are pending, ascending.
    pub pending: Vec<u16>,
}

/// One entry of the table, as saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MsixEntryState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// The vector's mask bit.
    pub masked: bool,
}

impl Msix {
    /// A table of `vectors` (brought into 1 to [`MAX_VECTORS`]), disabled and all masked. Sources come from
    /// `allocator`, each when its vector is first open.
    pub fn new(vectors: u16, allocator: Arc<dyn MsiAllocator>) -> Self {
        let vectors = vectors.clamp(1, MAX_VECTORS);
        Self {
            entries: vec![Entry::RESET; vectors.into()],
            handle: MsixHandle::new(vectors, allocator),
            requester: 0,
            enabled: false,
            function_masked: false,
        }
    }

    /// What signals the vectors.
    pub fn handle(&self) -> MsixHandle {
        self.handle.clone()
    }

    /// How many vectors there are, 1 to [`MAX_VECTORS`].
    pub fn vectors(&self) -> u16 {
        self.handle.count()
    }

    /// The table's size in bytes.
    pub fn table_size(&self) -> u64 {
        u64::from(self.vectors()).saturating_mul(TABLE_ENTRY_SIZE)
    }

    /// The pending bit array's size in bytes: whole quadwords.
    pub fn pba_size(&self) -> u64 {
        u64::from(self.vectors()).div_ceil(64).saturating_mul(8)
    }

    /// The guest reads the table. Any size is served, though 4 and 8 are the only ones defined.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.entry(at).and_then(|e| e.bytes().get(lane(at)).copied()).unwrap_or(0xff);
        }
    }

    /// The guest writes the table.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) {
        for (byte, at) in data.iter().zip(offset..) {
            let Some(entry) =
                usize::try_from(at / TABLE_ENTRY_SIZE).ok().and_then(|i| self.entries.get_mut(i))
            else {
                return;
            };
            let mut bytes = entry.bytes();
            if let Some(place) = bytes.get_mut(lane(at)) {
                *place = *byte;
            }
            entry.set_bytes(bytes);
        }
        // At most eight bytes, so at most two entries; updated once all bytes are in place.
        let last = offset.saturating_add(data.len() as u64).saturating_sub(1);
        for index in offset / TABLE_ENTRY_SIZE..=last / TABLE_ENTRY_SIZE {
            if let Ok(vector) = u16::try_from(index) {
                self.apply(vector);
            }
        }
    }

    /// The guest reads the pending bits.
    pub fn pba_read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = (0..8).fold(0, |bits, bit: u8| {
                let vector = at.saturating_mul(8).saturating_add(bit.into());
                let pending = u16::try_from(vector).is_ok_and(|vector| self.handle.pending(vector));
                bits | u8::from(pending).wrapping_shl(bit.into())
            });
        }
    }

    /// The message control register's enable and function mask bits.
    pub(crate) fn set_control(&mut self, enabled: bool, function_masked: bool) {
        if (self.enabled, self.function_masked) == (enabled, function_masked) {
            return;
        }
        (self.enabled, self.function_masked) = (enabled, function_masked);
        self.handle.set_enabled(enabled);
        self.apply_all();
    }

    /// The function's requester id, which its messages carry.
    pub(crate) fn set_requester(&mut self, requester: u16) {
        if self.requester != requester {
            self.requester = requester;
            self.apply_all();
        }
    }

    /// Back to power-on: disabled, all masked, nothing pending, and no source can fire.
    pub(crate) fn reset(&mut self) {
        self.set_control(false, false);
        for (entry, vector) in self.entries.iter_mut().zip(0..) {
            self.handle.disable(vector);
            self.handle.disconnect(vector, &mut entry.routed);
            *entry = Entry::RESET;
        }
    }

    /// The state to save.
    pub fn save(&self) -> MsixState {
        let table = self.entries.iter().map(|entry| MsixEntryState {
            address: entry.address,
            data: entry.data,
            masked: entry.control & VECTOR_MASKED != 0,
        });
        MsixState {
            table: table.collect(),
            pending: (0..self.vectors()).filter(|&vector| self.handle.pending(vector)).collect(),
        }
    }

    /// Takes the table and the pending bits; the control register is set after that.
    pub(crate) fn restore(&mut self, state: &MsixState) -> Result<(), StateError> {
        self.reset();
        let refuse = |reason: String| StateError::Value { kind: "pci-msix", reason };
        if state.table.len() != self.entries.len() {
            let (found, here) = (state.table.len(), self.entries.len());
            return Err(refuse(format!("the table has {found} vectors, and this function has {here}")));
        }
        if let Some(vector) = state.pending.iter().find(|&&vector| vector >= self.vectors()) {
            return Err(refuse(format!("vector {vector} is pending and does not exist")));
        }
        for (entry, saved) in self.entries.iter_mut().zip(&state.table) {
            entry.address = saved.address & !3;
            entry.data = saved.data;
            entry.control = u32::from(saved.masked);
        }
        for &vector in &state.pending {
            self.handle.set_pending(vector);
        }
        Ok(())
    }

    fn entry(&self, offset: u64) -> Option<&Entry> {
        usize::try_from(offset / TABLE_ENTRY_SIZE).ok().and_then(|index| self.entries.get(index))
    }

    fn apply_all(&mut self) {
        for vector in 0..self.vectors() {
            self.apply(vector);
        }
    }

    /// Brings one vector into the state that the registers ask for.
    fn apply(&mut self, vector: u16) {
        let Some(entry) = self.entries.get_mut(usize::from(vector)) else { return };
        if !self.enabled {
            self.handle.disable(vector);
        } else if self.function_masked || entry.control & VECTOR_MASKED != 0 {
            self.handle.mask(vector);
        } else {
            let message = MsiMessage { address: entry.address, data: entry.data, requester: self.requester };
            self.handle.open(vector, message, &mut entry.routed);
        }
    }
}

/// Which byte of its entry an offset names.
fn lane(offset: u64) -> usize {
    (offset % TABLE_ENTRY_SIZE) as usize
}
