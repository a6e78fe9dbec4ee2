//! Gives a CPU the state it starts in.
//!
//! A CPU that the hypervisor has just made is as after power-on, so that only what differs is set: start-up
//! time counts. When the machine is reset in place, all that the guest can have changed is set back.

use super::cpuid::{CpuModel, Vendor};
use super::registers::{at_entry, at_reset};
use crate::x86_64::boot::EntryPoint;
use hypervisor::Result;
use hypervisor::x86_64::{
    DebugRegs, LapicState, MpState, Msr, Regs, Sregs, VcpuEvents, VcpuState, Xcr, Xcrs,
};

const IA32_FEATURE_CONTROL: u32 = 0x3a;
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// `REP MOVS` and `REP STOS` are fast; guests avoid them without.
const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Memory types are in force, and without any range of its own all memory is write-back. As firmware leaves it;
/// guests make device memory uncached by page tables.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

// Local APIC registers (Intel SDM 3, 11.4.1).
const APIC_ID: usize = 0x20;
const APIC_VERSION: usize = 0x30;
const APIC_DESTINATION_FORMAT: usize = 0xe0;
const APIC_SPURIOUS: usize = 0xf0;
const APIC_LVT_CMCI: usize = 0x2f0;
const APIC_LVT_TIMER: usize = 0x320;
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_LVT_ERROR: usize = 0x370;
const LVT_MASKED: u32 = 1 << 16;
const LVT_MODE: u32 = 0b111 << 8;
const LVT_MODE_NMI: u32 = 0b100 << 8;
const LVT_MODE_EXTINT: u32 = 0b111 << 8;

/// Sets up CPU number `index`, just made and never run. CPU 0 starts at `entry`; the others wait until it
/// starts them.
///
/// # Errors
/// When the hypervisor refuses.
pub fn configure_vcpu(
    vcpu: &mut dyn VcpuState,
    model: &CpuModel,
    index: u32,
    entry: &EntryPoint,
) -> Result<()> {
    vcpu.set_cpuid(&model.cpuid(index))?;
    set_firmware_msrs(vcpu, model)?;
    if index == 0 {
        let (regs, sregs) = at_entry(entry);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&regs)?;
    }
    let mut lapic = vcpu.lapic()?;
    if index == 0 {
        set_local_interrupts(&mut lapic);
    }
    // KVM looks CPUs up in a map, which it makes anew when a local APIC is set, and has made before a new CPU is among the others:
    // without this, one that comes later does not get the interrupts that start it.
    vcpu.set_lapic(&lapic)?;
    Ok(())
}

/// Sets CPU number `index`, which may have run and does not now, back to the state of [`configure_vcpu`]. All
/// CPUs of a machine are reset before one runs.
///
/// # Errors
/// When the hypervisor refuses.
pub fn reset_vcpu(vcpu: &mut dyn VcpuState, model: &CpuModel, index: u32, entry: &EntryPoint) -> Result<()> {
    let boot_cpu = index == 0;
    let (regs, sregs): (Regs, Sregs) = if boot_cpu { at_entry(entry) } else { at_reset(false) };
    leave_virtualization(vcpu);
    vcpu.set_vcpu_events(&no_events())?;
    // First without paging and long mode: some combinations of what is and what is to be are refused.
    if boot_cpu {
        vcpu.set_sregs(&at_reset(true).1)?;
    }
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)?;
    reset_extended_state(vcpu)?;
    vcpu.set_debug_regs(&DebugRegs { dr6: DR6_RESET, dr7: DR7_RESET, ..Default::default() })?;
    reset_msrs(vcpu);
    set_firmware_msrs(vcpu, model)?;

    let mut lapic = vcpu.lapic()?;
    reset_lapic(&mut lapic, model.topology().apic_id(index));
    if boot_cpu {
        set_local_interrupts(&mut lapic);
    }
    vcpu.set_lapic(&lapic)?;
    vcpu.set_mp_state(if boot_cpu { MpState::Runnable } else { MpState::Uninitialized })
}

