//! The firmware configuration device: items for whoever boots in the guest (QEMU, `docs/specs/fw_cfg.rst`).
//!
//! | register | at I/O ports | in memory | access |
//! |---|---|---|---|
//! | selector | 0, little-endian | 8, big-endian | write, 16 bits: the item that is read from now on, from its beginning |
//! | data | 1, 8 bits | 0, up to 64 bits | read: the item's next bytes; zeroes after its end |
//! | DMA address | 4 | 16 | big-endian, in one or two parts; writing its end performs the request there; read: a signature |
//!
//! A request is in guest memory, big-endian: control (32 bits), length (32), address (64). Only such requests write, and only
//! to the files that are there for it ([`vmcoreinfo`]).

mod items;
pub mod vmcoreinfo;

pub use items::{GuestFile, ItemError, Items, LONGEST_NAME, MOST_FILES, check_name, number};

use crate::platform::{PlatformDevice, read_bytes};
use machine::bus::{BusDevice, Range};
use machine::effect::Effect;
use machine::inspect::{Value, json};
use machine::memory::{Bytes, GuestAddress, Memory};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What reading the DMA address gives.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Size of the DMA address, in bytes.
const DMA_SIZE: u64 = 8;
/// Size of its upper half, and of its lower one.
const DMA_HALF: u64 = 4;

// Bits of a request's control word; its upper half is a selector.
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// Bytes that a request may read after the end of an item, which are zeroes.
const MOST_ZEROES: usize = 64 << 10;

/// Where the registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// At I/O ports, from [`FwCfg::PORTS`] on.
    Ports,
    /// In memory, [`FwCfg::WINDOW_SIZE`] bytes.
    Memory,
}

impl Registers {
    fn selector(self) -> u64 {
        match self {
            Self::Ports => 0,
            Self::Memory => 8,
        }
    }

    fn is_data(self, offset: u64, length: usize) -> bool {
        match self {
            Self::Ports => offset == 1 && length == 1,
            Self::Memory => offset == 0,
        }
    }

    fn dma(self) -> u64 {
        match self {
            Self::Ports => 4,
            Self::Memory => 16,
        }
    }

    fn item(self, selector: [u8; 2]) -> u16 {
        match self {
            Self::Ports => u16::from_le_bytes(selector),
            Self::Memory => u16::from_be_bytes(selector),
        }
    }
}

/// The device.
pub struct FwCfg {
    registers: Registers,
    memory: Memory,
    items: Items,
    selected: u16,
    /// What of the selected item was read.
    offset: u32,
    dma_high: u32,
    requests: u64,
    refused: u64,
}

impl FwCfg {
    /// Where the registers at I/O ports are.
    pub const PORTS: Range = Range { start: 0x510, size: 12 };
    /// Size of the registers in memory, in bytes.
    pub const WINDOW_SIZE: u64 = 24;

    /// A device that holds `items`. `memory` is where requests are.
    pub fn new(registers: Registers, memory: Memory, mut items: Items) -> Self {
        items.complete();
        Self { registers, memory, items, selected: 0, offset: 0, dma_high: 0, requests: 0, refused: 0 }
    }

    /// Holds `items` from now on, in place of what it has held by the same numbers and names. Other files stay, and so do those that
    /// the guest writes. For a machine that restarts: a guest that is reading would find the parts of two items.
    pub fn replace(&mut self, items: Items) {
        self.items.replace(items);
        self.items.complete();
        self.select(0);
    }

    fn select(&mut self, item: u16) {
        self.selected = item;
        self.offset = 0;
    }

    /// What is left of an item after `offset`.
    fn rest(item: &[u8], offset: u32) -> &[u8] {
        usize::try_from(offset).ok().and_then(|offset| item.get(offset..)).unwrap_or_default()
    }

    fn next_byte(&mut self) -> u8 {
        let item = self.items.get(self.selected);
        let byte = Self::rest(&item, self.offset).first().copied().unwrap_or(0);
        self.offset = self.offset.saturating_add(1);
        byte
    }

    /// Performs the request at `address` and tells its outcome there.
    fn perform(&mut self, address: u64) {
        self.requests = self.requests.saturating_add(1);
        let place = GuestAddress(address);
        let mut request = [0; 16];
        let done = self.memory.read_slice(&mut request, place).is_ok() && self.serve(request).is_some();
        if !done {
            self.refused = self.refused.saturating_add(1);
        }
        let outcome = if done { 0 } else { ERROR };
        // Where nothing can be written nobody can be told.
        let _ = self.memory.write_slice(&outcome.to_be_bytes(), place);
    }

