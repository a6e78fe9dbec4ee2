//! A CPU's registers as GDB sees them, and its breakpoint instruction.

use gdbstub_arch::aarch64::AArch64;
use gdbstub_arch::aarch64::reg::AArch64CoreRegs;
use gdbstub_arch::aarch64::reg::id::AArch64RegId;
use hypervisor::Result;
use hypervisor::aarch64::{RegisterId, VcpuState};

/// GDB's description of the processor.
pub type GdbArch = AArch64;
/// GDB's registers.
pub type GdbRegisters = AArch64CoreRegs;
/// The name of one of them.
pub type GdbRegister = AArch64RegId;

/// The breakpoint instruction (BRK #0).
pub const BREAKPOINT: [u8; 4] = 0xd420_0000_u32.to_le_bytes();

/// Whether what is at a CPU's program counter is a breakpoint instruction. Those of guests have a comment of their own.
pub fn is_breakpoint(instruction: &[u8]) -> bool {
    const COMMENT: u32 = 0xffff << 5;
    let instruction = <[u8; 4]>::try_from(instruction).map(u32::from_le_bytes);
    instruction.is_ok_and(|instruction| instruction & !COMMENT == u32::from_le_bytes(BREAKPOINT))
}

/// Bits of PSTATE that say which stack pointer a CPU uses.
const AARCH32: u64 = 1 << 4;
const LEVEL: u64 = 0b11 << 2;
const SP_OF_THE_LEVEL: u64 = 1;

/// A CPU's registers, as far as a debugger sees them.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    x: [u64; 31],
    sp: u64,
    pc: u64,
    pstate: u64,
    v: [u128; 32],
    fpsr: u32,
    fpcr: u32,
}

impl Registers {
    /// Those of `cpu`.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn read(cpu: &mut dyn VcpuState) -> Result<Self> {
        let pstate = cpu.register(RegisterId::PSTATE)?;
        let mut registers = Self {
            sp: cpu.register(stack_pointer(pstate))?,
            pc: cpu.register(RegisterId::PC)?,
            pstate,
            fpsr: word(cpu, RegisterId::FPSR)?,
            fpcr: word(cpu, RegisterId::FPCR)?,
            ..Self::default()
        };
        for (n, x) in (0..).zip(&mut registers.x) {
            *x = cpu.register(RegisterId::x(n))?;
        }
        for (n, v) in (0..).zip(&mut registers.v) {
            *v = vector(cpu, n)?;
        }
        Ok(registers)
    }

    /// Gives `cpu` these. The stack pointer is that of the processor state that is given.
    ///
    /// # Errors
    /// When the host refuses, such as an exception level that a guest does not have.
    pub fn write(&self, cpu: &mut dyn VcpuState) -> Result<()> {
        cpu.set_register(RegisterId::PSTATE, self.pstate)?;
        cpu.set_register(stack_pointer(self.pstate), self.sp)?;
        cpu.set_register(RegisterId::PC, self.pc)?;
        for (n, x) in (0..).zip(self.x) {
            cpu.set_register(RegisterId::x(n), x)?;
        }
        for (n, v) in (0..).zip(self.v) {
            set_vector(cpu, n, v)?;
        }
        cpu.set_register_bytes(RegisterId::FPSR, &self.fpsr.to_le_bytes())?;
        cpu.set_register_bytes(RegisterId::FPCR, &self.fpcr.to_le_bytes())
    }

    /// Writes them down for GDB.
    pub fn show(&self, regs: &mut GdbRegisters) {
        regs.x = self.x;
        regs.sp = self.sp;
        regs.pc = self.pc;
        regs.cpsr = self.pstate as u32;
        regs.v = self.v;
        // The description names FPSR first, and the structure's fields, which are sent in their order, FPCR.
        (regs.fpcr, regs.fpsr) = (self.fpsr, self.fpcr);
    }

    /// Takes those that GDB changed.
    pub fn take(&mut self, regs: &GdbRegisters) {
        self.x = regs.x;
        self.sp = regs.sp;
        self.pc = regs.pc;
        self.pstate = regs.cpsr.into();
        self.v = regs.v;
        (self.fpsr, self.fpcr) = (regs.fpcr, regs.fpsr);
    }

    /// Those that Linux gives a debugger of a thread, in the order of its `struct user_pt_regs`.
    pub fn general(&self) -> [u64; 34] {
        let mut general = [0; 34];
        let all = self.x.iter().chain([&self.sp, &self.pc, &self.pstate]);
        general.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        general
    }

    /// The floating-point and vector ones, as Linux's `struct user_fpsimd_state`.
    pub fn vectors(&self) -> Vec<u8> {
        let mut state: Vec<u8> = self.v.iter().flat_map(|v| v.to_le_bytes()).collect();
        for word in [self.fpsr, self.fpcr, 0, 0] {
            state.extend(word.to_le_bytes());
        }
        state
    }
}

