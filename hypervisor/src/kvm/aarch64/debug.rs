//! A CPU under a debugger: what KVM is asked for, and what its exits mean.

use super::super::vcpu::KvmVcpu;
use crate::aarch64::debug::{DebugRegisters, MOST, cause};
use crate::aarch64::{RegisterId, VcpuState};
use crate::{DebugStop, Exit, GuestDebug, HardwareBreakpoint, Result, WatchedAccess};
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW, KVM_GUESTDBG_USE_SW_BP,
    kvm_debug_exit_arch, kvm_guest_debug, kvm_guest_debug_arch,
};
use kvm_ioctls::Cap;

/// What a debugger asked for.
#[derive(Debug, Default)]
pub(in super::super) struct Debug {
    watched: Vec<HardwareBreakpoint>,
    /// Of the exception for which the CPU stopped last.
    syndrome: u64,
}

impl Debug {
    /// What the guest would have been told of the exception for which the CPU stopped last (ESR_EL1).
    pub(super) fn syndrome(&self) -> u64 {
        self.syndrome
    }
}

impl KvmVcpu {
    /// See [`VcpuState::set_guest_debug`].
    pub(super) fn stop_for(&mut self, debug: Option<&GuestDebug>) -> Result<()> {
        let mut request = kvm_guest_debug::default();
        self.debug.watched.clear();
        if let Some(debug) = debug {
            let asked = [
                (true, KVM_GUESTDBG_ENABLE),
                (debug.software_breakpoints, KVM_GUESTDBG_USE_SW_BP),
                (debug.single_step, KVM_GUESTDBG_SINGLESTEP),
                (!debug.hardware_breakpoints.is_empty(), KVM_GUESTDBG_USE_HW),
            ];
            request.control =
                asked.iter().filter(|(asked, _)| *asked).fold(0, |control, (_, bit)| control | bit);
            let registers = DebugRegisters::watching(&debug.hardware_breakpoints);
            request.arch = kvm_guest_debug_arch {
                dbg_bcr: registers.breakpoint_control,
                dbg_bvr: registers.breakpoint_value,
                dbg_wcr: registers.watchpoint_control,
                dbg_wvr: registers.watchpoint_value,
            };
            self.debug.watched.clone_from(&debug.hardware_breakpoints);
        }
        self.refused("set breakpoints and single steps", self.fd.set_guest_debug(&request))
    }

    /// See [`VcpuState::can_watch`].
    pub(super) fn has_registers_for(&self, breakpoints: &[HardwareBreakpoint]) -> bool {
        let room = |cap| usize::try_from(self.vm.check_extension_int(cap)).unwrap_or(0).min(MOST);
        let executed = breakpoints.iter().filter(|watched| watched.access == WatchedAccess::Execute).count();
        executed <= room(Cap::DebugHwBps)
            && breakpoints.len().saturating_sub(executed) <= room(Cap::DebugHwWps)
    }

    /// The exit for a debugger. What no debugger asked for, such as the breakpoint instruction of a 32-bit program, goes to the
    /// guest.
    pub(in super::super) fn debug_exit(&mut self, exit: &kvm_debug_exit_arch) -> Result<Exit<'static>> {
        self.debug.syndrome = u64::from(exit.hsr_high) << 32 | u64::from(exit.hsr);
        let pc = self.register(RegisterId::PC)?;
        if let Some(cause) = cause(self.debug.syndrome, exit.far, pc, &self.debug.watched) {
            return Ok(Exit::Debug(DebugStop { address: pc, cause }));
        }
        self.inject_breakpoint()?;
        Ok(Exit::Interrupted)
    }
}
