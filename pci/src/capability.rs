//! Putting a configuration space together: BARs, capabilities (PCIe 6.0, 7.5.3, 7.7) and extended capabilities
//! (7.6.3).

use crate::bar::{Bar, BarKind, ROM_BAR};
use crate::config::{
    ConfigError, ConfigSpace, EXTENDED_REGISTERS, MSI_64_BIT, MsixPlace, Register, address_bits,
    bar_register, register,
};
use crate::intx::Intx;
use crate::msi::Msi;
use crate::msix::Msix;

pub use crate::express::ExpressKind;

/// Capability ids (PCI Code and ID Assignment, 2).
pub mod id {
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x01;
    /// MSI.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific; also virtio's.
    pub const VENDOR_SPECIFIC: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSI_X: u8 = 0x11;
    /// Subsystem of a bridge.
    pub const SUBSYSTEM: u8 = 0x0d;
    /// Extended: advanced error reporting.
    pub const EXTENDED_ERROR_REPORTING: u16 = 0x0001;
    /// Extended: device serial number.
    pub const EXTENDED_SERIAL_NUMBER: u16 = 0x0003;
    /// Extended: access control services.
    pub const EXTENDED_ACCESS_CONTROL: u16 = 0x000d;
    /// Extended: vendor-specific.
    pub const EXTENDED_VENDOR_SPECIFIC: u16 = 0x000b;
}

impl ConfigSpace {
    /// Adds the window `number` (0 to 5, or [`ROM_BAR`]), unplaced. A 64-bit window also takes the next number.
    ///
    /// # Errors
    /// When the number is taken or the size is not one such a window may have.
    pub fn add_bar(&mut self, number: u8, kind: BarKind, size: u64) -> Result<(), ConfigError> {
        let wide = matches!(kind, BarKind::Memory64 { .. });
        let lower_is_wide = number
            .checked_sub(1)
            .and_then(|lower| self.bars.get(usize::from(lower))?.as_ref())
            .is_some_and(|lower| number != ROM_BAR && matches!(lower.kind, BarKind::Memory64 { .. }));
        let next_is_taken =
            wide && (number >= 5 || self.bars().any(|bar| bar.number == number.wrapping_add(1)));
        let free = self.bars.get(usize::from(number)).is_some_and(Option::is_none);
        if !free || lower_is_wide || next_is_taken || (number == ROM_BAR) != (kind == BarKind::Rom) {
            return Err(ConfigError::BarNumber { number, kind });
        }
        if !size.is_power_of_two() || !kind.sizes().contains(&size) {
            return Err(ConfigError::BarSize { number, kind, size });
        }
        let bar = Bar { number, kind, size };
        let at = bar_register(number);
        let rom_enable = u32::from(kind == BarKind::Rom);
        self.define(at, kind.flags(), address_bits(&bar) | rom_enable);
        if wide {
            self.define(at.wrapping_add(4), 0, (!size.wrapping_sub(1) >> 32) as u32);
        }
        if let Some(place) = self.bars.get_mut(usize::from(number)) {
            *place = Some(bar);
        }
        Ok(())
    }

