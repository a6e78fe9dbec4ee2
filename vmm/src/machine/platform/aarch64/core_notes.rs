//! What a core dump holds of each CPU: its registers, as the kernel writes those of threads.

use super::debug::Registers;
use crate::machine::coredump::notes::{NT_FPREGSET, NT_PRSTATUS, note, prstatus};
use arch::aarch64::paging;
use hypervisor::aarch64::VcpuState;

/// The architecture's number in an ELF file (`EM_AARCH64`).
pub const MACHINE: u16 = 183;

/// A CPU's registers.
pub struct CpuState {
    registers: Registers,
    paging: paging::State,
}

impl CpuState {
    /// Reads them.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn read(cpu: &mut dyn VcpuState) -> hypervisor::Result<Self> {
        Ok(Self { registers: Registers::read(cpu)?, paging: paging::state(cpu)? })
    }

    /// How it finds memory.
    pub fn paging(&self) -> &paging::State {
        &self.paging
    }
}

/// The CPUs' notes.
pub fn of_cpus(cpus: &[CpuState]) -> Vec<u8> {
    let mut notes = Vec::new();
    for (number, CpuState { registers, .. }) in (1u32..).zip(cpus) {
        note(&mut notes, b"CORE", NT_PRSTATUS, &prstatus(number, &registers.general()));
        note(&mut notes, b"CORE", NT_FPREGSET, &registers.vectors());
    }
    notes
}