/// Ends what a guest that is a hypervisor itself has begun. With VMX on, KVM refuses a CR4 without it, as the processor does; the
/// register that permits VMX is 0 after power-on, and setting it so turns VMX off. SVM is off with the bit of EFER that turns it on.
fn leave_virtualization(vcpu: &mut dyn VcpuState) {
    if let Err(error) = vcpu.set_msrs(&[Msr { index: IA32_FEATURE_CONTROL, value: 0 }]) {
        tracing::trace!("this CPU has no VMX to turn off: {error}");
    }
}

/// What firmware would have set, on each CPU.
fn set_firmware_msrs(vcpu: &mut dyn VcpuState, model: &CpuModel) -> Result<()> {
    let memory_types = Msr { index: IA32_MTRR_DEF_TYPE, value: MTRR_ENABLED_WRITE_BACK };
    if model.vendor() == Vendor::Amd {
        return vcpu.set_msrs(&[memory_types]);
    }
    // Its other bits tell what the hypervisor's CPU lacks, and are kept.
    let present = vcpu.msrs(&[IA32_MISC_ENABLE])?.first().map_or(0, |msr| msr.value);
    let misc_enable = Msr { index: IA32_MISC_ENABLE, value: present | MISC_ENABLE_FAST_STRINGS };
    vcpu.set_msrs(&[memory_types, misc_enable])
}

/// The boot CPU's pins: LINT0 takes interrupts of a legacy controller, LINT1 is NMI (MultiProcessor
/// Specification 1.4, 3.6.2.2).
fn set_local_interrupts(lapic: &mut LapicState) {
    for (register, mode) in [(APIC_LVT_LINT0, LVT_MODE_EXTINT), (APIC_LVT_LINT1, LVT_MODE_NMI)] {
        let value = register_of(lapic, register);
        set_register(lapic, register, value & !(LVT_MODE | LVT_MASKED) | mode);
    }
}

/// The local APIC after power-on, in xAPIC mode (Intel SDM 3, 11.4.7.1).
fn reset_lapic(lapic: &mut LapicState, apic_id: u32) {
    let version = register_of(lapic, APIC_VERSION);
    lapic.regs = LapicState::default().regs;
    set_register(lapic, APIC_ID, apic_id << 24);
    set_register(lapic, APIC_VERSION, version);
    set_register(lapic, APIC_DESTINATION_FORMAT, u32::MAX);
    set_register(lapic, APIC_SPURIOUS, 0xff);
    // The version register has the highest entry's number; the seventh is for corrected machine checks.
    if version >> 16 & 0xff >= 6 {
        set_register(lapic, APIC_LVT_CMCI, LVT_MASKED);
    }
    for register in (APIC_LVT_TIMER..=APIC_LVT_ERROR).step_by(0x10) {
        set_register(lapic, register, LVT_MASKED);
    }
}

fn register_of(lapic: &LapicState, register: usize) -> u32 {
    lapic.regs[register..register + 4].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte as u8))
}

fn set_register(lapic: &mut LapicState, register: usize, value: u32) {
    for (place, byte) in lapic.regs[register..register + 4].iter_mut().zip(value.to_le_bytes()) {
        *place = byte as std::ffi::c_char;
    }
}

const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;

/// No exception, interrupt, NMI or start-up message is pending, and no instruction blocks one.
fn no_events() -> VcpuEvents {
    /// `KVM_VCPUEVENT_VALID_NMI_PENDING`, `_SIPI_VECTOR` and `_SHADOW`: these fields are set too.
    const VALID: u32 = 0b111;
    VcpuEvents { flags: VALID, ..Default::default() }
}

/// x87, SSE and all later register state as after power-on, only x87 enabled in XCR0.
fn reset_extended_state(vcpu: &mut dyn VcpuState) -> Result<()> {
    /// 32-bit words of the XSAVE area and their values (Intel SDM 1, 13.4): FCW; MXCSR; and XSTATE_BV, which says
    /// that x87 and SSE state are in the area and that each other component is in its initial state.
    const INITIAL: [(usize, u32); 3] = [(0, 0x37f), (6, 0x1f80), (128, 0b11)];
    let mut area = vcpu.xsave()?;
    area.fill(0);
    for (word, value) in INITIAL {
        if let Some(place) = area.get_mut(word) {
            *place = value;
        }
    }
    vcpu.set_xsave(&area)?;
    let mut xcrs = Xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] = Xcr { xcr: 0, value: 1, ..Default::default() };
    vcpu.set_xcrs(&xcrs)
}

