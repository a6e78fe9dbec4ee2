//! A CPU's registers as GDB sees them, and its breakpoint instruction.

use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use gdbstub_arch::x86::reg::id::X86_64CoreRegId;
use hypervisor::Result;
use hypervisor::x86_64::{Fpu, Regs, Sregs, VcpuState};

/// GDB's description of the processor.
pub type GdbArch = X86_64_SSE;
/// GDB's registers.
pub type GdbRegisters = X86_64CoreRegs;
/// The name of one of them.
pub type GdbRegister = X86_64CoreRegId;

/// The breakpoint instruction (INT3).
pub const BREAKPOINT: [u8; 1] = [0xcc];

/// Whether what is at a CPU's program counter is a breakpoint instruction.
pub fn is_breakpoint(instruction: &[u8]) -> bool {
    instruction == BREAKPOINT
}

/// A CPU's registers, as far as a debugger sees them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// The general ones.
    general: Regs,
    /// The system's.
    system: Sregs,
    /// The floating-point and vector ones.
    vector: Fpu,
}

impl Registers {
    /// Those of `cpu`.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn read(cpu: &mut dyn VcpuState) -> Result<Self> {
        Ok(Self { general: cpu.regs()?, system: cpu.sregs()?, vector: cpu.fpu()? })
    }

    /// Gives `cpu` these, the system's aside.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn write(&self, cpu: &mut dyn VcpuState) -> Result<()> {
        cpu.set_regs(&self.general)?;
        cpu.set_fpu(&self.vector)
    }

    /// Writes them down for GDB.
    pub fn show(&self, regs: &mut GdbRegisters) {
        let Self { general, system, vector } = self;
        regs.regs = [
            general.rax,
            general.rbx,
            general.rcx,
            general.rdx,
            general.rsi,
            general.rdi,
            general.rbp,
            general.rsp,
            general.r8,
            general.r9,
            general.r10,
            general.r11,
            general.r12,
            general.r13,
            general.r14,
            general.r15,
        ];
        regs.rip = general.rip;
        regs.eflags = general.rflags as u32;
        regs.segments.cs = system.cs.selector.into();
        regs.segments.ss = system.ss.selector.into();
        regs.segments.ds = system.ds.selector.into();
        regs.segments.es = system.es.selector.into();
        regs.segments.fs = system.fs.selector.into();
        regs.segments.gs = system.gs.selector.into();
        for (to, from) in regs.st.iter_mut().zip(vector.fpr) {
            to.copy_from_slice(&from[..10]);
        }
        regs.fpu.fctrl = vector.fcw.into();
        regs.fpu.fstat = vector.fsw.into();
        regs.fpu.ftag = vector.ftwx.into();
        regs.fpu.fop = vector.last_opcode.into();
        regs.fpu.fioff = vector.last_ip as u32;
        regs.fpu.fooff = vector.last_dp as u32;
        for (to, from) in regs.xmm.iter_mut().zip(vector.xmm) {
            *to = u128::from_le_bytes(from);
        }
        regs.mxcsr = vector.mxcsr;
    }

    /// Takes those that GDB changed. Segments and the x87's pointers stay as they are.
    pub fn take(&mut self, regs: &GdbRegisters) {
        let general = &mut self.general;
        [
            general.rax,
            general.rbx,
            general.rcx,
            general.rdx,
            general.rsi,
            general.rdi,
            general.rbp,
            general.rsp,
            general.r8,
            general.r9,
            general.r10,
            general.r11,
            general.r12,
            general.r13,
            general.r14,
            general.r15,
        ] = regs.regs;
        general.rip = regs.rip;
        general.rflags = regs.eflags.into();
        for (to, from) in self.vector.fpr.iter_mut().zip(regs.st) {
            to[..10].copy_from_slice(&from);
        }
        for (to, from) in self.vector.xmm.iter_mut().zip(regs.xmm) {
            *to = from.to_le_bytes();
        }
        self.vector.mxcsr = regs.mxcsr;
    }
}

/// Whether GDB may ask for single registers.
pub const ONE_BY_ONE: bool = false;

/// Never called, see [`ONE_BY_ONE`].
///
/// # Errors
/// Never.
pub fn read_one(_: &mut dyn VcpuState, _: GdbRegister) -> Result<Option<Vec<u8>>> {
    Ok(None)
}

/// Never called, see [`ONE_BY_ONE`].
///
/// # Errors
/// Never.
pub fn write_one(_: &mut dyn VcpuState, _: GdbRegister, _value: &[u8]) -> Result<bool> {
    Ok(false)
}
