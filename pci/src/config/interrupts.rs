//! The capabilities of a configuration space that interrupt: how their registers act, and where MSI-X lies.

use super::{ConfigSpace, command, register};
use crate::intx::Intx;
use crate::msi::{Msi, MsiRegisters};
use crate::msix::Msix;
use machine::interrupt::MsiMessage;

/// In the first dword of the MSI capability: 64-bit addresses.
pub(crate) const MSI_64_BIT: u32 = 1 << 23;

/// Where the pending bits lie in an MSI capability at `at` whose first dword is `header`.
pub(super) fn pending_bits(at: u16, header: u32) -> u16 {
    at.wrapping_add(if header & MSI_64_BIT != 0 { 20 } else { 16 })
}

/// The MSI-X capability and where its structures lie.
pub(crate) struct MsixPlace {
    pub(crate) offset: u16,
    pub(crate) bar: u8,
    pub(crate) table: u64,
    pub(crate) pba: u64,
    pub(crate) msix: Msix,
}

impl ConfigSpace {
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

    pub(super) fn reset_interrupts(&mut self) {
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

    /// A register at `offset` was written: brings interrupts into the state it asks for.
    pub(super) fn apply_interrupts(&mut self, offset: u16) {
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

    pub(super) fn apply_all_interrupts(&mut self) {
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

    pub(super) fn apply_msi(&mut self) {
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