    /// `None`: the request cannot be served.
    fn serve(&mut self, request: [u8; 16]) -> Option<()> {
        let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = request;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if control & SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & READ != 0 {
            self.copy(u64::from_be_bytes(address), usize::try_from(length).ok()?)?;
        } else if control & WRITE != 0 {
            self.take(u64::from_be_bytes(address), usize::try_from(length).ok()?)?;
        } else if control & SKIP == 0 {
            return Some(());
        }
        self.offset = self.offset.saturating_add(length);
        Some(())
    }

    /// Puts `length` bytes of the selected item, and zeroes after its end, into guest memory. It is never more than the item
    /// and [`MOST_ZEROES`].
    fn copy(&self, address: u64, length: usize) -> Option<()> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let item = self.items.get(self.selected);
        let rest = Self::rest(&item, self.offset);
        let data = rest.get(..length.min(rest.len()))?;
        let mut zeroes = length.checked_sub(data.len()).filter(|count| *count <= MOST_ZEROES)?;
        self.memory.write_slice(data, GuestAddress(address)).ok()?;
        let mut at = address.checked_add(u64::try_from(data.len()).ok()?)?;
        while zeroes > 0 {
            let piece = ZEROES.get(..zeroes.min(ZEROES.len()))?;
            self.memory.write_slice(piece, GuestAddress(at)).ok()?;
            at = at.checked_add(u64::try_from(piece.len()).ok()?)?;
            zeroes = zeroes.checked_sub(piece.len())?;
        }
        Some(())
    }

    /// Takes `length` bytes from guest memory into the selected item, if it is one that the guest writes and has so much room.
    fn take(&self, address: u64, length: usize) -> Option<()> {
        let file = self.items.writable(self.selected)?;
        let offset = usize::try_from(self.offset).ok()?;
        if length > file.size().checked_sub(offset)? {
            return None;
        }
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).ok()?;
        file.write(offset, &bytes).then_some(())
    }

    fn write_dma(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.dma_high = u32::from_be_bytes([a, b, c, d]),
            (DMA_HALF, &[a, b, c, d]) => {
                let high = u64::from(std::mem::take(&mut self.dma_high));
                self.perform(high << 32 | u64::from(u32::from_be_bytes([a, b, c, d])));
            }
            (0, &[a, b, c, d, e, f, g, h]) => {
                self.dma_high = 0;
                self.perform(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
            }
            _ => {}
        }
    }
}

impl BusDevice for FwCfg {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if self.registers.is_data(offset, data.len()) {
            data.iter_mut().for_each(|byte| *byte = self.next_byte());
            return;
        }
        let dma = self.registers.dma();
        read_bytes(offset, data, |at| {
            let index = at.checked_sub(dma).and_then(|index| usize::try_from(index).ok());
            index.and_then(|index| DMA_SIGNATURE.get(index)).copied().unwrap_or(0)
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let dma = self.registers.dma();
        if offset == self.registers.selector()
            && let Ok(selector) = data.try_into()
        {
            self.select(self.registers.item(selector));
        } else if let Some(offset) = offset.checked_sub(dma).filter(|offset| *offset < DMA_SIZE) {
            self.write_dma(offset, data);
        }
        None
    }
}

impl PlatformDevice for FwCfg {
    fn reset(&mut self) {
        (self.selected, self.offset, self.dma_high) = (0, 0, 0);
        self.items.reset();
    }
}

machine::inspect!(FwCfg, this => {
    files: this.items.files().map(|(name, length)| (name.to_owned(), json!({ "size": length }))).collect::<Value>(),
    hex selected,
    offset,
    requests,
    refused_requests: this.refused,
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedFwCfg {
    selected: u16,
    offset: u32,
    dma_high: u32,
    /// What is in the files that the guest can write.
    written: BTreeMap<String, Vec<u8>>,
}

impl SavedFields for SavedFwCfg {
    const KIND: &'static str = "fw-cfg";
    const VERSION: u32 = 1;
}

impl Saved for FwCfg {
    fn save(&self) -> Result<SavedState, StateError> {
        let &Self { selected, offset, dma_high, .. } = self;
        SavedState::of(&SavedFwCfg { selected, offset, dma_high, written: self.items.written() })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedFwCfg = state.read()?;
        if let Err(name) = self.items.restore(&saved.written) {
            self.reset();
            let reason = format!("the guest wrote {name}, which is not there or of another size");
            return Err(StateError::Value { kind: SavedFwCfg::KIND, reason });
        }
        (self.selected, self.offset, self.dma_high) = (saved.selected, saved.offset, saved.dma_high);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