    /// Adds a capability and returns its offset. `body` is what follows the id and the next pointer; of it the
    /// guest may write the bits set in `writable`, which may be shorter.
    ///
    /// # Errors
    /// When the first 256 bytes have no room for it.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u16, ConfigError> {
        let size = body.len().saturating_add(2);
        let offset = self.next_capability;
        let end = usize::from(offset).saturating_add(size).next_multiple_of(4);
        if end > 0x100 {
            return Err(ConfigError::CapabilityRoom { id: id.into(), size });
        }
        self.define_bytes(offset, &[&[id, 0], body].concat(), &[&[0, 0], writable].concat());
        let link = self.capability_link;
        self.define_byte(link, offset as u8);
        // Status: there is a capability list.
        self.define_byte(register::STATUS, 1 << 4);
        self.capability_link = offset.wrapping_add(1);
        self.next_capability = end as u16;
        Ok(offset)
    }

    /// Adds a vendor-specific capability, whose `body` (after id and next pointer) begins with its length byte.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn add_vendor_specific(&mut self, body: &[u8], writable: &[u8]) -> Result<u16, ConfigError> {
        self.add_capability(id::VENDOR_SPECIFIC, body, writable)
    }

    /// Adds power management with the states D0 and D3hot, which loses nothing. In D3hot no window answers.
    ///
    /// # Errors
    /// When there is one already, or no room.
    pub fn add_power_management(&mut self) -> Result<u16, ConfigError> {
        if self.power.is_some() {
            return Err(ConfigError::CapabilityTwice(id::POWER_MANAGEMENT.into()));
        }
        // Version 3, no PME, no D1, no D2; No_Soft_Reset; the state is writable.
        let body = [3, 0, 1 << 3, 0, 0, 0];
        let offset = self.add_capability(id::POWER_MANAGEMENT, &body, &[0, 0, 3])?;
        self.power = Some(offset);
        Ok(offset)
    }

    /// Adds MSI.
    ///
    /// # Errors
    /// When there is one already, or no room.
    pub fn add_msi(&mut self, wide_address: bool, msi: Msi) -> Result<u16, ConfigError> {
        if self.msi.is_some() {
            return Err(ConfigError::CapabilityTwice(id::MSI.into()));
        }
        let count_log2 = u32::from(msi.vectors()).trailing_zeros();
        let mask_bits = u32::MAX >> 32u16.saturating_sub(msi.vectors());
        let masking = msi.per_vector_masking();
        let wide = if wide_address { MSI_64_BIT >> 16 } else { 0 };
        let control = count_log2 << 1 | wide | u32::from(masking) << 8;
        let mut body = (control as u16).to_le_bytes().to_vec();
        let mut writable = vec![0x71, 0];
        let mut dword = |mask: u32| {
            body.extend([0; 4]);
            writable.extend(mask.to_le_bytes());
        };
        dword(!3);
        if wide_address {
            dword(!0);
        }
        dword(0xffff);
        if masking {
            dword(mask_bits);
            dword(0);
        }
        let offset = self.add_capability(id::MSI, &body, &writable)?;
        self.msi = Some((offset, msi));
        Ok(offset)
    }

    /// Adds MSI-X, with the table at `table` and the pending bits at `pba` (multiples of 8) in BAR `bar`. The
    /// device passes accesses in that BAR to [`ConfigSpace::msix_read`] and [`ConfigSpace::msix_write`].
    ///
    /// # Errors
    /// When there is one already, or no room in configuration space or in the BAR.
    pub fn add_msix(&mut self, bar: u8, table: u32, pba: u32, msix: Msix) -> Result<u16, ConfigError> {
        if self.msix.is_some() {
            return Err(ConfigError::CapabilityTwice(id::MSI_X.into()));
        }
        let end = u64::from(table).saturating_add(msix.table_size());
        let end = end.max(u64::from(pba).saturating_add(msix.pba_size()));
        if !self.bars().any(|window| window.number == bar && window.size >= end) {
            return Err(ConfigError::CapabilityRoom { id: id::MSI_X.into(), size: end as usize });
        }
        let place = |offset: u32| (offset & !7 | u32::from(bar)).to_le_bytes();
        let mut body = msix.vectors().wrapping_sub(1).to_le_bytes().to_vec();
        body.extend(place(table));
        body.extend(place(pba));
        let offset = self.add_capability(id::MSI_X, &body, &[0, 0xc0])?;
        let (table, pba) = (u64::from(table & !7), u64::from(pba & !7));
        self.msix = Some(MsixPlace { offset, bar, table, pba, msix });
        Ok(offset)
    }

    /// Gives the function the interrupt pin `pin`, 1 to 4 for INTA to INTD. The interrupt line register is set
    /// to the line's number, as firmware does.
    pub fn add_intx(&mut self, pin: u8, intx: Intx) {
        self.define_byte(register::INTERRUPT_PIN, pin.clamp(1, 4));
        self.define_byte(register::INTERRUPT_LINE, u8::try_from(intx.gsi()).unwrap_or(0xff));
        self.intx = Some(intx);
    }

    /// Adds an extended capability and returns its offset. `body` is what follows the header dword; of it the
    /// guest may write the bits set in `writable`, which may be shorter.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn add_extended_capability(
        &mut self,
        id: u16,
        version: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, ConfigError> {
        let size = body.len().saturating_add(4);
        let offset = self.next_extended;
        let end = usize::from(offset).saturating_add(size).next_multiple_of(4);
        if end > EXTENDED_REGISTERS * 4 {
            return Err(ConfigError::CapabilityRoom { id, size });
        }
        self.registers.resize(EXTENDED_REGISTERS, Register::default());
        let header = u32::from(id) | u32::from(version & 0xf) << 16;
        self.define_bytes(offset, &[&header.to_le_bytes(), body].concat(), &[&[0; 4], writable].concat());
        if self.last_extended != 0 {
            let last = self.last_extended;
            self.define(last, self.dword(last) | u32::from(offset) << 20, 0);
        }
        self.last_extended = offset;
        self.next_extended = end as u16;
        Ok(offset)
    }

    /// Defines bytes from the dword-aligned `offset` on.
    fn define_bytes(&mut self, offset: u16, bytes: &[u8], writable: &[u8]) {
        let dword = |bytes: &[u8], index: usize| {
            bytes
                .chunks(4)
                .nth(index)
                .map_or(0, |chunk| chunk.iter().rev().fold(0u32, |dword, byte| dword << 8 | u32::from(*byte)))
        };
        for (index, at) in (0..bytes.len().div_ceil(4)).zip((offset..).step_by(4)) {
            self.define(at, dword(bytes, index), dword(writable, index));
        }
    }

    /// Changes one byte of what a register is at power-on.
    fn define_byte(&mut self, offset: u16, byte: u8) {
        let shift = u32::from(offset & 3).wrapping_mul(8);
        let mask = 0xffu32.wrapping_shl(shift);
        if let Some(register) = self.registers.get_mut(usize::from(offset >> 2)) {
            register.initial = (register.initial & !mask) | u32::from(byte).wrapping_shl(shift);
            register.value = register.initial;
        }
    }
}
