//! A PCI segment: its functions, and which of them answers at which address.
//!
//! A function is known by its *home*, the address it has when the guest starts, which never changes. On bus 0 that is
//! where it is. Below a bridge, where it is depends on the bus numbers that the guest sets; a function whose bus has
//! no number, or has another's, is not reached.
//!
//! CPUs look functions up in a table that the machine thread replaces as a whole, so that they take no lock but the
//! function's own.

mod buses;

use crate::bar::MappedBar;
use crate::bridge::Forwarding;
use crate::config::{ConfigSpace, Identity, register};
use crate::function::{Function, FunctionHandle};
use crate::plan::Reserve;
use arc_swap::ArcSwap;
use machine::effect::{DeviceChange, Effect, FunctionAddress};
use machine::inspect::{Inspect, Value};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// Why a function could not be put into a segment.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SegmentError {
    /// Another function has the address.
    #[error("PCI function {0} is there already")]
    Taken(FunctionAddress),
    /// The address is of another segment, or on a bus that is not there.
    #[error("PCI function {address} is not on a bus of segment {segment:04x}")]
    NotHere {
        /// The address asked for.
        address: FunctionAddress,
        /// The segment's number.
        segment: u16,
    },
    /// A bridge's buses are another's, or not below its own.
    #[error("the buses {first:02x} to {last:02x} of the PCI bridge {address} are another's, or not below it")]
    Buses {
        /// The bridge.
        address: FunctionAddress,
        /// The first bus it was to have below it.
        first: u8,
        /// The last.
        last: u8,
    },
}

/// A bridge, by the bus right below it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridge {
    /// The home of the bridge itself.
    pub(crate) home: u16,
    /// The last of the buses that are kept for what is below it.
    pub(crate) last: u8,
    /// Address space to keep for what is plugged in below it.
    pub(crate) reserve: Reserve,
}

/// What CPUs look functions up in.
#[derive(Clone)]
struct Table {
    /// By home.
    functions: BTreeMap<u16, FunctionHandle>,
    /// By the home bus right below.
    bridges: BTreeMap<u8, Bridge>,
    /// For each bus number that the guest may use, the home bus that answers.
    routes: [Option<u8>; 256],
}

impl Table {
    /// The function that answers at `bdf`, and its home.
    fn answering(&self, bdf: u16) -> Option<(u16, &FunctionHandle)> {
        let bus = (*self.routes.get(usize::from(bdf >> 8))?)?;
        let home = bdf & 0xff | u16::from(bus) << 8;
        Some((home, self.functions.get(&home)?))
    }

    /// Where a function answers now.
    fn present(&self, home: u16) -> Option<u16> {
        let number = self.routes.iter().position(|route| *route == Some(bus(home)))?;
        Some(home & 0xff | (number as u16) << 8)
    }

    /// What a bridge lets through now.
    fn forwarding(&self, bridge: &Bridge) -> Forwarding {
        self.functions
            .get(&bridge.home)
            .and_then(|function| lock(function).config().forwarding())
            .unwrap_or_default()
    }

    /// Finds the routes anew.
    fn find_routes(&mut self) {
        let bridges: Vec<_> = self
            .bridges
            .iter()
            .map(|(&below, bridge)| (below, bridge.home, self.forwarding(bridge)))
            .collect();
        for (route, number) in self.routes.iter_mut().zip(0..=255) {
            *route = route_of(number, &bridges);
        }
        for (&home, function) in self.functions.iter().filter(|(home, _)| bus(**home) != 0) {
            if let Some(present) = self.present(home) {
                lock(function).config_mut().set_requester(present);
            }
        }
    }

    /// Whether a device other than function 0 answers at the device of the function `home` as well.
    fn is_multifunction(&self, home: u16) -> bool {
        home & 7 == 0 && self.functions.range(home.saturating_add(1)..=home | 7).next().is_some()
    }
}

/// The home bus that a request for bus `number` gets to. Of two bridges that both take it, the first has it.
fn route_of(number: u8, bridges: &[(u8, u16, Forwarding)]) -> Option<u8> {
    let (mut home, mut current) = (0, 0);
    // Each step goes down a bridge, and no bridge is above itself.
    while number != current {
        let (below, _, forwarding) = bridges.iter().find(|(_, bridge, forwarding)| {
            bus(*bridge) == home && forwarding.secondary != 0 && forwarding.buses().contains(&number)
        })?;
        (home, current) = (*below, forwarding.secondary);
    }
    Some(home)
}

fn bus(bdf: u16) -> u8 {
    (bdf >> 8) as u8
}

/// A PCI segment: a host bridge at device 0 of bus 0, and functions. Clones are the same segment.
#[derive(Clone)]
pub struct Segment {
    number: u16,
    /// The last bus number that bridges are given: where the ECAM ends.
    last_bus: u8,
    table: Arc<ArcSwap<Table>>,
}

