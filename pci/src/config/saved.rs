//! What is saved and shown of a configuration space.

use super::{ConfigSpace, register};
use crate::bar::Bar;
use crate::intx::Intx;
use crate::msi::Msi;
use crate::msix::{Msix, MsixState};
use crate::vectors::VectorHandle;
use machine::inspect::{Inspect, Value, hex, json};
use machine::state::StateError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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

    fn bar_trees(&self) -> Value {
        let tree = |bar: Bar| {
            let address = self.bar_address(bar.number).unwrap_or(0);
            let mapped = self.mapped().into_iter().flatten().any(|window| window.bar == bar.number);
            let fields = json!({
                "kind": bar.kind.name(),
                "prefetchable": bar.kind.prefetchable(),
                "size": bar.size,
                "address": hex(&address),
                "decoded": mapped,
            });
            (bar.number.to_string(), fields)
        };
        self.bars().map(tree).collect()
    }
}

// The header's fields and the interrupts' counters.
machine::inspect!(ConfigSpace, this => {
    id: format!("{:04x}:{:04x}", this.word(register::VENDOR), this.word(register::DEVICE)),
    class: format!("{:#08x}", this.dword(register::REVISION) >> 8),
    hex command: this.command(),
    bars: this.bar_trees(),
    msi: this.msi().map(Msi::handle),
    msix: this.msix().map(Msix::handle),
    intx: this.intx().map(Inspect::inspect),
});

machine::inspect!(VectorHandle, this => {
    vectors: this.count(),
    enabled: this.enabled(),
    out_of_range: this.out_of_range(),
    failures: this.failures(),
});

machine::inspect!(Intx, this => { gsi: this.gsi(), asserted: this.asserted() });
