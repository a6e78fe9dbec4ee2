//! The CPUs of a machine as their threads know each other: where a guest asks its firmware to start a CPU, and the hypervisor leaves
//! the answer to the monitor, the thread of the CPU that asks answers it, and leaves the other one word.
//!
//! Which CPUs are there, the machine thread says. Nobody waits: locks are held for a look at what they protect.

use super::control::{Control, locked};
use hypervisor::{CpuAnswer, CpuCall};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The CPUs that are there, by number, and how many there can be.
pub struct Peers {
    present: Mutex<BTreeMap<u32, Arc<Control>>>,
    limit: u32,
}

impl Peers {
    /// None of the `limit` CPUs that there can be.
    pub fn new(limit: u32) -> Self {
        Self { present: Mutex::default(), limit }
    }

    /// A CPU is there.
    pub(super) fn add(&self, number: u32, control: Arc<Control>) {
        locked(&self.present).insert(number, control);
    }

    /// A CPU is there no longer.
    pub fn remove(&self, number: u32) {
        locked(&self.present).remove(&number);
    }

    /// Answers a guest, and has the CPU that it starts do so.
    pub(super) fn answer(&self, call: CpuCall) -> CpuAnswer {
        match call {
            CpuCall::Start { cpu: Some(number), start } if number < self.limit => {
                let control = locked(&self.present).get(&number).cloned();
                control.map_or(CpuAnswer::Absent, |control| control.start(start))
            }
            CpuCall::Start { .. } => CpuAnswer::NoSuchCpu,
            CpuCall::State { cpus } => self.state(cpus),
        }
    }

    fn state(&self, cpus: Range<u32>) -> CpuAnswer {
        if cpus.is_empty() || cpus.start >= self.limit {
            return CpuAnswer::NoSuchCpu;
        }
        match locked(&self.present).range(cpus).any(|(_, control)| control.is_on()) {
            true => CpuAnswer::On,
            false => CpuAnswer::Off,
        }
    }
}

#[cfg(test)]
mod tests;
