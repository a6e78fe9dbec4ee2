//! KVM on x86_64: what a machine needs before its CPUs, and the state of a CPU.

use super::vcpu::KvmVcpu;
use crate::x86_64::{
    CpuidEntry, DebugRegs, Fpu, IOAPIC_PINS, LapicState, MpState, Msr, RESERVED_START, Regs, Sregs,
    VcpuEvents, VcpuState, Xcrs,
};
use crate::{DebugCause, DebugStop, Error, Exit, GuestDebug, HardwareBreakpoint, Result, WatchedAccess};
use kvm_bindings::{
    CpuId, KVM_CAP_SET_GUEST_DEBUG2, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API,
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, KVM_MAX_CPUID_ENTRIES,
    KVM_MAX_MSR_ENTRIES, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, Msrs, Xsave, kvm_cpuid_entry2, kvm_debug_exit_arch, kvm_enable_cap,
    kvm_guest_debug, kvm_mp_state, kvm_msr_entry, kvm_xsave,
};
use kvm_ioctls::{Cap, VmFd};
use std::io;

/// Bytes in a page, and in the smallest XSAVE area KVM has.
const PAGE_SIZE: u64 = 4096;
const XSAVE_WORDS: usize = 1024;

/// What a debugger asked for.
pub(super) type Debug = kvm_guest_debug;

/// Sets up the interrupt controllers and what real mode needs.
pub(super) fn set_up_vm(vm: &VmFd) -> Result<()> {
    let failed = |what| move |errno: kvm_ioctls::Error| Error::Vm { what, source: errno.into() };
    vm.set_identity_map_address(RESERVED_START).map_err(failed("place the identity map"))?;
    vm.set_tss_address((RESERVED_START + PAGE_SIZE) as usize)
        .map_err(failed("place the task state segment"))?;
    enable(vm, KVM_CAP_SPLIT_IRQCHIP, u64::from(IOAPIC_PINS))
        .map_err(failed("set up the split interrupt controller"))?;
    // With 32-bit APIC ids and without the quirk that takes id 255 for a broadcast, CPUs beyond the
    // 255th are reached like any other.
    let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    enable(vm, KVM_CAP_X2APIC_API, u64::from(flags)).map_err(failed("enable 32-bit APIC ids"))
}

fn enable(vm: &VmFd, capability: u32, argument: u64) -> std::result::Result<(), kvm_ioctls::Error> {
    let mut request = kvm_enable_cap { cap: capability, ..Default::default() };
    request.args[0] = argument;
    vm.enable_cap(&request)
}

pub(super) fn cpuid_from_kvm(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        function: entry.function,
        index: entry.index,
        indexed: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

fn cpuid_to_kvm(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.function,
        index: entry.index,
        flags: if entry.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        ..Default::default()
    }
}

impl KvmVcpu {
    fn refused<T>(&self, what: &'static str, result: std::result::Result<T, kvm_ioctls::Error>) -> Result<T> {
        result.map_err(|errno| self.failed(what, errno))
    }

    fn invalid(&self, what: &'static str, reason: String) -> Error {
        Error::Vcpu { id: self.id, what, source: io::Error::new(io::ErrorKind::InvalidInput, reason) }
    }

    /// Size of this machine's XSAVE area, in words of four bytes.
    fn xsave_words(&self) -> usize {
        let size = self.vm.check_extension_int(Cap::Xsave2);
        usize::try_from(size >> 2).unwrap_or(0).max(XSAVE_WORDS)
    }
}

