//! A function's configuration space (PCIe 6.0, 7.5 and 7.6): registers with their writable bits, BARs, and the
//! capabilities that act when written.
//!
//! The space is made of dwords, each with a mask of the bits the guest may write and one of the bits it clears
//! by writing 1. What a write sets off (BARs that moved, a function-level reset, interrupts enabled or masked)
//! is found by comparing before and after. How a space is put together is in [`crate::capability`].

use crate::bar::{Bar, BarKind, MappedBar, ROM_BAR, Space};
use crate::intx::Intx;
use crate::msi::{Msi, MsiRegisters};
use crate::msix::{Msix, MsixState};
use machine::effect::DeviceChange;
use machine::inspect::{Value, json};
use machine::interrupt::MsiMessage;
use machine::state::StateError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// Offsets of the registers of a type-0 header (PCIe 6.0, 7.5.1).
pub mod register {
    /// Vendor ID, 2 bytes.
    pub const VENDOR: u16 = 0x00;
    /// Device ID, 2 bytes.
    pub const DEVICE: u16 = 0x02;
    /// Command, 2 bytes.
    pub const COMMAND: u16 = 0x04;
    /// Status, 2 bytes.
    pub const STATUS: u16 = 0x06;
    /// Revision ID, 1 byte; the class code follows it.
    pub const REVISION: u16 = 0x08;
    /// Header type, 1 byte.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// The first BAR, 4 bytes; five more follow it.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor ID, 2 bytes; the subsystem ID follows it.
    pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
    /// Expansion ROM base address, 4 bytes.
    pub const ROM: u16 = 0x30;
    /// Offset of the first capability, 1 byte.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 1 byte; software's scratch.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 1 byte: 1 to 4 for INTA to INTD, 0 for none.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Bits of the command register.
pub mod command {
    /// The function answers in its I/O windows.
    pub const IO: u16 = 1;
    /// The function answers in its memory windows.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may make memory accesses.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// The interrupt pin is kept inactive.
    pub const INTX_DISABLE: u16 = 1 << 10;
    /// All bits the guest may write; also parity and system error reporting, which never happen.
    pub(crate) const WRITABLE: u16 = IO | MEMORY | BUS_MASTER | 1 << 6 | 1 << 8 | INTX_DISABLE;
}

/// What a function is: the identifying registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code: base class, sub-class and programming interface in bits 23:16, 15:8 and 7:0.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// Why a configuration space cannot be put together as asked.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A BAR's number is taken or does not exist for its kind.
    #[error("BAR {number} cannot be a {kind:?} window: the register is taken or does not exist")]
    BarNumber {
        /// The BAR's number.
        number: u8,
        /// What it was to be.
        kind: BarKind,
    },
    /// A BAR's size is not a power of two, or out of range for its kind.
    #[error(
        "BAR {number} cannot be a {kind:?} window of {size:#x} bytes: not a power of two within its limits"
    )]
    BarSize {
        /// The BAR's number.
        number: u8,
        /// What it was to be.
        kind: BarKind,
        /// The size asked for, in bytes.
        size: u64,
    },
    /// There is no room for a capability.
    #[error("no room for capability {id:#x} of {size} bytes in configuration space")]
    CapabilityRoom {
        /// Capability id.
        id: u16,
        /// Its size in bytes.
        size: usize,
    },
    /// A capability of which there is only one was added twice.
    #[error("capability {0:#x} is there already")]
    CapabilityTwice(u16),
}

/// One dword.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Register {
    pub(crate) value: u32,
    /// The bits the guest may write.
    pub(crate) writable: u32,
    /// The bits the guest clears by writing 1.
    pub(crate) clear: u32,
    /// The value at power-on.
    pub(crate) initial: u32,
}

/// Registers of a conventional space (256 bytes), and of one with extended capabilities (4096 bytes).
pub(crate) const REGISTERS: usize = 64;
pub(crate) const EXTENDED_REGISTERS: usize = 1024;

/// A function's configuration space.
pub struct ConfigSpace {
    /// Grows from [`REGISTERS`] to [`EXTENDED_REGISTERS`] with the first extended capability.
    pub(crate) registers: Vec<Register>,
    pub(crate) bars: [Option<Bar>; 7],
    /// Where the next capability may lie, and the byte that will hold its offset.
    pub(crate) next_capability: u16,
    pub(crate) capability_link: u16,
    /// The same for extended capabilities: where the next may lie, and the last one's offset.
    pub(crate) next_extended: u16,
    pub(crate) last_extended: u16,
    /// Offsets of the capabilities that act when written.
    pub(crate) express: Option<u16>,
    pub(crate) power: Option<u16>,
    pub(crate) msi: Option<(u16, Msi)>,
    pub(crate) msix: Option<MsixPlace>,
    pub(crate) intx: Option<Intx>,
    requester: u16,
}

