//! Holding interrupts back from a CPU, for a debugger that has it do a single step: what came while the machine was stopped would
//! else make each step one into the interrupt's handler.
//!
//! The groups of interrupts are disabled where the CPU takes them. All else stays as the guest has set it, the masks in the
//! CPU's state among it, which the instruction may look at.

use super::gic::KvmGic;
use super::gic_state::{ICC_IGRPEN0, ICC_IGRPEN1};
use crate::Result;
use crate::aarch64::RegisterId;
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::{Mutex, PoisonError};

/// By CPU and register: what the guest has set.
#[derive(Default)]
pub(super) struct Held(Mutex<BTreeMap<(u32, RegisterId), u64>>);

impl Held {
    /// What the guest has set, if it reads as something else meanwhile.
    pub(super) fn value(&self, cpu: u32, register: RegisterId, read: u64) -> u64 {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(&(cpu, register)).copied().filter(|_| read == 0).unwrap_or(read)
    }

    /// The guest has set nothing.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl KvmGic {
    /// See [`crate::aarch64::Gic::hold_interrupts`].
    pub(super) fn hold(&self, cpus: &BTreeSet<u32>) -> Result<()> {
        let mut held = self.held.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over: Vec<_> = held.keys().copied().filter(|(cpu, _)| !cpus.contains(cpu)).collect();
        for (cpu, register) in over {
            // What the instruction itself has set stays.
            if let Some(value) = held.remove(&(cpu, register))
                && self.icc(cpu, register)? == 0
            {
                self.set_icc(cpu, register, value)?;
            }
        }
        for cpu in cpus {
            for register in [ICC_IGRPEN0, ICC_IGRPEN1] {
                if let Entry::Vacant(entry) = held.entry((*cpu, register)) {
                    let value = self.icc(*cpu, register)?;
                    self.set_icc(*cpu, register, 0)?;
                    entry.insert(value);
                }
            }
        }
        Ok(())
    }
}
