//! Numbers of registers that a debugger looks at.

use super::RegisterId;

impl RegisterId {
    /// Where an exception returns to.
    pub const ELR_EL1: Self = Self::core(0x118);
    /// The processor state that an exception returns to.
    pub const SPSR_EL1: Self = Self::core(0x120);
    /// Status of floating-point operations; 4 bytes.
    pub const FPSR: Self = Self::core_word(0x350);
    /// Control of floating-point operations; 4 bytes.
    pub const FPCR: Self = Self::core_word(0x354);
    /// Control of the system: whether addresses are translated, and the order of bytes.
    pub const SCTLR_EL1: Self = Self::system(3, 0, 1, 0, 0);
    /// The table of the lower half of addresses.
    pub const TTBR0_EL1: Self = Self::system(3, 0, 2, 0, 0);
    /// The table of the upper half of addresses.
    pub const TTBR1_EL1: Self = Self::system(3, 0, 2, 0, 1);
    /// Control of translation.
    pub const TCR_EL1: Self = Self::system(3, 0, 2, 0, 2);
    /// What caused an exception.
    pub const ESR_EL1: Self = Self::system(3, 0, 5, 2, 0);
    /// The address that caused an exception.
    pub const FAR_EL1: Self = Self::system(3, 0, 6, 0, 0);
    /// Where exceptions lead.
    pub const VBAR_EL1: Self = Self::system(3, 0, 12, 0, 0);

    const SIZE_U32: u64 = 0x0020_0000_0000_0000;
    const SIZE_U128: u64 = 0x0040_0000_0000_0000;
    const SIZE_U2048: u64 = 0x0080_0000_0000_0000;
    const SVE: u64 = 0x15_0000;

    /// Vector register `V<n>`, 0 to 31, of 16 bytes. A CPU with scalable vectors has it as a part of [`RegisterId::z`].
    pub const fn v(n: u8) -> Self {
        Self(Self::ARM64 | Self::SIZE_U128 | Self::CORE | 0x54_u64.saturating_add((n as u64) << 2))
    }

    /// Scalable vector register `Z<n>`, 0 to 31, of 256 bytes, with which `V<n>` is the first 16.
    pub const fn z(n: u8) -> Self {
        Self(Self::ARM64 | Self::SIZE_U2048 | Self::SVE | (n as u64) << 5)
    }

    /// A system register by its number in 16 bits: `op0`, `op1`, `CRn`, `CRm` and `op2`, one after the other.
    pub const fn of_system(encoding: u16) -> Self {
        Self(Self::ARM64 | Self::SIZE_U64 | Self::SYSTEM | encoding as u64)
    }

    /// A register of 4 bytes at this offset in the structure of core registers.
    const fn core_word(offset: u64) -> Self {
        Self(Self::ARM64 | Self::SIZE_U32 | Self::CORE | (offset / 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that KVM's documentation gives.
    #[test]
    fn registers_have_the_kernels_numbers() {
        assert_eq!(RegisterId::ELR_EL1.0, 0x6030_0000_0010_0046);
        assert_eq!(RegisterId::SPSR_EL1.0, 0x6030_0000_0010_0048);
        assert_eq!((RegisterId::v(0).0, RegisterId::v(31).0), (0x6040_0000_0010_0054, 0x6040_0000_0010_00d0));
        assert_eq!((RegisterId::FPSR.0, RegisterId::FPCR.0), (0x6020_0000_0010_00d4, 0x6020_0000_0010_00d5));
        assert_eq!(RegisterId::z(1).0, 0x6080_0000_0015_0020);
        assert_eq!((RegisterId::FPCR.size(), RegisterId::z(0).size()), (4, 256));
        assert_eq!(RegisterId::of_system(0xc600), RegisterId::VBAR_EL1);
    }
}
