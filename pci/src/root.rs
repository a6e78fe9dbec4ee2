//! The two ways the guest reaches the configuration spaces of a [`Segment`].
//!
//! [`Ecam`] is the memory window (PCIe 6.0, 7.2.2), [`ConfigPorts`] the pair of I/O ports (PCI 3.0, 3.2.2.3.2).

use crate::segment::Segment;
use machine::bus::BusDevice;
use machine::effect::Effect;
use machine::state::{Saved, SavedFields, SavedState, StateError};

/// Bytes of ECAM for one bus: 256 functions of 4096 bytes.
pub const ECAM_BYTES_PER_BUS: u64 = 1 << 20;

/// The first of the eight configuration ports.
pub const CONFIG_PORTS: u64 = 0xcf8;

/// How many configuration ports there are.
pub const CONFIG_PORTS_SIZE: u64 = 8;

impl Segment {
    /// The memory window onto the configuration spaces: [`ECAM_BYTES_PER_BUS`] for each bus.
    pub fn ecam(&self) -> Ecam {
        Ecam(self.clone())
    }

    /// The I/O ports onto the configuration spaces; for segment 0, at [`CONFIG_PORTS`].
    pub fn config_ports(&self) -> ConfigPorts {
        ConfigPorts { segment: self.clone(), address: 0 }
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

/// Bus, device and function number and offset that an ECAM offset means.
fn split_ecam(offset: u64) -> Option<(u16, u16)> {
    Some((u16::try_from(offset >> 12).ok()?, offset as u16 & 0xfff))
}