impl Segment {
    /// A segment with all buses that there can be, and nothing but its host bridge.
    pub fn new(number: u16) -> Self {
        Self::with_last_bus(number, u8::MAX)
    }

    /// The same, with the buses from 0 to `last_bus`.
    pub fn with_last_bus(number: u16, last_bus: u8) -> Self {
        let bridge: FunctionHandle = Arc::new(Mutex::new(HostBridge::new()));
        let mut routes = [None; 256];
        if let Some(first) = routes.first_mut() {
            *first = Some(0);
        }
        let table = Table { functions: BTreeMap::from([(0, bridge)]), bridges: BTreeMap::new(), routes };
        Self { number, last_bus, table: Arc::new(ArcSwap::from_pointee(table)) }
    }

    /// The segment's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The last bus number that bridges can have.
    pub fn last_bus(&self) -> u8 {
        self.last_bus
    }

    /// Adds a function, whose home is `address`, and tells it where it answers. Linux looks for functions 1 to 7 of a
    /// device only if there is a function 0. Called by the machine thread.
    ///
    /// # Errors
    /// When the address is taken or not on a bus of this segment.
    pub fn insert(&self, address: FunctionAddress, function: FunctionHandle) -> Result<(), SegmentError> {
        let mut table = Table::clone(&self.table.load());
        self.add(&mut table, address, function)?;
        self.table.store(Arc::new(table));
        Ok(())
    }

    /// Adds a bridge. The first of `buses` is the home bus right below it; the others are for bridges below, and
    /// `reserve` is kept for what is plugged in below it, see [`crate::plan`]. Called by the machine thread.
    ///
    /// # Errors
    /// As [`Segment::insert`], and when the buses are others' or not below its own.
    pub fn insert_bridge(
        &self,
        address: FunctionAddress,
        function: FunctionHandle,
        buses: RangeInclusive<u8>,
        reserve: Reserve,
    ) -> Result<(), SegmentError> {
        let mut table = Table::clone(&self.table.load());
        let (first, last) = (*buses.start(), *buses.end());
        let above = table.bridges.get(&address.bus()).map_or(self.last_bus, |bridge| bridge.last);
        let taken = table.bridges.iter().any(|(&below, bridge)| {
            bus(bridge.home) == address.bus() && below <= last && first <= bridge.last
        });
        if first <= address.bus() || last < first || last > above || taken {
            return Err(SegmentError::Buses { address, first, last });
        }
        self.add(&mut table, address, function)?;
        table.bridges.insert(first, Bridge { home: address.bdf, last, reserve });
        table.find_routes();
        self.table.store(Arc::new(table));
        Ok(())
    }

    fn add(
        &self,
        table: &mut Table,
        address: FunctionAddress,
        function: FunctionHandle,
    ) -> Result<(), SegmentError> {
        if address.segment != self.number
            || (address.bus() != 0 && !table.bridges.contains_key(&address.bus()))
        {
            return Err(SegmentError::NotHere { address, segment: self.number });
        }
        if table.functions.contains_key(&address.bdf) {
            return Err(SegmentError::Taken(address));
        }
        let present = table.present(address.bdf).unwrap_or(address.bdf);
        lock(&function).config_mut().set_requester(present);
        table.functions.insert(address.bdf, function);
        Ok(())
    }

    /// Takes a function out. Its windows are the caller's to unmap. With a bridge go the buses below it, on which nothing is
    /// any more. Called by the machine thread.
    pub fn remove(&self, address: FunctionAddress) -> Option<FunctionHandle> {
        if address.segment != self.number {
            return None;
        }
        let mut table = Table::clone(&self.table.load());
        let function = table.functions.remove(&address.bdf)?;
        let bridges = table.bridges.len();
        table.bridges.retain(|_, bridge| bridge.home != address.bdf);
        if table.bridges.len() < bridges {
            table.find_routes();
        }
        self.table.store(Arc::new(table));
        Some(function)
    }

    /// The function whose home is `address`.
    pub fn get(&self, address: FunctionAddress) -> Option<FunctionHandle> {
        (address.segment == self.number).then(|| self.table.load().functions.get(&address.bdf).cloned())?
    }

    /// All functions, by home, the host bridge included.
    pub fn functions(&self) -> Vec<(FunctionAddress, FunctionHandle)> {
        let table = self.table.load();
        table.functions.iter().map(|(&bdf, function)| (self.address(bdf), Arc::clone(function))).collect()
    }

    /// Where the function whose home is `address` answers now, if it is reached at all.
    pub fn present(&self, address: FunctionAddress) -> Option<FunctionAddress> {
        self.table.load().present(address.bdf).map(|bdf| self.address(bdf))
    }

