//! A function for tests: memory behind each kind of BAR, MSI-X, an interrupt pin, and all capabilities.

use crate::bar::{BarKind, ROM_BAR};
use crate::capability::ExpressKind;
use crate::config::{ConfigError, ConfigSpace, ConfigState, Identity};
use crate::function::Function;
use crate::intx::Intx;
use crate::msi::Msi;
use crate::msix::Msix;
use machine::doorbell::{Doorbell, DoorbellAddress};
use machine::effect::DeviceChange;
use machine::inspect::{Inspect, Value, json};
use machine::interrupt::MsiAllocator;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The size of BAR 0, in bytes: 2048 of memory, then the MSI-X table and the pending bits.
pub const BAR0_SIZE: u64 = 8192;
/// Where the MSI-X table lies in BAR 0.
pub const MSIX_TABLE: u32 = 2048;
/// Where the pending bits lie in BAR 0.
pub const MSIX_PBA: u32 = 4096;
/// How many MSI-X vectors there are.
pub const VECTORS: u16 = 4;

/// The test function. BAR 0 is 64-bit memory, BAR 2 32-bit memory, BAR 3 I/O, and there is a ROM.
pub struct TestFunction {
    config: ConfigSpace,
    memory: Vec<u8>,
    doorbell: Doorbell,
}

impl TestFunction {
    /// The identity all of them have.
    pub const IDENTITY: Identity = Identity {
        vendor: 0x1234,
        device: 0x5678,
        class: 0x0f_00_00,
        revision: 1,
        subsystem_vendor: 0x9abc,
        subsystem: 0xdef0,
    };

    /// A new one, which interrupts through `allocator` and, if given, the pin.
    ///
    /// # Errors
    /// Never, unless the configuration space's builder is wrong; also when the host is out of file descriptors.
    pub fn new(
        allocator: Arc<dyn MsiAllocator>,
        intx: Option<Intx>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut config = ConfigSpace::new(Self::IDENTITY);
        Self::add_all(&mut config, allocator)?;
        if let Some(intx) = intx {
            config.add_intx(1, intx);
        }
        Ok(Self { config, memory: vec![0; MSIX_TABLE as usize], doorbell: Doorbell::new()? })
    }

    fn add_all(config: &mut ConfigSpace, allocator: Arc<dyn MsiAllocator>) -> Result<(), ConfigError> {
        config.add_bar(0, BarKind::Memory64 { prefetchable: true }, BAR0_SIZE)?;
        config.add_bar(2, BarKind::Memory32 { prefetchable: false }, 256)?;
        config.add_bar(3, BarKind::Io, 16)?;
        config.add_bar(ROM_BAR, BarKind::Rom, 2048)?;
        config.add_power_management()?;
        config.add_express(ExpressKind::RootComplexIntegratedEndpoint, true)?;
        config.add_msi(true, Msi::new(4, true, Arc::clone(&allocator)))?;
        config.add_msix(0, MSIX_TABLE, MSIX_PBA, Msix::new(VECTORS, allocator))?;
        config.add_vendor_specific(&[8, 1, 2, 3, 4, 5], &[0, 0, 0, 0xff])?;
        config.add_extended_capability(crate::capability::id::EXTENDED_SERIAL_NUMBER, 1, &[7; 8], &[])?;
        config.add_extended_capability(
            crate::capability::id::EXTENDED_VENDOR_SPECIFIC,
            1,
            &[0, 0, 0xc0, 0, 1, 2, 3, 4],
            &[],
        )?;
        Ok(())
    }

    /// The bell rung by writes of 4 bytes at offset 64 of BAR 2.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }
}

impl Function for TestFunction {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if self.config.msix_read(bar, offset, data) {
            return;
        }
        for (byte, at) in data.iter_mut().zip(offset..) {
            if let Some(value) = usize::try_from(at).ok().and_then(|at| self.memory.get(at)) {
                *byte = *value;
            }
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) -> Option<DeviceChange> {
        if self.config.msix_write(bar, offset, data) {
            return None;
        }
        for (byte, at) in data.iter().zip(offset..) {
            if let Some(place) = usize::try_from(at).ok().and_then(|at| self.memory.get_mut(at)) {
                *place = *byte;
            }
        }
        if (bar, offset, data.len()) == (2, 64, 4) {
            self.doorbell.ring();
        }
        None
    }

    fn doorbells(&self, bar: u8) -> Vec<DoorbellAddress> {
        let bell =
            DoorbellAddress { offset: 64, size: Some(4), value: None, doorbell: self.doorbell.clone() };
        if bar == 2 { vec![bell] } else { Vec::new() }
    }

    fn reset(&mut self) {
        self.config.reset();
        self.memory.fill(0);
    }
}

impl Inspect for TestFunction {
    fn inspect(&self) -> Value {
        json!({"kind": TestFunctionState::KIND, "pci": self.config.inspect()})
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct TestFunctionState {
    config: ConfigState,
    memory: Vec<u8>,
}

impl SavedFields for TestFunctionState {
    const KIND: &'static str = "pci-test-function";
    const VERSION: u32 = 1;
}

impl Saved for TestFunction {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&TestFunctionState { config: self.config.save(), memory: self.memory.clone() })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let state: TestFunctionState = state.read()?;
        self.config.restore(&state.config)?;
        for (byte, saved) in self.memory.iter_mut().zip(state.memory) {
            *byte = saved;
        }
        Ok(())
    }
}
