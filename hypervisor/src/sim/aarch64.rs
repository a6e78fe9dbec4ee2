//! The registers of a simulated aarch64 CPU: kept as they are set, and without effect, save for those that start it. And
//! its interrupt controller, of which each shared interrupt, and each message by its data, is a vector of CPU 0.

use super::vcpu::SimVcpu;
use super::{Board, SimVm, lock};
use crate::Result;
use crate::aarch64::{FIRST_SPI, Gic, HostFeatures, MpState, RegisterId, VcpuFeatures, VcpuState};
use machine::interrupt::InterruptController;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What a simulated host offers.
pub(super) const HOST: HostFeatures =
    HostFeatures { address_bits: 40, sve: false, pointer_authentication: false, pmu: false };

/// The registers of one CPU.
#[derive(Default)]
pub(super) struct Registers(BTreeMap<RegisterId, Vec<u8>>);

impl VcpuState for SimVcpu {
    /// Also starts the program anew.
    fn init(&mut self, features: &VcpuFeatures) -> Result<()> {
        self.registers.0.clear();
        self.restart();
        self.lane.change(|lane| lane.started = !features.powered_off);
        Ok(())
    }

    fn start_pmu(&mut self, _: u32) -> Result<()> {
        Ok(())
    }

    fn registers(&self) -> Result<Vec<RegisterId>> {
        Ok(self.registers.0.keys().copied().collect())
    }

    /// A register that was never written reads as zero.
    fn register(&self, id: RegisterId) -> Result<u64> {
        let bytes = self.register_bytes(id)?;
        Ok(bytes.iter().take(8).rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn set_register(&mut self, id: RegisterId, value: u64) -> Result<()> {
        self.set_register_bytes(id, &value.to_le_bytes())
    }

    fn register_bytes(&self, id: RegisterId) -> Result<Vec<u8>> {
        Ok(self.registers.0.get(&id).cloned().unwrap_or_else(|| vec![0; id.size()]))
    }

    fn set_register_bytes(&mut self, id: RegisterId, value: &[u8]) -> Result<()> {
        self.registers.0.insert(id, value.to_vec());
        Ok(())
    }

    fn mp_state(&self) -> Result<MpState> {
        Ok(if self.lane.state().started { MpState::Runnable } else { MpState::PoweredOff })
    }

    /// A CPU that is not runnable waits for [`super::SimCpu::start_cpu`].
    fn set_mp_state(&mut self, state: MpState) -> Result<()> {
        self.lane.change(|lane| lane.started = state == MpState::Runnable);
        Ok(())
    }
}

/// The simulated interrupt controller.
pub(super) struct SimGic {
    board: Arc<Board>,
    /// How many sources hold each shared interrupt active.
    holders: Mutex<BTreeMap<u32, u32>>,
}

impl SimGic {
    pub(super) fn new(vm: &SimVm) -> Self {
        Self { board: Arc::clone(&vm.board), holders: Mutex::default() }
    }
}

impl Gic for SimGic {
    fn reset(&self) -> Result<()> {
        Ok(())
    }
}

impl InterruptController for SimGic {
    fn set_level(&self, gsi: u32, active: bool) {
        let mut holders = lock(&self.holders);
        let holders = holders.entry(gsi).or_default();
        let before = *holders;
        *holders = if active { before.saturating_add(1) } else { before.saturating_sub(1) };
        if before == 0 && active {
            self.pulse(gsi);
        }
    }

    fn pulse(&self, gsi: u32) {
        self.board.apics.interrupt(0, FIRST_SPI.wrapping_add(gsi) as u8, false);
    }
}