impl VcpuState for KvmVcpu {
    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<()> {
        let entries: Vec<_> = entries.iter().map(cpuid_to_kvm).collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| Error::TooManyCpuidEntries {
            id: self.id,
            count: entries.len(),
            most: KVM_MAX_CPUID_ENTRIES,
        })?;
        self.refused("set CPUID", self.fd.set_cpuid2(&cpuid))
    }

    fn regs(&self) -> Result<Regs> {
        self.refused("read the general registers", self.fd.get_regs())
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        self.refused("set the general registers", self.fd.set_regs(regs))
    }

    fn sregs(&self) -> Result<Sregs> {
        self.refused("read the system registers", self.fd.get_sregs())
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<()> {
        self.refused("set the system registers", self.fd.set_sregs(sregs))
    }

    fn fpu(&self) -> Result<Fpu> {
        self.refused("read the FPU", self.fd.get_fpu())
    }

    fn set_fpu(&mut self, fpu: &Fpu) -> Result<()> {
        self.refused("set the FPU", self.fd.set_fpu(fpu))
    }

    fn xcrs(&self) -> Result<Xcrs> {
        self.refused("read the extended control registers", self.fd.get_xcrs())
    }

    fn set_xcrs(&mut self, xcrs: &Xcrs) -> Result<()> {
        self.refused("set the extended control registers", self.fd.set_xcrs(xcrs))
    }

    fn xsave(&self) -> Result<Vec<u32>> {
        const WHAT: &str = "read the XSAVE area";
        let extra = self.xsave_words().saturating_sub(XSAVE_WORDS);
        if extra == 0 {
            return Ok(self.refused(WHAT, self.fd.get_xsave())?.region.to_vec());
        }
        let mut area = Xsave::new(extra).map_err(|error| self.invalid(WHAT, format!("{error:?}")))?;
        // SAFETY: the area has the size that KVM says it needs for this machine.
        self.refused(WHAT, unsafe { self.fd.get_xsave2(&mut area) })?;
        let mut words = area.as_fam_struct_ref().xsave.region.to_vec();
        words.extend_from_slice(area.as_slice());
        Ok(words)
    }

    fn set_xsave(&mut self, area: &[u32]) -> Result<()> {
        const WHAT: &str = "set the XSAVE area";
        let expected = self.xsave_words();
        let mut xsave = kvm_xsave::default();
        let base = xsave.region.len();
        if area.len() > expected || area.len() < base {
            let reason = format!("it has {} words, and this host's has {expected}", area.len());
            return Err(self.invalid(WHAT, reason));
        }
        let (low, high) = area.split_at(base);
        xsave.region.copy_from_slice(low);
        // A shorter area comes from a host with fewer features; the rest is in its initial state.
        let mut extra = high.to_vec();
        extra.resize(expected.saturating_sub(base), 0);
        let mut whole =
            Xsave::from_entries(&extra).map_err(|error| self.invalid(WHAT, format!("{error:?}")))?;
        // SAFETY: the length of the variable part is not changed.
        unsafe { whole.as_mut_fam_struct() }.xsave.region = xsave.region;
        // SAFETY: the area has the size that KVM reads for this machine.
        self.refused(WHAT, unsafe { self.fd.set_xsave2(&whole) })
    }

    fn msrs(&self, indices: &[u32]) -> Result<Vec<Msr>> {
        let mut read = Vec::with_capacity(indices.len());
        for indices in indices.chunks(KVM_MAX_MSR_ENTRIES) {
            let entries: Vec<_> =
                indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let mut msrs = self.msr_list(&entries)?;
            let count = self.refused("read MSRs", self.fd.get_msrs(&mut msrs))?;
            if let Some(&index) = indices.get(count) {
                return Err(Error::Msr { id: self.id, verb: "read", index });
            }
            read.extend(msrs.as_slice().iter().map(|entry| Msr { index: entry.index, value: entry.data }));
        }
        Ok(read)
    }

    fn set_msrs(&mut self, msrs: &[Msr]) -> Result<()> {
        for msrs in msrs.chunks(KVM_MAX_MSR_ENTRIES) {
            let entries: Vec<_> = msrs
                .iter()
                .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
                .collect();
            let list = self.msr_list(&entries)?;
            let count = self.refused("write MSRs", self.fd.set_msrs(&list))?;
            if let Some(msr) = msrs.get(count) {
                return Err(Error::Msr { id: self.id, verb: "write", index: msr.index });
            }
        }
        Ok(())
    }

    fn lapic(&self) -> Result<LapicState> {
        self.refused("read the local APIC", self.fd.get_lapic())
    }

    fn set_lapic(&mut self, lapic: &LapicState) -> Result<()> {
        self.refused("set the local APIC", self.fd.set_lapic(lapic))
    }

    fn mp_state(&self) -> Result<MpState> {
        let state = self.refused("read the MP state", self.fd.get_mp_state())?.mp_state;
        Ok(match state {
            KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
            KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
            KVM_MP_STATE_SIPI_RECEIVED => MpState::SipiReceived,
            KVM_MP_STATE_HALTED => MpState::Halted,
            KVM_MP_STATE_RUNNABLE => MpState::Runnable,
            other => return Err(self.invalid("read the MP state", format!("KVM says it is {other}"))),
        })
    }

    fn set_mp_state(&mut self, state: MpState) -> Result<()> {
        let mp_state = match state {
            MpState::Runnable => KVM_MP_STATE_RUNNABLE,
            MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
            MpState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
            MpState::SipiReceived => KVM_MP_STATE_SIPI_RECEIVED,
            MpState::Halted => KVM_MP_STATE_HALTED,
        };
        self.refused("set the MP state", self.fd.set_mp_state(kvm_mp_state { mp_state }))
    }

    fn vcpu_events(&self) -> Result<VcpuEvents> {
        self.refused("read the pending events", self.fd.get_vcpu_events())
    }

    fn set_vcpu_events(&mut self, events: &VcpuEvents) -> Result<()> {
        self.refused("set the pending events", self.fd.set_vcpu_events(events))
    }

    fn debug_regs(&self) -> Result<DebugRegs> {
        self.refused("read the debug registers", self.fd.get_debug_regs())
    }

    fn set_debug_regs(&mut self, regs: &DebugRegs) -> Result<()> {
        self.refused("set the debug registers", self.fd.set_debug_regs(regs))
    }

    fn tsc_khz(&self) -> Result<u32> {
        self.refused("read the TSC frequency", self.fd.get_tsc_khz())
    }

    fn set_tsc_khz(&mut self, khz: u32) -> Result<()> {
        self.refused("set the TSC frequency", self.fd.set_tsc_khz(khz))
    }

    fn set_guest_debug(&mut self, debug: Option<&GuestDebug>) -> Result<()> {
        self.debug = kvm_guest_debug::default();
        if let Some(debug) = debug {
            let mut control = KVM_GUESTDBG_ENABLE;
            if debug.software_breakpoints {
                control |= KVM_GUESTDBG_USE_SW_BP;
            }
            if debug.single_step {
                // Where it can be, interrupts are held back: each step would else lead into the timer's handler.
                let flags = self.vm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
                control |= KVM_GUESTDBG_SINGLESTEP | flags.cast_unsigned() & KVM_GUESTDBG_BLOCKIRQ;
            }
            if !debug.hardware_breakpoints.is_empty() {
                control |= KVM_GUESTDBG_USE_HW_BP;
                self.debug.arch.debugreg = debug_registers(&debug.hardware_breakpoints);
            }
            self.debug.control = control;
        }
        self.refused("set breakpoints and single steps", self.fd.set_guest_debug(&self.debug))
    }

    fn can_watch(&self, breakpoints: &[HardwareBreakpoint]) -> bool {
        crate::x86_64::can_watch(breakpoints)
    }

    fn inject_breakpoint(&mut self) -> Result<()> {
        let mut debug = self.debug;
        debug.control |= KVM_GUESTDBG_INJECT_BP;
        self.refused("raise a breakpoint exception", self.fd.set_guest_debug(&debug))
    }

    fn nmi(&self) -> Result<()> {
        self.refused("raise an NMI", self.fd.nmi())
    }
}

