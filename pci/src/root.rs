//! The root complex: one segment's functions, and the two ways the guest reaches their configuration spaces.
//!
//! [`Ecam`] is the memory window (PCIe 6.0, 7.2.2), [`ConfigPorts`] the pair of I/O ports (PCI 3.0, 3.2.2.3.2).
//! Both look functions up in a table that the machine thread replaces as a whole, so that a CPU takes no lock
//! but the function's own.

use crate::config::{ConfigSpace, Identity, register};
use crate::function::{Function, FunctionHandle};
use arc_swap::ArcSwap;
use machine::bus::BusDevice;
use machine::effect::{DeviceChange, Effect, FunctionAddress};
use machine::inspect::{Inspect, Value, json};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// Bytes of ECAM for one bus: 256 functions of 4096 bytes.
pub const ECAM_BYTES_PER_BUS: u64 = 1 << 20;

/// The first of the eight configuration ports.
pub const CONFIG_PORTS: u64 = 0xcf8;

/// How many configuration ports there are.
pub const CONFIG_PORTS_SIZE: u64 = 8;

/// Why a function could not be put into a segment.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SegmentError {
    /// Another function has the address.
    #[error("PCI function {0} is there already")]
    Taken(FunctionAddress),
    /// The address is of another segment, or on a bus that is not there.
    #[error("PCI function {address} is not on bus 0 of segment {segment:04x}")]
    NotHere {
        /// The address asked for.
        address: FunctionAddress,
        /// The segment's number.
        segment: u16,
    },
}

/// The functions by bus, device and function number.
type Table = BTreeMap<u16, FunctionHandle>;

/// A PCI segment: a host bridge at device 0, and functions on bus 0. Clones are the same segment.
#[derive(Clone)]
pub struct Segment {
    number: u16,
    table: Arc<ArcSwap<Table>>,
}

impl Segment {
    /// A segment with nothing but its host bridge.
    pub fn new(number: u16) -> Self {
        let bridge: FunctionHandle = Arc::new(Mutex::new(HostBridge::new()));
        Self { number, table: Arc::new(ArcSwap::from_pointee(BTreeMap::from([(0, bridge)]))) }
    }

    /// The segment's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Adds a function and tells it its address. Linux looks for functions 1 to 7 of a device only if there is a
    /// function 0. Called by the machine thread.
    ///
    /// # Errors
    /// When the address is taken or not on bus 0 of this segment.
    pub fn insert(&self, address: FunctionAddress, function: FunctionHandle) -> Result<(), SegmentError> {
        if address.segment != self.number || address.bus() != 0 {
            return Err(SegmentError::NotHere { address, segment: self.number });
        }
        let mut table = Table::clone(&self.table.load());
        if table.contains_key(&address.bdf) {
            return Err(SegmentError::Taken(address));
        }
        lock(&function).config_mut().set_requester(address.bdf);
        table.insert(address.bdf, function);
        self.table.store(Arc::new(table));
        Ok(())
    }

    /// Takes a function out. Its windows are the caller's to unmap. Called by the machine thread.
    pub fn remove(&self, address: FunctionAddress) -> Option<FunctionHandle> {
        if address.segment != self.number {
            return None;
        }
        let mut table = Table::clone(&self.table.load());
        let function = table.remove(&address.bdf)?;
        self.table.store(Arc::new(table));
        Some(function)
    }

    /// The function at `address`.
    pub fn get(&self, address: FunctionAddress) -> Option<FunctionHandle> {
        (address.segment == self.number).then(|| self.table.load().get(&address.bdf).cloned())?
    }

    /// All functions, by address, the host bridge included.
    pub fn functions(&self) -> Vec<(FunctionAddress, FunctionHandle)> {
        let address = |bdf| FunctionAddress { segment: self.number, bdf };
        self.table.load().iter().map(|(&bdf, function)| (address(bdf), Arc::clone(function))).collect()
    }

    /// The lowest device number on bus 0 that no function has.
    pub fn free_device(&self) -> Option<u8> {
        let table = self.table.load();
        (0..32).find(|&device| !has_device(&table, device))
    }

    /// The memory window onto the configuration spaces: [`ECAM_BYTES_PER_BUS`] for each bus.
    pub fn ecam(&self) -> Ecam {
        Ecam(self.clone())
    }

    /// The I/O ports onto the configuration spaces; for segment 0, at [`CONFIG_PORTS`].
    pub fn config_ports(&self) -> ConfigPorts {
        ConfigPorts { segment: self.clone(), address: 0 }
    }

    /// Reads configuration space as the bus does: `data` of 1 to 8 bytes, in pieces that cross no dword.
    fn read(&self, bdf: u16, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let table = self.table.load();
        let Some(function) = table.get(&bdf) else { return };
        let multifunction = bdf & 7 == 0 && is_multifunction(&table, bdf);
        let mut function = lock(function);
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at_mut(piece_size(at, rest.len()).min(rest.len()));
            function.config_read(at, piece);
            if multifunction
                && let Some(byte) = register::HEADER_TYPE.checked_sub(at)
                && let Some(header_type) = piece.get_mut(usize::from(byte))
            {
                *header_type |= 0x80;
            }
            at = at.wrapping_add(piece.len() as u16);
            rest = after;
        }
    }

    /// Writes configuration space, in pieces that cross no dword. A piece that changes something outside is the
    /// last one made: an access returns one effect, and no root complex has to take a crossing access at all
    /// (PCIe 6.0, 7.2.2).
    fn write(&self, bdf: u16, offset: u16, data: &[u8]) -> Option<Effect> {
        let function = self.table.load().get(&bdf).cloned()?;
        let mut function = lock(&function);
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(piece_size(at, rest.len()).min(rest.len()));
            if let Some(change) = function.config_write(at, piece) {
                return Some(Effect::Function(FunctionAddress { segment: self.number, bdf }, change));
            }
            at = at.wrapping_add(piece.len() as u16);
            rest = after;
        }
        None
    }
}