    /// The device numbers on home bus `bus` that no function has, ascending. Only a root bus and the bus in a switch have
    /// numbers other than 0.
    pub fn free_devices(&self, bus: u8) -> impl Iterator<Item = u8> + use<> {
        let table = self.table.load_full();
        (0..32).filter(move |&device| {
            let first = FunctionAddress::new(0, bus, device, 0).bdf;
            table.functions.range(first..=first | 7).next().is_none()
        })
    }

    /// The bridge that is right above `address`; `None` for a function on bus 0.
    pub fn bridge_above(&self, address: FunctionAddress) -> Option<FunctionAddress> {
        self.table.load().bridges.get(&address.bus()).map(|bridge| self.address(bridge.home))
    }

    /// The homes of all functions below the bridge at `address`, those further down last; none below others.
    pub fn below(&self, address: FunctionAddress) -> Vec<FunctionAddress> {
        let table = self.table.load();
        let mut buses: Vec<u8> = Vec::new();
        // Ascending: a bridge has a lower number than those below it.
        for (&below, bridge) in &table.bridges {
            if bridge.home == address.bdf || buses.contains(&bus(bridge.home)) {
                buses.push(below);
            }
        }
        let on = |bus: u8| {
            let first = u16::from(bus) << 8;
            table.functions.range(first..=first | 0xff).map(|(&bdf, _)| self.address(bdf)).collect::<Vec<_>>()
        };
        buses.into_iter().flat_map(on).collect()
    }

    /// Finds out anew which functions are reached at which bus numbers. Called by the machine thread when a bridge lets
    /// other things through.
    pub fn find_routes(&self) {
        let mut table = Table::clone(&self.table.load());
        table.find_routes();
        self.table.store(Arc::new(table));
    }

    /// The windows in which a function answers now: its own, as far as all bridges above it let accesses through.
    pub fn windows(&self, address: FunctionAddress) -> Vec<MappedBar> {
        let table = self.table.load();
        let Some(function) = table.functions.get(&address.bdf) else { return Vec::new() };
        let mut windows = lock(function).config().bar_windows();
        let mut at = address.bus();
        while at != 0 && !windows.is_empty() {
            let Some(bridge) = table.bridges.get(&at) else { return Vec::new() };
            let forwarding = table.forwarding(bridge);
            windows.retain(|window| forwarding.passes(*window));
            at = bus(bridge.home);
        }
        windows
    }

    /// The device on bus 0 and the pin of it (1 to 4) at which pin `pin` of the device at `address` arrives: each
    /// bridge turns the pins by the device number (PCI-to-PCI Bridge 1.2, 9.1).
    pub fn root_pin(&self, address: FunctionAddress, pin: u8) -> (u8, u8) {
        let table = self.table.load();
        let (mut at, mut pin) = (address, pin.clamp(1, 4));
        while let Some(bridge) = table.bridges.get(&at.bus()) {
            pin = (pin.wrapping_sub(1).wrapping_add(at.device()) & 3).wrapping_add(1);
            at = self.address(bridge.home);
        }
        (at.device(), pin)
    }

    /// The bridges, by the home bus right below each.
    pub(crate) fn bridges(&self) -> BTreeMap<u8, Bridge> {
        self.table.load().bridges.clone()
    }

    fn address(&self, bdf: u16) -> FunctionAddress {
        FunctionAddress { segment: self.number, bdf }
    }

    /// Reads configuration space as the bus does: `data` of 1 to 8 bytes, in pieces that cross no dword.
    pub(crate) fn read(&self, bdf: u16, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let table = self.table.load();
        let Some((home, function)) = table.answering(bdf) else { return };
        let multifunction = table.is_multifunction(home);
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
    pub(crate) fn write(&self, bdf: u16, offset: u16, data: &[u8]) -> Option<Effect> {
        let table = self.table.load();
        let (home, function) = table.answering(bdf)?;
        let mut function = lock(function);
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(piece_size(at, rest.len()).min(rest.len()));
            if let Some(change) = function.config_write(at, piece) {
                return Some(Effect::Function(self.address(home), change));
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

machine::inspect!(HostBridge, this => {
    kind: HostBridgeState::KIND,
    pci: this.config,
});

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

fn lock(function: &FunctionHandle) -> MutexGuard<'_, dyn Function + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much of an access of `size` bytes at `offset` can be made at once: 1, 2 or 4 bytes within a dword.
fn piece_size(offset: u16, size: usize) -> usize {
    let to_dword_end = usize::from(4u16.wrapping_sub(offset & 3));
    match size.min(to_dword_end) {
        3 => 2,
        piece => piece,
    }
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
