//! What is particular to x86_64: CPUID, and the state of a CPU.
//!
//! The order matters when a CPU is saved and restored. Read the MP state first: KVM takes pending INIT and start-up
//! messages into account then, which changes the registers. Write in this order: CPUID (it decides what may be set), TSC
//! frequency, MP state, general and system registers (which hold the base of the local APIC), XSAVE area, XCRs, debug
//! registers, local APIC, MSRs (the TSC deadline arms only a local APIC that is in that mode), pending events.

pub use kvm_bindings::{
    kvm_debugregs as DebugRegs, kvm_dtable as DescriptorTable, kvm_fpu as Fpu, kvm_lapic_state as LapicState,
    kvm_regs as Regs, kvm_segment as Segment, kvm_sregs as Sregs, kvm_vcpu_events as VcpuEvents,
    kvm_xcr as Xcr, kvm_xcrs as Xcrs,
};

use crate::{GuestDebug, HardwareBreakpoint, Result, WatchedAccess};
use serde::{Deserialize, Serialize};

/// Where KVM keeps, in guest-physical space, what older Intel CPUs need to run real mode: one page of
/// identity-mapping page tables, then three pages of a task state segment. Never RAM or a device window.
pub const RESERVED_START: u64 = 0xfffb_c000;
/// Size of the area at [`RESERVED_START`] in bytes.
pub const RESERVED_SIZE: u64 = 0x4000;
/// Input pins of the I/O APIC of the split interrupt controller.
pub const IOAPIC_PINS: u32 = 24;

/// What the CPUID instruction returns for one leaf or subleaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuidEntry {
    /// Leaf (EAX on entry).
    pub function: u32,
    /// Subleaf (ECX on entry).
    pub index: u32,
    /// Whether the leaf has subleaves, so that `index` counts.
    pub indexed: bool,
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Whether and how a CPU runs (Intel SDM 3, 9.4: the multiple-processor protocol).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// It executes instructions.
    #[default]
    Runnable,
    /// It waits for INIT.
    Uninitialized,
    /// It had INIT and waits for the start-up message (SIPI).
    InitReceived,
    /// It had the start-up message.
    SipiReceived,
    /// It executed HLT.
    Halted,
}

/// One model-specific register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// The register's number.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// The state of an x86_64 CPU. Called while the CPU is not running.
///
/// Every method fails when the host refuses; the error names what was being done.
#[expect(missing_docs, reason = "each pair reads and sets what it is named after")]
pub trait VcpuState {
    /// Sets what CPUID returns. Before the first run, and before MSRs.
    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<()>;

    fn regs(&self) -> Result<Regs>;
    fn set_regs(&mut self, regs: &Regs) -> Result<()>;

    fn sregs(&self) -> Result<Sregs>;
    fn set_sregs(&mut self, sregs: &Sregs) -> Result<()>;

    fn fpu(&self) -> Result<Fpu>;
    fn set_fpu(&mut self, fpu: &Fpu) -> Result<()>;

    fn xcrs(&self) -> Result<Xcrs>;
    fn set_xcrs(&mut self, xcrs: &Xcrs) -> Result<()>;

    /// The XSAVE area in the standard (not compacted) format, as 32-bit words.
    fn xsave(&self) -> Result<Vec<u32>>;
    fn set_xsave(&mut self, area: &[u32]) -> Result<()>;

    /// Reads the registers numbered `indices`, in that order.
    fn msrs(&self, indices: &[u32]) -> Result<Vec<Msr>>;
    fn set_msrs(&mut self, msrs: &[Msr]) -> Result<()>;

    fn lapic(&self) -> Result<LapicState>;
    fn set_lapic(&mut self, lapic: &LapicState) -> Result<()>;

    fn mp_state(&self) -> Result<MpState>;
    fn set_mp_state(&mut self, state: MpState) -> Result<()>;

    /// Pending exceptions, interrupts and NMIs.
    fn vcpu_events(&self) -> Result<VcpuEvents>;
    fn set_vcpu_events(&mut self, events: &VcpuEvents) -> Result<()>;

    fn debug_regs(&self) -> Result<DebugRegs>;
    fn set_debug_regs(&mut self, regs: &DebugRegs) -> Result<()>;

    /// The guest's TSC frequency in kHz.
    fn tsc_khz(&self) -> Result<u32>;
    fn set_tsc_khz(&mut self, khz: u32) -> Result<()>;

    /// Has the CPU stop for a debugger with [`crate::Exit::Debug`]; `None` ends that. Fails where the host cannot do what is
    /// asked.
    fn set_guest_debug(&mut self, debug: Option<&GuestDebug>) -> Result<()>;
    /// Whether the CPU's breakpoint registers can watch all of these at once.
    fn can_watch(&self, breakpoints: &[HardwareBreakpoint]) -> bool;
    /// Gives the guest the exception of a breakpoint instruction that is its own, at which the CPU stopped.
    fn inject_breakpoint(&mut self) -> Result<()>;

    /// Raises a non-maskable interrupt.
    fn nmi(&self) -> Result<()>;
}

/// Whether DR0 to DR3 can watch these (Intel SDM 3, 18.2.4): they are four, and none watches reads alone.
pub(crate) fn can_watch(breakpoints: &[HardwareBreakpoint]) -> bool {
    breakpoints.len() <= 4 && breakpoints.iter().all(|breakpoint| breakpoint.access != WatchedAccess::Read)
}

/// The general and control registers, as text for a person.
pub(crate) fn describe(regs: &Regs, sregs: &Sregs) -> String {
    let segment = |name: &str, s: &Segment| {
        format!(
            "{name} {:#06x} base {:#x} limit {:#x} type {:#x} dpl {} l {} db {}",
            s.selector, s.base, s.limit, s.type_, s.dpl, s.l, s.db
        )
    };
    format!(
        "rip {:#018x}  rsp {:#018x}  rflags {:#010x}\n\
         rax {:#018x}  rbx {:#018x}  rcx {:#018x}  rdx {:#018x}\n\
         rsi {:#018x}  rdi {:#018x}  rbp {:#018x}\n\
         r8  {:#018x}  r9  {:#018x}  r10 {:#018x}  r11 {:#018x}\n\
         r12 {:#018x}  r13 {:#018x}  r14 {:#018x}  r15 {:#018x}\n\
         cr0 {:#x}  cr2 {:#x}  cr3 {:#x}  cr4 {:#x}  efer {:#x}\n{}\n{}\n\
         gdt {:#x}+{:#x}  idt {:#x}+{:#x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer,
        segment("cs", &sregs.cs),
        segment("ss", &sregs.ss),
        sregs.gdt.base,
        sregs.gdt.limit,
        sregs.idt.base,
        sregs.idt.limit,
    )
}