impl Inspect for Segment {
    fn inspect(&self) -> Value {
        let functions = self.functions().into_iter();
        functions.map(|(address, function)| (address.to_string(), lock(&function).inspect())).collect()
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("number", &self.number).finish_non_exhaustive()
    }
}

/// The segment's configuration spaces as memory.
#[derive(Debug)]
pub struct Ecam(Segment);

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match split_ecam(offset) {
            Some((bdf, offset)) => self.0.read(bdf, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let (bdf, offset) = split_ecam(offset)?;
        self.0.write(bdf, offset, data)
    }
}

/// The configuration address and data ports.
#[derive(Debug)]
pub struct ConfigPorts {
    segment: Segment,
    /// CONFIG_ADDRESS: enable bit, bus, device, function, dword.
    address: u32,
}

impl ConfigPorts {
    const WRITABLE: u32 = 0x80ff_fffc;

    /// The function and the offset that a data access at `port` (0 to 3) of `size` bytes means.
    fn target(&self, port: u64, size: usize) -> Option<(u16, u16)> {
        let within = port.checked_add(size as u64)? <= 4;
        (within && self.address >> 31 == 1)
            .then_some(((self.address >> 8) as u16, self.address as u16 & 0xfc | port as u16))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(port) = offset.checked_sub(4) {
            if let Some((bdf, at)) = self.target(port, data.len()) {
                self.segment.read(bdf, at, data);
            }
        } else if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        if let Some(port) = offset.checked_sub(4) {
            let (bdf, at) = self.target(port, data.len())?;
            return self.segment.write(bdf, at, data);
        }
        // Only a dword sets the address (PCI 3.0, 3.2.2.3.2); smaller accesses go to devices behind it, of
        // which there are none.
        if offset == 0
            && let Ok(bytes) = <[u8; 4]>::try_from(data)
        {
            self.address = u32::from_le_bytes(bytes) & Self::WRITABLE;
        }
        None
    }
}

impl Saved for ConfigPorts {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&ConfigPortsState { address: self.address })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.address = 0;
        self.address = state.read::<ConfigPortsState>()?.address & Self::WRITABLE;
        Ok(())
    }
}

/// What is saved of [`ConfigPorts`].
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct ConfigPortsState {
    address: u32,
}

impl SavedFields for ConfigPortsState {
    const KIND: &'static str = "pci-config-ports";
    const VERSION: u32 = 1;
}

/// The host bridge: nothing but a place in the tree.
struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    fn new() -> Self {
        // A generic host bridge that no driver binds to and no quirk knows.
        let identity = Identity { vendor: 0x1b36, device: 0x0008, class: 0x06_00_00, ..Identity::default() };
        Self { config: ConfigSpace::new(identity) }
    }
}

impl Function for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) -> Option<DeviceChange> {
        None
    }

    fn reset(&mut self) {
        self.config.reset();
    }
}

impl Inspect for HostBridge {
    fn inspect(&self) -> Value {
        json!({"kind": HostBridgeState::KIND, "pci": self.config.inspect()})
    }
}

/// What is saved of the host bridge.
#[derive(Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct HostBridgeState {
    config: crate::config::ConfigState,
}

impl SavedFields for HostBridgeState {
    const KIND: &'static str = "pci-host-bridge";
    const VERSION: u32 = 1;
}

impl Saved for HostBridge {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&HostBridgeState { config: self.config.save() })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.config.reset();
        self.config.restore(&state.read::<HostBridgeState>()?.config)
    }
}

fn lock(function: &FunctionHandle) -> std::sync::MutexGuard<'_, dyn Function + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bus, device and function number and offset that an ECAM offset means.
fn split_ecam(offset: u64) -> Option<(u16, u16)> {
    Some((u16::try_from(offset >> 12).ok()?, offset as u16 & 0xfff))
}

/// How much of an access of `size` bytes at `offset` can be made at once: 1, 2 or 4 bytes within a dword.
fn piece_size(offset: u16, size: usize) -> usize {
    let to_dword_end = usize::from(4u16.wrapping_sub(offset & 3));
    match size.min(to_dword_end) {
        3 => 2,
        piece => piece,
    }
}

/// Whether a device other than function 0 answers at `device` as well.
fn is_multifunction(table: &Table, function0: u16) -> bool {
    table.range(function0.saturating_add(1)..=function0 | 7).next().is_some()
}

fn has_device(table: &Table, device: u8) -> bool {
    let first = FunctionAddress::new(0, 0, device, 0).bdf;
    table.range(first..=first | 7).next().is_some()
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
