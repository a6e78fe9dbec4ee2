//! What is saved and shown of a configuration space.

use super::{ConfigSpace, register};
use crate::msi::Msi;
use crate::msix::{Msix, MsixState};
use machine::inspect::{Value, hex, json, size};
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

    /// The header's fields and the interrupts' counters, for inspection.
    pub fn inspect(&self) -> Value {
        let bars: serde_json::Map<String, Value> = self
            .bars()
            .map(|bar| {
                let address = self.bar_address(bar.number).unwrap_or(0);
                let mapped = self.mapped().into_iter().flatten().any(|window| window.bar == bar.number);
                let kind = format!("{:?}", bar.kind);
                let fields =
                    json!({"kind": kind, "size": size(&bar.size), "address": hex(&address), "decoded": mapped});
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
}
