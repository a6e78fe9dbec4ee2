//! How a CPU takes a synchronous exception to EL1 (Arm ARM, D1.3): for one that the guest's own instruction raised and that went
//! to the host, because it could have been a debugger's.

#[cfg(target_arch = "aarch64")]
use super::{RegisterId, VcpuState};

/// PSTATE, in the format of SPSR_EL1.
mod pstate {
    /// Condition flags.
    pub const NZCV: u64 = 0xf << 28;
    /// Data independent timing.
    pub const DIT: u64 = 1 << 24;
    /// Privileged access never.
    pub const PAN: u64 = 1 << 22;
    /// Speculative store bypass is safe.
    pub const SSBS: u64 = 1 << 12;
    /// Debug exceptions, SErrors, IRQs and FIQs are masked.
    pub const DAIF: u64 = 0xf << 6;
    /// The state was AArch32's.
    pub const AARCH32: u64 = 1 << 4;
    /// Exception level and stack pointer.
    pub const MODE: u64 = 0xf;
    pub const EL0T: u64 = 0;
    pub const EL1T: u64 = 0b0100;
    pub const EL1H: u64 = 0b0101;
}

/// SCTLR_EL1: PSTATE.SSBS upon an exception.
const DSSBS: u64 = 1 << 44;
/// SCTLR_EL1: PSTATE.PAN is left as it is.
const SPAN: u64 = 1 << 23;

/// Where an exception leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    pc: u64,
    pstate: u64,
}

impl Entry {
    /// From a CPU in state `old`, with these values of SCTLR_EL1 and VBAR_EL1.
    fn new(old: u64, sctlr: u64, vectors: u64) -> Self {
        let offset = match old & pstate::MODE {
            _ if old & pstate::AARCH32 != 0 => 0x600,
            pstate::EL0T => 0x400,
            pstate::EL1T => 0,
            _ => 0x200,
        };
        let mut new = old & (pstate::NZCV | pstate::PAN) | pstate::DAIF | pstate::EL1H;
        if old & pstate::AARCH32 == 0 {
            new |= old & pstate::DIT;
        }
        if sctlr & SPAN == 0 {
            new |= pstate::PAN;
        }
        if sctlr & DSSBS != 0 {
            new |= pstate::SSBS;
        }
        Self { pc: vectors.wrapping_add(offset), pstate: new }
    }
}

/// Has a CPU take the exception with this syndrome for the instruction at its PC, which the exception returns to.
///
/// # Errors
/// When the host refuses.
#[cfg(target_arch = "aarch64")]
pub(crate) fn take(cpu: &mut dyn VcpuState, syndrome: u64) -> crate::Result<()> {
    let (pc, pstate) = (cpu.register(RegisterId::PC)?, cpu.register(RegisterId::PSTATE)?);
    let entry = Entry::new(pstate, cpu.register(RegisterId::SCTLR_EL1)?, cpu.register(RegisterId::VBAR_EL1)?);
    cpu.set_register(RegisterId::ESR_EL1, syndrome)?;
    cpu.set_register(RegisterId::ELR_EL1, pc)?;
    cpu.set_register(RegisterId::SPSR_EL1, pstate)?;
    cpu.set_register(RegisterId::PSTATE, entry.pstate)?;
    cpu.set_register(RegisterId::PC, entry.pc)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: u64 = 0xffff_8000_1000_0800;

    #[test]
    fn the_vector_depends_on_where_the_exception_is_from() {
        let from = |old| Entry::new(old, SPAN, VECTORS).pc - VECTORS;
        assert_eq!([from(0b0100), from(0b0101), from(0), from(1 << 4)], [0, 0x200, 0x400, 0x600]);
    }

    #[test]
    fn flags_stay_and_everything_is_masked() {
        // Flags, DIT, PAN, UAO, SS, IL, SSBS, BTYPE, DAIF, EL0.
        let old = 0xf << 28 | 1 << 24 | 0b1111 << 20 | 0b111 << 10;
        assert_eq!(Entry::new(old, SPAN, 0).pstate, 0xf << 28 | 1 << 24 | 1 << 22 | 0x3c5);
        assert_eq!(Entry::new(0, 0, 0).pstate, 1 << 22 | 0x3c5, "privileged access is taken away");
        assert_eq!(Entry::new(0, SPAN | DSSBS, 0).pstate, 1 << 12 | 0x3c5);
        assert_eq!(Entry::new(1 << 24 | 1 << 4, SPAN, 0).pstate, 0x3c5, "other bits in AArch32");
    }
}
