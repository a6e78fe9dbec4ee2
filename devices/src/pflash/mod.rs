//! Parallel NOR flash with the Intel command set (JEDEC JESD68.01, Common Flash Interface, command set 0x0001; commands and
//! status as Intel's StrataFlash P30 has them): firmware, or its variables.
//!
//! A bank is two chips of 16 bits beside each other on a bus of 32 bits. Both are always told the same: of what is written, the low byte
//! is the command, and what they answer is in both halves.
//!
//! | command | what reads give then | what it does |
//! |---|---|---|
//! | 0xff | the content | |
//! | 0x70 | the status | |
//! | 0x90 | identification: manufacturer, device, lock of the block | |
//! | 0x98 | the query table, see `query.rs` | |
//! | 0x50 | as before | clears the errors in the status |
//! | 0x40 or 0x10, data | the status | programs what the second write is: clears bits |
//! | 0xe8, count less one, data..., 0xd0 | the status | programs up to [`BUFFER_SIZE`] bytes at once |
//! | 0x20, 0xd0 | the status | erases a block: sets all its bits |
//! | 0x60, 0x01 or 0xd0 | the status | locks or unlocks a block |
//! | 0xb0 | the status | suspends; but everything is complete at once |
//!
//! While reads give the content, nothing of the device has to be asked: the machine gives the guest the memory itself, to read and
//! to run code from, and each write comes here. [`Effect::DirectMemory`] says when that begins and ends.

mod query;

use crate::platform::{PlatformDevice, value_of};
use machine::bus::{BusDevice, Range};
use machine::effect::Effect;
use machine::inspect::{Inspect, Value, hex, json};
use machine::memory::{MappedRegion, VolatileMemory};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Size of a block, the unit that is erased and locked, in bytes.
pub const BLOCK_SIZE: u64 = 256 << 10;
/// Bytes that are programmed at once, at most. They lie in a range so large that begins at a multiple of it.
pub const BUFFER_SIZE: usize = 128;
/// Size of a bank, at most, in bytes.
pub const LARGEST_BANK: u64 = 1 << 30;

/// Width of the bus, in bytes: a word of either chip.
const BUS: usize = 4;
const WORD: u64 = BUS as u64;

// Commands.
const READ_ARRAY: u8 = 0xff;
const READ_STATUS: u8 = 0x70;
const READ_IDENTIFICATION: u8 = 0x90;
const READ_QUERY: u8 = 0x98;
const CLEAR_STATUS: u8 = 0x50;
const PROGRAM: u8 = 0x40;
const PROGRAM_ALTERNATE: u8 = 0x10;
const PROGRAM_BUFFER: u8 = 0xe8;
const ERASE: u8 = 0x20;
const CHANGE_LOCK: u8 = 0x60;
const LOCK: u8 = 0x01;
const SUSPEND: u8 = 0xb0;
/// Begins what was asked for before; also unlocks a block.
const CONFIRM: u8 = 0xd0;

// Bits of the status.
const READY: u8 = 1 << 7;
const ERASE_FAILED: u8 = 1 << 5;
const PROGRAM_FAILED: u8 = 1 << 4;
const BLOCK_LOCKED: u8 = 1 << 1;
/// Both failures together: what was asked for was not completed by what has to follow.
const SEQUENCE_ERROR: u8 = ERASE_FAILED | PROGRAM_FAILED;

/// Identification: Intel, and a chip of two blocks a mebibyte.
const MANUFACTURER: u16 = 0x89;
const DEVICE: u16 = 0x18;

/// What reads give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    #[default]
    Array,
    Status,
    Identification,
    Query,
}

/// What the next write is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Next {
    #[default]
    Command,
    /// What is to be programmed where it is written.
    Word,
    /// The confirmation that this block is to be erased.
    EraseConfirmation(u64),
    /// What is to be done to the lock of this block.
    LockChange(u64),
    /// How many words follow for the buffer.
    Count,
    /// A word for the buffer, and after the last the confirmation.
    Buffer {
        /// How many words are still to come.
        left: u16,
        /// Where the buffer is to be programmed; not known before the first word.
        start: Option<u64>,
        /// The words, and ones where there is none.
        bytes: Vec<u8>,
    },
}

/// What the guest has set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Registers {
    mode: Mode,
    next: Next,
    /// Errors since the status was cleared.
    errors: u8,
    /// The numbers of blocks that are locked.
    locked: BTreeSet<u64>,
}

/// What a bank is made of.
pub struct Parts {
    /// By what number [`Effect::DirectMemory`] names it.
    pub number: u32,
    /// The content: whole blocks, [`LARGEST_BANK`] bytes at most. What is beyond does not exist to the device.
    pub memory: Arc<MappedRegion>,
    /// No block can ever be unlocked.
    pub read_only: bool,
    /// Called when the content was changed. It must not wait: a CPU does.
    pub changed: Option<Box<dyn Fn() + Send>>,
}

/// A bank of flash.
pub struct Pflash {
    parts: Parts,
    registers: Registers,
    programs: u64,
    erases: u64,
    refused: u64,
}