/// The debug registers that watch these: DR0 to DR3 the addresses, DR7 what is watched (Intel SDM 3, 18.2.4).
fn debug_registers(breakpoints: &[HardwareBreakpoint]) -> [u64; 8] {
    /// Bit 10 is always set; GE asks for exact data breakpoints.
    const FIXED: u64 = 1 << 10 | 1 << 9;
    let mut addresses = [0; 4];
    let mut control = FIXED;
    for (index, (address, breakpoint)) in (0_u32..).zip(addresses.iter_mut().zip(breakpoints)) {
        let access = match breakpoint.access {
            WatchedAccess::Execute => 0,
            WatchedAccess::Write => 1,
            WatchedAccess::Read | WatchedAccess::ReadWrite => 3,
        };
        let length = match (breakpoint.access, breakpoint.length) {
            (WatchedAccess::Execute, _) => 0,
            (_, 8) => 2,
            (_, length) => u64::from(length).saturating_sub(1),
        };
        *address = breakpoint.address;
        // Two bits that enable each, from bit 0, and four that say what is watched, from bit 16.
        control |= 2_u64.wrapping_shl(index << 1);
        control |= (access | length << 2_u32).wrapping_shl((index << 2).saturating_add(16));
    }
    let [a, b, c, d] = addresses;
    [a, b, c, d, 0, 0, 0, control]
}

/// Why a CPU stopped for the debugger.
fn debug_stop(exit: &kvm_debug_exit_arch) -> DebugStop {
    /// The breakpoint exception.
    const BP: u32 = 3;
    /// DR6: the breakpoint registers that matched, and whether it was a single step.
    const MATCHED: u64 = 0xf;
    const STEP: u64 = 1 << 14;
    let cause = if exit.exception == BP {
        DebugCause::Software
    } else if exit.dr6 & MATCHED != 0 && exit.dr6 & STEP == 0 {
        DebugCause::Hardware((exit.dr6 & MATCHED).trailing_zeros() as u8)
    } else {
        DebugCause::Step
    };
    DebugStop { address: exit.pc, cause }
}

impl KvmVcpu {
    /// The exit for a debugger.
    #[expect(clippy::unnecessary_wraps, reason = "other architectures have to ask for registers")]
    pub(super) fn debug_exit(&mut self, exit: &kvm_debug_exit_arch) -> Result<Exit<'static>> {
        Ok(Exit::Debug(debug_stop(exit)))
    }

    fn msr_list(&self, entries: &[kvm_msr_entry]) -> Result<Msrs> {
        Msrs::from_entries(entries).map_err(|error| self.invalid("list MSRs", format!("{error:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_are_put_into_the_debug_registers() {
        let breakpoint = |address, length, access| HardwareBreakpoint { address, length, access };
        let registers = debug_registers(&[
            breakpoint(0x1000, 1, WatchedAccess::Execute),
            breakpoint(0x2000, 8, WatchedAccess::Write),
            breakpoint(0x3000, 4, WatchedAccess::ReadWrite),
            breakpoint(0x4000, 2, WatchedAccess::Write),
        ]);
        assert_eq!(registers[..4], [0x1000, 0x2000, 0x3000, 0x4000]);
        assert_eq!(registers[7], 0x5f90_06aa);
    }
}