/// The MSI-X capability and where its structures lie.
pub(crate) struct MsixPlace {
    pub(crate) offset: u16,
    pub(crate) bar: u8,
    pub(crate) table: u64,
    pub(crate) pba: u64,
    pub(crate) msix: Msix,
}

/// What is saved of a configuration space: the bits that the guest may change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigState {
    /// Vendor ID, to recognise a state of another function.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// The dwords that have writable bits, by offset in bytes.
    pub registers: BTreeMap<u16, u32>,
    /// MSI's pending bits.
    pub msi_pending: u32,
    /// The MSI-X table, if there is one.
    pub msix: Option<MsixState>,
}

impl ConfigSpace {
    /// A type-0 header without BARs, capabilities and interrupts.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            registers: vec![Register::default(); REGISTERS],
            bars: [None; 7],
            next_capability: 0x40,
            capability_link: register::CAPABILITIES,
            next_extended: 0x100,
            last_extended: 0,
            express: None,
            power: None,
            msi: None,
            msix: None,
            intx: None,
            requester: 0,
        };
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        space.define(register::VENDOR, pair(identity.vendor, identity.device), 0);
        // Status: the error bits are cleared by writing 1.
        space.define(register::COMMAND, 0, command::WRITABLE.into());
        space.define_clear(register::COMMAND, 0xf900 << 16);
        space.define(register::REVISION, u32::from(identity.revision) | identity.class << 8, 0);
        // Cache line size is software's scratch.
        space.define(0x0c, 0, 0xff);
        let subsystem = pair(identity.subsystem_vendor, identity.subsystem);
        space.define(register::SUBSYSTEM_VENDOR, subsystem, 0);
        space.define(register::INTERRUPT_LINE, 0, 0xff);
        space
    }

    /// The guest reads 1, 2 or 4 bytes that do not cross a dword; anything else reads as all ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let lane = usize::from(offset & 3);
        match self.dword(offset).to_le_bytes().get(lane..lane.wrapping_add(data.len())) {
            Some(bytes) => data.copy_from_slice(bytes),
            None => data.fill(0xff),
        }
    }

    /// The guest writes 1, 2 or 4 bytes that do not cross a dword; anything else is ignored.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Option<DeviceChange> {
        let lane = usize::from(offset & 3);
        let (mut value, mut mask) = ([0; 4], [0; 4]);
        let lanes = lane..lane.wrapping_add(data.len());
        value.get_mut(lanes.clone())?.copy_from_slice(data);
        mask.get_mut(lanes)?.fill(0xff);
        self.write_dword(offset & !3, u32::from_le_bytes(value), u32::from_le_bytes(mask))
    }

    fn write_dword(&mut self, offset: u16, value: u32, mask: u32) -> Option<DeviceChange> {
        let moves = offset == register::COMMAND
            || (register::BAR0..register::BAR0 + 24).contains(&offset)
            || offset == register::ROM
            || self.power == offset.checked_sub(4);
        let before = moves.then(|| self.mapped());

        let register = self.registers.get_mut(usize::from(offset >> 2))?;
        let old = register.value;
        let written = mask & register.writable;
        register.value = (old & !written) | (value & written);
        register.value &= !(value & mask & register.clear);

        if self.power.is_some() && self.power == offset.checked_sub(4) && matches!(register.value & 3, 1 | 2)
        {
            // D1 and D2 are not supported: such a write does not change the state (PCI PM 1.2, 3.2.4).
            register.value = (register.value & !3) | (old & 3);
        }
        self.apply_interrupts(offset);

        if self.resets(offset, value & mask) {
            return Some(DeviceChange::Reset);
        }
        before.filter(|before| *before != self.mapped()).map(|_| DeviceChange::Remap)
    }

    /// Whether the write initiates a function-level reset (PCIe 6.0, 7.5.3.4).
    fn resets(&self, offset: u16, value: u32) -> bool {
        let Some(express) = self.express else { return false };
        let device_capabilities = self.dword(express.wrapping_add(4));
        offset == express.wrapping_add(8) && value & 1 << 15 != 0 && device_capabilities & 1 << 28 != 0
    }

    /// The dword at `offset` (its two low bits are ignored); zero where nothing is.
    pub fn dword(&self, offset: u16) -> u32 {
        let offset = offset & !3;
        let value = self.registers.get(usize::from(offset >> 2)).map_or(0, |register| register.value);
        if offset == register::COMMAND && self.intx.as_ref().is_some_and(Intx::asserted) {
            return value | 1 << 19;
        }
        match &self.msi {
            Some((place, msi))
                if msi.per_vector_masking() && offset == pending_bits(*place, self.dword_raw(*place)) =>
            {
                msi.pending()
            }
            _ => value,
        }
    }

    fn dword_raw(&self, offset: u16) -> u32 {
        self.registers.get(usize::from(offset >> 2)).map_or(0, |register| register.value)
    }

    /// The two bytes at `offset`, which is even.
    pub fn word(&self, offset: u16) -> u16 {
        let dword = self.dword(offset);
        if offset & 2 == 0 { dword as u16 } else { (dword >> 16) as u16 }
    }

    /// The command register; see [`command`].
    pub fn command(&self) -> u16 {
        self.word(register::COMMAND)
    }

    /// Whether the driver lets the function access memory and send messages.
    pub fn bus_master(&self) -> bool {
        self.command() & command::BUS_MASTER != 0
    }

    /// The device itself changes the bits of `mask` in the dword at `offset`, whether or not the guest may.
    pub fn set_dword(&mut self, offset: u16, mask: u32, value: u32) {
        if let Some(register) = self.registers.get_mut(usize::from(offset >> 2)) {
            register.value = (register.value & !mask) | (value & mask);
        }
        self.apply_interrupts(offset & !3);
    }

    /// The BARs there are, ascending.
    pub fn bars(&self) -> impl Iterator<Item = Bar> + '_ {
        self.bars.iter().flatten().copied()
    }

    /// Where BAR `number` points, decoded or not.
    pub fn bar_address(&self, number: u8) -> Option<u64> {
        let bar = self.bars.get(usize::from(number))?.as_ref()?;
        let at = bar_register(number);
        let low = u64::from(self.dword(at) & address_bits(bar));
        Some(match bar.kind {
            BarKind::Memory64 { .. } => low | u64::from(self.dword(at.wrapping_add(4))) << 32,
            _ => low,
        })
    }

    /// Points BAR `number` at `address`, as firmware does. The address is cut to a multiple of the BAR's size.
    pub fn set_bar_address(&mut self, number: u8, address: u64) {
        let Some(bar) = self.bars.get(usize::from(number)).copied().flatten() else { return };
        let at = bar_register(number);
        self.set_dword(at, address_bits(&bar), address as u32);
        if let BarKind::Memory64 { .. } = bar.kind {
            let writable = !(bar.size.wrapping_sub(1)) >> 32;
            self.set_dword(at.wrapping_add(4), writable as u32, (address >> 32) as u32);
        }
    }

    /// The windows in which the function answers now: those that the command register enables, in power state
    /// D0, that are placed and do not run over the end of their space. Whether they collide with RAM or
    /// others is not known here; see [`crate::placement`].
    pub fn bar_windows(&self) -> Vec<MappedBar> {
        self.mapped().into_iter().flatten().collect()
    }

    fn mapped(&self) -> [Option<MappedBar>; 7] {
        let command = self.command();
        let powered = self.power.is_none_or(|power| self.dword(power.wrapping_add(4)) & 3 == 0);
        self.bars.map(|bar| {
            let bar = bar.filter(|_| powered)?;
            let space = bar.kind.space();
            let (enable, limit) = match space {
                Space::Io => (command::IO, 0xffff),
                Space::Memory => (command::MEMORY, u64::MAX),
            };
            let rom_off = bar.kind == BarKind::Rom && self.dword(register::ROM) & 1 == 0;
            let address = self.bar_address(bar.number)?;
            let last = address.checked_add(bar.size.checked_sub(1)?)?;
            let answers = command & enable != 0 && !rom_off && address != 0 && last <= limit;
            answers.then_some(MappedBar { bar: bar.number, space, address, size: bar.size })
        })
    }

    /// The interrupt pin, if the function has one.
    pub fn intx(&self) -> Option<&Intx> {
        self.intx.as_ref()
    }

    /// The MSI vectors, if the function has them.
    pub fn msi(&self) -> Option<&Msi> {
        self.msi.as_ref().map(|(_, msi)| msi)
    }

    /// The MSI-X vectors, if the function has them.
    pub fn msix(&self) -> Option<&Msix> {
        self.msix.as_ref().map(|place| &place.msix)
    }

    /// Serves a BAR read that falls into the MSI-X table or pending bits; `false` if it does not.
    pub fn msix_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        match self.msix.as_ref().and_then(|place| Some((place, place.find(bar, offset, data.len())?))) {
            Some((place, MsixPart::Table(at))) => place.msix.table_read(at, data),
            Some((place, MsixPart::Pending(at))) => place.msix.pba_read(at, data),
            None => return false,
        }
        true
    }

    /// Serves a BAR write that falls into the MSI-X table or pending bits (which are read-only); `false` if it
    /// does not.
    pub fn msix_write(&mut self, bar: u8, offset: u64, data: &[u8]) -> bool {
        let Some(place) = self.msix.as_mut() else { return false };
        match place.find(bar, offset, data.len()) {
            Some(MsixPart::Table(at)) => place.msix.table_write(at, data),
            Some(MsixPart::Pending(_)) => {}
            None => return false,
        }
        true
    }

    /// Tells the function its bus, device and function numbers, which its messages carry.
    pub fn set_requester(&mut self, bdf: u16) {
        self.requester = bdf;
        if let Some(place) = self.msix.as_mut() {
            place.msix.set_requester(bdf);
        }
        self.apply_msi();
    }

    /// Back to the values at power-on, with BARs pointing where they do.
    pub fn reset(&mut self) {
        let addresses = self.bars.map(|bar| bar.and_then(|bar| self.bar_address(bar.number)));
        for register in &mut self.registers {
            register.value = register.initial;
        }
        for (address, number) in addresses.into_iter().zip(0..) {
            if let Some(address) = address {
                self.set_bar_address(number, address);
            }
        }
        self.reset_interrupts();
    }

    fn reset_interrupts(&mut self) {
        if let Some(intx) = &self.intx {
            intx.set(false);
            intx.block(false);
        }
        if let Some((_, msi)) = self.msi.as_mut() {
            msi.reset();
        }
        if let Some(place) = self.msix.as_mut() {
            place.msix.reset();
        }
    }

    /// The state to save.
    pub fn save(&self) -> ConfigState {
        let guests = self.registers.iter().zip((0u16..).step_by(4));
        let guests = guests.filter(|(register, _)| register.writable | register.clear != 0);
        ConfigState {
            vendor: self.word(register::VENDOR),
            device: self.word(register::DEVICE),
            registers: guests.map(|(register, offset)| (offset, register.value)).collect(),
            msi_pending: self.msi().map_or(0, Msi::pending),
            msix: self.msix().map(Msix::save),
        }
    }

    /// Becomes what `state` says, in the bits the guest may change. The interrupt pin is not asserted: the device
    /// sets it when it knows its own state. On an error the space is as after [`Self::reset`].
    ///
    /// # Errors
    /// When the state is one of another function.
    pub fn restore(&mut self, state: &ConfigState) -> Result<(), StateError> {
        self.reset();
        let (vendor, device) = (self.word(register::VENDOR), self.word(register::DEVICE));
        if (state.vendor, state.device) != (vendor, device) {
            let reason = format!(
                "it is of function {:04x}:{:04x}, and this one is {vendor:04x}:{device:04x}",
                state.vendor, state.device
            );
            return Err(StateError::Value { kind: "pci-config", reason });
        }
        if let (Some(place), Some(saved)) = (self.msix.as_mut(), state.msix.as_ref()) {
            place.msix.restore(saved)?;
        }
        if let Some((_, msi)) = &self.msi {
            msi.set_pending(state.msi_pending);
        }
        for (register, offset) in self.registers.iter_mut().zip((0u16..).step_by(4)) {
            if let Some(value) = state.registers.get(&offset) {
                let guests = register.writable | register.clear;
                register.value = (register.value & !guests) | (value & guests);
            }
        }
        self.apply_all_interrupts();
        Ok(())
    }

    /// The header's fields and the interrupts' counters, for inspection.
    pub fn inspect(&self) -> Value {
        let bars: serde_json::Map<String, Value> = self
            .bars()
            .map(|bar| {
                let address = self.bar_address(bar.number).unwrap_or(0);
                let mapped = self.mapped().into_iter().flatten().any(|window| window.bar == bar.number);
                let kind = format!("{:?}", bar.kind);
                let fields =
                    json!({"kind": kind, "size": bar.size, "address": format!("{address:#x}"), "decoded": mapped});
                (bar.number.to_string(), fields)
            })
            .collect();
        let vectors = |handle: &crate::vectors::VectorHandle| {
            json!({
                "vectors": handle.count(),
                "enabled": handle.enabled(),
                "out_of_range": handle.out_of_range(),
                "failures": handle.failures(),
            })
        };
        json!({
            "id": format!("{:04x}:{:04x}", self.word(register::VENDOR), self.word(register::DEVICE)),
            "class": format!("{:#08x}", self.dword(register::REVISION) >> 8),
            "command": format!("{:#06x}", self.command()),
            "bars": bars,
            "msi": self.msi().map(|msi| vectors(&msi.handle())),
            "msix": self.msix().map(|msix| vectors(&msix.handle())),
            "intx": self.intx().map(|intx| json!({"gsi": intx.gsi(), "asserted": intx.asserted()})),
        })
    }

    /// Makes a register what it is at power-on. For the builder.
    pub(crate) fn define(&mut self, offset: u16, value: u32, writable: u32) {
        if let Some(register) = self.registers.get_mut(usize::from(offset >> 2)) {
            *register = Register { value, writable, clear: 0, initial: value };
        }
    }

    /// Makes bits ones that the guest clears by writing 1. For the builder.
    pub(crate) fn define_clear(&mut self, offset: u16, clear: u32) {
        if let Some(register) = self.registers.get_mut(usize::from(offset >> 2)) {
            register.clear = clear;
        }
    }

    /// A register at `offset` was written: brings interrupts into the state it asks for.
    fn apply_interrupts(&mut self, offset: u16) {
        if offset == register::COMMAND {
            self.apply_intx();
        }
        if self.msi.as_ref().is_some_and(|(place, _)| (*place..place.wrapping_add(24)).contains(&offset)) {
            self.apply_msi();
            self.apply_intx();
        }
        if self.msix.as_ref().is_some_and(|place| place.offset == offset) {
            self.apply_msix();
            self.apply_intx();
        }
    }

    fn apply_all_interrupts(&mut self) {
        self.apply_msi();
        self.apply_msix();
        self.apply_intx();
    }

    fn apply_msix(&mut self) {
        let Some(control) = self.msix.as_ref().map(|place| self.dword(place.offset)) else { return };
        if let Some(place) = self.msix.as_mut() {
            place.msix.set_control(control & 1 << 31 != 0, control & 1 << 30 != 0);
        }
    }

    fn apply_msi(&mut self) {
        let Some(at) = self.msi.as_ref().map(|(place, _)| *place) else { return };
        let header = self.dword(at);
        let wide = header & MSI_64_BIT != 0;
        let data_at = at.wrapping_add(if wide { 12 } else { 8 });
        let high = if wide { u64::from(self.dword(at.wrapping_add(8))) << 32 } else { 0 };
        let registers = MsiRegisters {
            enabled: header & 1 << 16 != 0,
            granted_log2: (header >> 20) as u8 & 7,
            message: MsiMessage {
                address: u64::from(self.dword(at.wrapping_add(4))) | high,
                data: self.dword(data_at) & 0xffff,
                requester: self.requester,
            },
            mask: self.dword(data_at.wrapping_add(4)),
        };
        if let Some((_, msi)) = self.msi.as_mut() {
            msi.apply(registers);
        }
    }

    fn apply_intx(&mut self) {
        let messages = self.msi().is_some_and(|msi| msi.handle().enabled())
            || self.msix().is_some_and(|msix| msix.handle().enabled());
        if let Some(intx) = &self.intx {
            intx.block(messages || self.command() & command::INTX_DISABLE != 0);
        }
    }
}