/// Values after power-on of the registers that guests write and that [`VcpuState::set_sregs`] does not reach.
fn reset_msrs(vcpu: &mut dyn VcpuState) {
    const PAT_RESET: u64 = 0x0007_0406_0007_0406;
    let special = [
        (0x277, PAT_RESET), // IA32_PAT
        (0x4b56_4d05, 1),   // MSR_KVM_POLL_CONTROL: halting may poll
    ];
    let zero = [
        0x10,        // IA32_TIME_STAMP_COUNTER
        0x3b,        // IA32_TSC_ADJUST
        0x48,        // IA32_SPEC_CTRL
        0xe1,        // IA32_UMWAIT_CONTROL
        0x122,       // IA32_TSX_CTRL
        0x140,       // MISC_FEATURES_ENABLES
        0x174,       // IA32_SYSENTER_CS
        0x175,       // IA32_SYSENTER_ESP
        0x176,       // IA32_SYSENTER_EIP
        0x17a,       // IA32_MCG_STATUS
        0x1c4,       // IA32_XFD
        0x1c5,       // IA32_XFD_ERR
        0x1d9,       // IA32_DEBUGCTL
        0x38d,       // IA32_FIXED_CTR_CTRL
        0x38f,       // IA32_PERF_GLOBAL_CTRL
        0x3f1,       // IA32_PEBS_ENABLE
        0x600,       // IA32_DS_AREA
        0x6a0,       // IA32_U_CET
        0x6a2,       // IA32_S_CET
        0x6a4,       // IA32_PL0_SSP
        0x6a5,       // IA32_PL1_SSP
        0x6a6,       // IA32_PL2_SSP
        0x6a7,       // IA32_PL3_SSP
        0x6a8,       // IA32_INTERRUPT_SSP_TABLE_ADDR
        0x6e0,       // IA32_TSC_DEADLINE
        0xd90,       // IA32_BNDCFGS
        0xda0,       // IA32_XSS
        0x4b56_4d00, // MSR_KVM_WALL_CLOCK_NEW
        0x4b56_4d01, // MSR_KVM_SYSTEM_TIME_NEW
        0x4b56_4d02, // MSR_KVM_ASYNC_PF_EN
        0x4b56_4d03, // MSR_KVM_STEAL_TIME
        0x4b56_4d04, // MSR_KVM_PV_EOI_EN
        0x4b56_4d06, // MSR_KVM_ASYNC_PF_INT
        0xc000_0081, // STAR
        0xc000_0082, // LSTAR
        0xc000_0083, // CSTAR
        0xc000_0084, // FMASK
        0xc000_0102, // KERNEL_GS_BASE
        0xc000_0103, // TSC_AUX
        0xc001_0117, // VM_HSAVE_PA
        0xc001_011f, // VIRT_SPEC_CTRL
    ];
    let counters = (0..8).flat_map(|n| {
        [
            0xc1 + n,            // IA32_PMC
            0x186 + n,           // IA32_PERFEVTSEL
            0xc001_0200 + 2 * n, // AMD's PERF_CTL
            0xc001_0201 + 2 * n, // AMD's PERF_CTR
        ]
    });
    // Variable ranges, base and mask, then fixed ranges.
    let memory_types = (0x200..0x210).chain([0x250, 0x258, 0x259]).chain(0x268..=0x26f);
    let zero = zero.into_iter().chain(counters).chain(memory_types).map(|index| (index, 0));
    for (index, value) in special.into_iter().chain(zero) {
        // Which of them a CPU has depends on the host's and on the hypervisor. One that it refuses does not
        // exist for the guest either, so there is nothing to set back.
        if let Err(error) = vcpu.set_msrs(&[Msr { index, value }]) {
            tracing::trace!("MSR {index:#x} is not reset: {error}");
        }
    }
}
