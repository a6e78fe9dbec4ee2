//! A function's configuration space (PCIe 6.0, 7.5 and 7.6): registers with their writable bits, BARs, and the
//! capabilities that act when written.
//!
//! The space is made of dwords, each with a mask of the bits the guest may write and one of the bits it clears
//! by writing 1. What a write sets off (BARs that moved, a function-level reset, interrupts enabled or masked)
//! is found by comparing before and after. How a space is put together is in [`crate::capability`].

mod header;
mod interrupts;
mod saved;

pub use header::{Identity, command, register};
pub(crate) use interrupts::{MSI_64_BIT, MsixPlace};
pub use saved::ConfigState;

use crate::bar::{Bar, BarKind, MappedBar, ROM_BAR, Space};
use crate::bridge::{SECONDARY_BUS_RESET, bridge_register};
use crate::intx::Intx;
use crate::msi::Msi;
use interrupts::pending_bits;
use machine::effect::DeviceChange;
use thiserror::Error;

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

/// Secondary bus reset, in the dword that bridge control is the upper half of.
const RESET_BELOW: u32 = (SECONDARY_BUS_RESET as u32) << 16;

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
    /// For a bridge: whether the link below it is up.
    pub(crate) link: Option<bool>,
    requester: u16,
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
            link: None,
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
            || self.power == offset.checked_sub(4)
            || (self.link.is_some() && bridge_register::FURTHER.contains(&offset));
        let before = moves.then(|| (self.mapped(), self.forwarding()));

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
        let control = bridge_register::CONTROL & !3;
        if self.link.is_some() && offset == control && !old & self.dword_raw(control) & RESET_BELOW != 0 {
            return Some(DeviceChange::ResetBelow);
        }
        let (windows, forwarding) = before?;
        (windows != self.mapped() || forwarding != self.forwarding()).then_some(DeviceChange::Remap)
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

    /// Whether the function is in power state D0.
    pub(crate) fn powered(&self) -> bool {
        self.power.is_none_or(|power| self.dword(power.wrapping_add(4)) & 3 == 0)
    }

    /// The bits of the dword at `offset` that the guest may write.
    pub(crate) fn writable(&self, offset: u16) -> u32 {
        self.registers.get(usize::from(offset >> 2)).map_or(0, |register| register.writable)
    }

    fn mapped(&self) -> [Option<MappedBar>; 7] {
        let command = self.command();
        let powered = self.powered();
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

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