/// The stack pointer that a CPU in this state uses.
fn stack_pointer(pstate: u64) -> RegisterId {
    let of_el1 = pstate & AARCH32 == 0 && pstate & LEVEL != 0 && pstate & SP_OF_THE_LEVEL != 0;
    if of_el1 { RegisterId::SP_EL1 } else { RegisterId::SP_EL0 }
}

/// A register of 4 bytes.
fn word(cpu: &dyn VcpuState, id: RegisterId) -> Result<u32> {
    let bytes = cpu.register_bytes(id)?;
    Ok(bytes.iter().take(4).rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}

/// `V<n>`. Of a CPU with scalable vectors it is told only as a part of those.
fn vector(cpu: &dyn VcpuState, n: u8) -> Result<u128> {
    let bytes = cpu.register_bytes(RegisterId::v(n)).or_else(|_| cpu.register_bytes(RegisterId::z(n)))?;
    Ok(bytes.iter().take(16).rev().fold(0, |value, byte| value << 8 | u128::from(*byte)))
}

/// Sets `V<n>`. What a scalable vector has beyond it stays as it is.
fn set_vector(cpu: &mut dyn VcpuState, n: u8, value: u128) -> Result<()> {
    let value = value.to_le_bytes();
    if cpu.set_register_bytes(RegisterId::v(n), &value).is_ok() {
        return Ok(());
    }
    let mut whole = cpu.register_bytes(RegisterId::z(n))?;
    if let Some(low) = whole.get_mut(..value.len()) {
        low.copy_from_slice(&value);
    }
    cpu.set_register_bytes(RegisterId::z(n), &whole)
}

/// Whether GDB may ask for single registers: it does for those of the system.
pub const ONE_BY_ONE: bool = true;

/// A register's value, the low byte first. `None`: GDB has it with the others.
///
/// # Errors
/// When this CPU has no such register.
pub fn read_one(cpu: &mut dyn VcpuState, id: GdbRegister) -> Result<Option<Vec<u8>>> {
    match id {
        AArch64RegId::System(encoding) => cpu.register_bytes(RegisterId::of_system(encoding)).map(Some),
        _ => Ok(None),
    }
}

/// Sets a register. `false`: it has not as many bytes as that.
///
/// # Errors
/// When this CPU has no such register, or it cannot have that value.
pub fn write_one(cpu: &mut dyn VcpuState, id: GdbRegister, value: &[u8]) -> Result<bool> {
    let id = match id {
        AArch64RegId::X(n) if n < 31 => RegisterId::x(n),
        AArch64RegId::Sp => stack_pointer(cpu.register(RegisterId::PSTATE)?),
        AArch64RegId::Pc => RegisterId::PC,
        AArch64RegId::Pstate => {
            let Ok(value) = <[u8; 4]>::try_from(value) else { return Ok(false) };
            cpu.set_register(RegisterId::PSTATE, u32::from_le_bytes(value).into())?;
            return Ok(true);
        }
        AArch64RegId::V(n) if n < 32 => {
            let Ok(value) = <[u8; 16]>::try_from(value) else { return Ok(false) };
            set_vector(cpu, n, u128::from_le_bytes(value))?;
            return Ok(true);
        }
        AArch64RegId::FPSR if value.len() == 4 => RegisterId::FPSR,
        AArch64RegId::FPCR if value.len() == 4 => RegisterId::FPCR,
        AArch64RegId::System(encoding) => RegisterId::of_system(encoding),
        _ => return Ok(false),
    };
    if value.len() != id.size() {
        return Ok(false);
    }
    cpu.set_register_bytes(id, value)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gdbstub::arch::Registers as _;
    use hypervisor::sim::Sim;
    use hypervisor::{Hypervisor, Vcpu};

    /// A CPU that keeps the registers that it is given.
    fn cpu() -> Box<dyn Vcpu> {
        Sim::default().create_vm().unwrap().create_vcpu(0).unwrap()
    }

    #[test]
    fn a_guests_own_breakpoint_is_told_by_its_instruction() {
        assert!(is_breakpoint(&BREAKPOINT));
        assert!(is_breakpoint(&0xd421_0000_u32.to_le_bytes()), "BRK #0x800, a kernel's BUG()");
        assert!(!is_breakpoint(&0xd420_0001_u32.to_le_bytes()));
        assert!(!is_breakpoint(&0xd503_201f_u32.to_le_bytes()), "NOP");
        assert!(!is_breakpoint(&[]));
    }

    #[test]
    fn what_gdb_is_shown_it_can_give_back() {
        let mut cpu = cpu();
        let cpu = cpu.native();
        let mut registers =
            Registers { pstate: 0x3c5, sp: 1, pc: 2, fpsr: 3, fpcr: 4, ..Registers::default() };
        registers.x = std::array::from_fn(|n| 0x100 + n as u64);
        registers.v = std::array::from_fn(|n| (1 << 100) + n as u128);
        registers.write(cpu).unwrap();
        assert_eq!(cpu.register(RegisterId::SP_EL1).unwrap(), 1);
        assert_eq!(cpu.register(RegisterId::SP_EL0).unwrap(), 0);
        let mut shown = GdbRegisters::default();
        Registers::read(cpu).unwrap().show(&mut shown);
        let mut bytes = Vec::new();
        shown.gdb_serialize(|byte| bytes.push(byte.unwrap_or_default()));
        // 31 general registers, SP, PC and CPSR, 32 vectors, FPSR and FPCR.
        assert_eq!(bytes.len(), 33 * 8 + 4 + 32 * 16 + 8);
        assert_eq!(bytes[30 * 8..][..8], 0x11e_u64.to_le_bytes());
        assert_eq!(
            bytes[31 * 8..][..20],
            [&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..], &[0xc5, 3, 0, 0]].concat()
        );
        assert_eq!(bytes[bytes.len() - 8..], [3, 0, 0, 0, 4, 0, 0, 0]);
        let mut taken = Registers::default();
        taken.take(&shown);
        assert_eq!((taken.general(), taken.vectors()), (registers.general(), registers.vectors()));
        assert_eq!(taken.vectors().len(), 528);
    }

    #[test]
    fn the_stack_pointer_is_that_of_the_state() {
        // EL0, EL1 with SP_EL0, EL1 with its own; and a 32-bit program.
        let of_el1 = [0x0, 0x4, 0x5, 0x10].map(|pstate| stack_pointer(pstate) == RegisterId::SP_EL1);
        assert_eq!(of_el1, [false, false, true, false]);
    }

    #[test]
    fn single_registers_are_read_and_set() {
        let mut cpu = cpu();
        let cpu = cpu.native();
        let vectors = AArch64RegId::System(0xc600);
        assert!(write_one(cpu, vectors, &[7, 0, 0, 0, 0, 0, 0, 0]).unwrap());
        assert_eq!(cpu.register(RegisterId::VBAR_EL1).unwrap(), 7);
        assert_eq!(read_one(cpu, vectors).unwrap().unwrap()[0], 7);
        assert!(!write_one(cpu, vectors, &[7; 4]).unwrap());
        assert!(write_one(cpu, AArch64RegId::X(30), &[1; 8]).unwrap());
        assert!(write_one(cpu, AArch64RegId::Pstate, &[0xc5, 3, 0, 0]).unwrap());
        assert!(write_one(cpu, AArch64RegId::Sp, &[2; 8]).unwrap());
        assert!(write_one(cpu, AArch64RegId::V(31), &[3; 16]).unwrap());
        assert!(write_one(cpu, AArch64RegId::FPSR, &[4, 0, 0, 0]).unwrap());
        let registers = Registers::read(cpu).unwrap();
        assert_eq!((registers.x[30], registers.sp), (0x0101_0101_0101_0101, 0x0202_0202_0202_0202));
        assert_eq!((registers.v[31].to_le_bytes(), registers.fpsr), ([3; 16], 4));
        assert!(!write_one(cpu, AArch64RegId::X(31), &[1; 8]).unwrap());
        assert!(!write_one(cpu, AArch64RegId::V(0), &[1; 8]).unwrap());
    }
}