impl Pflash {
    /// A bank that can be read.
    pub fn new(parts: Parts) -> Self {
        Self { parts, registers: Registers::default(), programs: 0, erases: 0, refused: 0 }
    }

    /// Size of the bank in bytes: that of its memory, as far as that is whole blocks.
    pub fn size(&self) -> u64 {
        let size = (self.parts.memory.size() as u64).min(LARGEST_BANK);
        (size / BLOCK_SIZE).saturating_mul(BLOCK_SIZE)
    }

    /// Where it is, when it begins at `start`.
    pub fn window(&self, start: u64) -> Range {
        Range { start, size: self.size() }
    }

    /// The content, which the guest may read directly as long as [`Pflash::reads_array`].
    pub fn memory(&self) -> &Arc<MappedRegion> {
        &self.parts.memory
    }

    /// Whether reads give the content.
    pub fn reads_array(&self) -> bool {
        self.registers.mode == Mode::Array
    }

    fn is_locked(&self, block: u64) -> bool {
        self.parts.read_only || self.registers.locked.contains(&block)
    }

    /// What a chip answers, where its words are counted from the start of the bank.
    fn answer(&self, word: u64) -> u16 {
        const WORDS: u64 = BLOCK_SIZE / WORD;
        match self.registers.mode {
            Mode::Array => 0,
            Mode::Status => (READY | self.registers.errors).into(),
            Mode::Query => query::byte(self.size(), word).into(),
            Mode::Identification => match word % WORDS {
                0 => MANUFACTURER,
                1 => DEVICE,
                2 => self.is_locked(word / WORDS).into(),
                _ => 0,
            },
        }
    }

    /// One write on the bus, of at most its width.
    fn write_bus(&mut self, offset: u64, data: &[u8]) {
        let command = value_of(data) as u8;
        let block = offset / BLOCK_SIZE;
        match std::mem::take(&mut self.registers.next) {
            Next::Command => self.command(block, command),
            Next::Word => self.program(offset, data),
            Next::EraseConfirmation(asked) if command == CONFIRM && asked == block => self.erase(block),
            Next::LockChange(asked) if asked == block && matches!(command, LOCK | CONFIRM) => {
                if command == LOCK {
                    self.registers.locked.insert(block);
                } else {
                    self.registers.locked.remove(&block);
                }
            }
            Next::Count => {
                // Each write has a word for either chip.
                let words = value_of(data) & 0xffff;
                match u16::try_from(words.saturating_add(1)) {
                    Ok(left) if usize::from(left) <= BUFFER_SIZE / BUS => {
                        let bytes = vec![0xff; BUFFER_SIZE];
                        self.registers.next = Next::Buffer { left, start: None, bytes };
                    }
                    _ => self.refuse(SEQUENCE_ERROR),
                }
            }
            Next::Buffer { left: 0, start: Some(start), bytes } if command == CONFIRM => {
                self.program(start, &bytes);
            }
            Next::Buffer { left, start, bytes } if left > 0 => self.fill(left, start, bytes, offset, data),
            Next::EraseConfirmation(_) | Next::LockChange(_) | Next::Buffer { .. } => {
                self.refuse(SEQUENCE_ERROR);
            }
        }
    }

    fn command(&mut self, block: u64, command: u8) {
        let registers = &mut self.registers;
        let (mode, next) = match command {
            READ_ARRAY => (Mode::Array, Next::Command),
            READ_IDENTIFICATION => (Mode::Identification, Next::Command),
            READ_QUERY => (Mode::Query, Next::Command),
            READ_STATUS | SUSPEND => (Mode::Status, Next::Command),
            PROGRAM | PROGRAM_ALTERNATE => (Mode::Status, Next::Word),
            PROGRAM_BUFFER => (Mode::Status, Next::Count),
            ERASE => (Mode::Status, Next::EraseConfirmation(block)),
            CHANGE_LOCK => (Mode::Status, Next::LockChange(block)),
            CLEAR_STATUS => {
                registers.errors = 0;
                return;
            }
            // Nothing was suspended.
            CONFIRM => return,
            _ => {
                self.refused = self.refused.saturating_add(1);
                return;
            }
        };
        (registers.mode, registers.next) = (mode, next);
    }

    /// Puts a word into the buffer.
    fn fill(&mut self, left: u16, start: Option<u64>, mut bytes: Vec<u8>, offset: u64, data: &[u8]) {
        const BUFFER: u64 = BUFFER_SIZE as u64;
        let at = offset % BUFFER;
        let page = offset.saturating_sub(at);
        let at = usize::try_from(at).ok();
        let place = at.and_then(|at| bytes.get_mut(at..at.checked_add(data.len())?));
        let Some(place) = place.filter(|_| start.is_none_or(|start| start == page)) else {
            self.refuse(SEQUENCE_ERROR);
            return;
        };
        place.copy_from_slice(data);
        self.registers.next = Next::Buffer { left: left.saturating_sub(1), start: Some(page), bytes };
    }

