//! The registers of a simulated x86_64 CPU: kept as they are set, and without effect, save for those that start
//! it.

use super::vcpu::SimVcpu;
use crate::x86_64::{
    CpuidEntry, DebugRegs, Fpu, LapicState, MpState, Msr, Regs, Sregs, VcpuEvents, VcpuState, Xcrs,
};
use crate::{CpuStart, GuestDebug, HardwareBreakpoint, Result};
use std::collections::BTreeMap;

/// Words in the XSAVE area.
const XSAVE_WORDS: usize = 1024;
/// The simulated TSC's frequency.
const TSC_KHZ: u32 = 1_000_000;

/// The registers of one CPU.
pub(super) struct Registers {
    regs: Regs,
    sregs: Sregs,
    fpu: Fpu,
    xcrs: Xcrs,
    xsave: Vec<u32>,
    msrs: BTreeMap<u32, u64>,
    lapic: LapicState,
    events: VcpuEvents,
    debug: DebugRegs,
    tsc_khz: u32,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            regs: Regs::default(),
            sregs: Sregs::default(),
            fpu: Fpu::default(),
            xcrs: Xcrs::default(),
            xsave: vec![0; XSAVE_WORDS],
            msrs: BTreeMap::new(),
            lapic: LapicState::default(),
            events: VcpuEvents::default(),
            debug: DebugRegs::default(),
            tsc_khz: TSC_KHZ,
        }
    }
}

impl Registers {
    /// Those of a CPU that another one starts, by a call that x86_64 has no registers for.
    pub(super) fn begin(&mut self, _: &CpuStart) {
        *self = Self::default();
    }
}

/// What CPUID says of a simulated CPU: a plain 64-bit processor with an x2APIC under a KVM-like hypervisor.
pub(super) fn cpuid() -> Vec<CpuidEntry> {
    let leaf =
        |function, eax, ebx, ecx, edx| CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() };
    let text = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    vec![
        leaf(0, 0xb, text(b"Genu"), text(b"ntel"), text(b"ineI")),
        // SSE3, CX16, x2APIC, TSC deadline, hypervisor; FPU, TSC, MSR, PAE, CX8, APIC, CMOV, PAT, FXSR, SSE, SSE2.
        leaf(1, 0x0006_06a0, 0x0001_0800, 0x8120_2001, 0x0701_8371),
        CpuidEntry { indexed: true, ..leaf(0xb, 0, 1, 0x100, 0) },
        leaf(0x4000_0000, 0x4000_0001, text(b"KVMK"), text(b"VMKV"), text(b"M\0\0\0")),
        leaf(0x4000_0001, 0, 0, 0, 0),
        leaf(0x8000_0000, 0x8000_0008, 0, 0, 0),
        // LAHF; SYSCALL, NX, long mode.
        leaf(0x8000_0001, 0, 0, 1, 0x2010_0800),
        // 46 bits of physical and 48 of linear address.
        leaf(0x8000_0008, 0x302e, 0, 0, 0),
    ]
}

impl VcpuState for SimVcpu {
    fn set_cpuid(&mut self, _: &[CpuidEntry]) -> Result<()> {
        Ok(())
    }

    fn regs(&self) -> Result<Regs> {
        Ok(self.registers.regs)
    }

    /// Also starts the program anew.
    fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        self.registers.regs = *regs;
        self.restart();
        Ok(())
    }

    fn sregs(&self) -> Result<Sregs> {
        Ok(self.registers.sregs)
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<()> {
        self.registers.sregs = *sregs;
        Ok(())
    }

    fn fpu(&self) -> Result<Fpu> {
        Ok(self.registers.fpu)
    }

    fn set_fpu(&mut self, fpu: &Fpu) -> Result<()> {
        self.registers.fpu = *fpu;
        Ok(())
    }

    fn xcrs(&self) -> Result<Xcrs> {
        Ok(self.registers.xcrs)
    }

    fn set_xcrs(&mut self, xcrs: &Xcrs) -> Result<()> {
        self.registers.xcrs = *xcrs;
        Ok(())
    }

    fn xsave(&self) -> Result<Vec<u32>> {
        Ok(self.registers.xsave.clone())
    }

    fn set_xsave(&mut self, area: &[u32]) -> Result<()> {
        self.registers.xsave = area.to_vec();
        Ok(())
    }

    /// A register that was never written reads as zero.
    fn msrs(&self, indices: &[u32]) -> Result<Vec<Msr>> {
        let value = |index| self.registers.msrs.get(&index).copied().unwrap_or(0);
        Ok(indices.iter().map(|&index| Msr { index, value: value(index) }).collect())
    }

    fn set_msrs(&mut self, msrs: &[Msr]) -> Result<()> {
        self.registers.msrs.extend(msrs.iter().map(|msr| (msr.index, msr.value)));
        Ok(())
    }

    fn lapic(&self) -> Result<LapicState> {
        Ok(self.registers.lapic)
    }

    fn set_lapic(&mut self, lapic: &LapicState) -> Result<()> {
        self.registers.lapic = *lapic;
        Ok(())
    }

    fn mp_state(&self) -> Result<MpState> {
        Ok(if self.lane.state().started { MpState::Runnable } else { MpState::Uninitialized })
    }

    /// A CPU that is not runnable waits for [`super::SimCpu::start_cpu`].
    fn set_mp_state(&mut self, state: MpState) -> Result<()> {
        let started = matches!(state, MpState::Runnable | MpState::Halted);
        self.lane.change(|lane| lane.started = started);
        if !started {
            self.restart();
        }
        Ok(())
    }

    fn vcpu_events(&self) -> Result<VcpuEvents> {
        Ok(self.registers.events)
    }

    fn set_vcpu_events(&mut self, events: &VcpuEvents) -> Result<()> {
        self.registers.events = *events;
        Ok(())
    }

    fn debug_regs(&self) -> Result<DebugRegs> {
        Ok(self.registers.debug)
    }

    fn set_debug_regs(&mut self, regs: &DebugRegs) -> Result<()> {
        self.registers.debug = *regs;
        Ok(())
    }

    fn tsc_khz(&self) -> Result<u32> {
        Ok(self.registers.tsc_khz)
    }

    fn set_tsc_khz(&mut self, khz: u32) -> Result<()> {
        self.registers.tsc_khz = khz;
        Ok(())
    }

    /// Kept, and without effect: a program has no instructions to stop at.
    fn set_guest_debug(&mut self, debug: Option<&GuestDebug>) -> Result<()> {
        self.guest_debug = debug.cloned();
        Ok(())
    }

    fn can_watch(&self, breakpoints: &[HardwareBreakpoint]) -> bool {
        crate::x86_64::can_watch(breakpoints)
    }

    fn inject_breakpoint(&mut self) -> Result<()> {
        self.lane.change(|state| state.pending.insert(3, false));
        Ok(())
    }

    /// Delivered as vector 2.
    fn nmi(&self) -> Result<()> {
        self.lane.change(|state| state.pending.insert(2, false));
        Ok(())
    }
}