/// In the first dword of the MSI capability: 64-bit addresses.
pub(crate) const MSI_64_BIT: u32 = 1 << 23;

/// Where the pending bits lie in an MSI capability at `at` whose first dword is `header`.
fn pending_bits(at: u16, header: u32) -> u16 {
    at.wrapping_add(if header & MSI_64_BIT != 0 { 20 } else { 16 })
}

/// The offset of BAR `number`'s register.
pub(crate) fn bar_register(number: u8) -> u16 {
    match number {
        ROM_BAR => register::ROM,
        _ => register::BAR0.wrapping_add(u16::from(number).wrapping_mul(4)),
    }
}

/// The writable address bits of a BAR's (low) register.
pub(crate) fn address_bits(bar: &Bar) -> u32 {
    !(bar.size.wrapping_sub(1)) as u32 & if bar.kind == BarKind::Io { !3 } else { !0xf }
}

enum MsixPart {
    Table(u64),
    Pending(u64),
}

impl MsixPlace {
    /// Which structure an access lies in, and where. One that only begins there is cut short by the structures
    /// themselves.
    fn find(&self, bar: u8, offset: u64, size: usize) -> Option<MsixPart> {
        let within = |start: u64, length: u64| {
            let at = offset.checked_sub(start)?;
            (at.checked_add(size as u64)? <= length).then_some(at)
        };
        if bar != self.bar {
            return None;
        }
        within(self.table, self.msix.table_size())
            .map(MsixPart::Table)
            .or_else(|| within(self.pba, self.msix.pba_size()).map(MsixPart::Pending))
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