    /// Clears bits of the content: those that are clear in `data`.
    fn program(&mut self, offset: u64, data: &[u8]) {
        let last = offset.saturating_add((data.len() as u64).saturating_sub(1));
        // An odd write may lie in two blocks.
        if self.is_locked(offset / BLOCK_SIZE) || self.is_locked(last / BLOCK_SIZE) {
            self.refuse(PROGRAM_FAILED | BLOCK_LOCKED);
            return;
        }
        let mut bytes = [0; BUFFER_SIZE];
        let place = usize::try_from(offset).ok().zip(bytes.get_mut(..data.len()));
        let Some((slice, bytes)) = place.and_then(|(offset, bytes)| {
            self.parts.memory.get_slice(offset, data.len()).ok().map(|slice| (slice, bytes))
        }) else {
            self.refuse(PROGRAM_FAILED);
            return;
        };
        slice.copy_to(bytes);
        bytes.iter_mut().zip(data).for_each(|(byte, data)| *byte &= data);
        slice.copy_from(bytes);
        self.programs = self.programs.saturating_add(1);
        self.tell_of_change();
    }

    fn erase(&mut self, block: u64) {
        const ONES: [u8; 4096] = [0xff; 4096];
        if self.is_locked(block) {
            self.refuse(ERASE_FAILED | BLOCK_LOCKED);
            return;
        }
        let start = block.saturating_mul(BLOCK_SIZE);
        for offset in (start..start.saturating_add(BLOCK_SIZE)).step_by(ONES.len()) {
            let slice = usize::try_from(offset)
                .ok()
                .and_then(|offset| self.parts.memory.get_slice(offset, ONES.len()).ok());
            let Some(slice) = slice else {
                self.refuse(ERASE_FAILED);
                return;
            };
            slice.copy_from(&ONES);
        }
        self.erases = self.erases.saturating_add(1);
        self.tell_of_change();
    }

    fn refuse(&mut self, errors: u8) {
        self.registers.errors |= errors;
        self.refused = self.refused.saturating_add(1);
    }

    fn tell_of_change(&self) {
        if let Some(changed) = &self.parts.changed {
            changed();
        }
    }
}

impl BusDevice for Pflash {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if self.reads_array() {
            let at = usize::try_from(offset).ok();
            if let Some(Ok(slice)) = at.map(|at| self.parts.memory.get_slice(at, data.len())) {
                slice.copy_to(data);
            }
            return;
        }
        for (at, byte) in (offset..).zip(data) {
            let [low, high] = self.answer(at / WORD).to_le_bytes();
            *byte = if at % 2 == 0 { low } else { high };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let before = self.reads_array();
        for (at, piece) in (offset..).step_by(BUS).zip(data.chunks(BUS)) {
            self.write_bus(at, piece);
        }
        (self.reads_array() != before).then_some(Effect::DirectMemory(self.parts.number))
    }
}

impl PlatformDevice for Pflash {
    fn reset(&mut self) {
        self.registers = Registers::default();
    }
}

impl Inspect for Pflash {
    fn inspect(&self) -> Value {
        json!({
            "size": self.size(),
            "read_only": self.parts.read_only,
            "mode": format!("{:?}", self.registers.mode).to_lowercase(),
            "status": hex(&(READY | self.registers.errors)),
            "locked_blocks": self.registers.locked.len(),
            "programs": self.programs,
            "erases": self.erases,
            "refused": self.refused,
        })
    }
}

impl SavedFields for Registers {
    const KIND: &'static str = "pflash";
    const VERSION: u32 = 1;
}

impl Registers {
    /// Whether a bank of `blocks` blocks can have come to these.
    fn check(&self, blocks: u64) -> Result<(), &'static str> {
        let next = match &self.next {
            Next::EraseConfirmation(block) | Next::LockChange(block) => *block < blocks,
            Next::Buffer { left, start, bytes } => {
                let aligned =
                    |start: &u64| start.is_multiple_of(BUFFER_SIZE as u64) && start / BLOCK_SIZE < blocks;
                usize::from(*left) <= BUFFER_SIZE / BUS
                    && start.iter().all(aligned)
                    && (start.is_some() || *left > 0)
                    && bytes.len() == BUFFER_SIZE
            }
            Next::Command | Next::Word | Next::Count => true,
        };
        if !next {
            return Err("next: is beyond the bank or its buffer");
        }
        if self.mode == Mode::Array && self.next != Next::Command {
            return Err("mode: reads do not give the content while a command is not complete");
        }
        if self.errors & !(SEQUENCE_ERROR | BLOCK_LOCKED) != 0 {
            return Err("errors: has bits that are none");
        }
        if self.locked.iter().any(|block| *block >= blocks) {
            return Err("locked: names a block that is not there");
        }
        Ok(())
    }
}

/// The content is memory, and is saved by whoever saves that.
impl Saved for Pflash {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&self.registers)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let registers: Registers = state.read()?;
        registers
            .check(self.size() / BLOCK_SIZE)
            .map_err(|reason| StateError::Value { kind: Registers::KIND, reason: reason.to_owned() })?;
        self.registers = registers;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
