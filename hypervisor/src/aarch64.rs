//! What is particular to aarch64: the features and registers of a CPU, and the interrupt controller.
//!
//! The order matters when a machine is built: make all CPUs, [`VcpuState::init`] each, then `Vm::create_gic` (no
//! CPU can be added after it), then [`VcpuState::start_pmu`]. When it is saved: the CPUs, then the interrupt controller, then
//! memory, to which that writes. When it is restored: memory, devices (which hold pins of the interrupt controller), the CPUs,
//! then the interrupt controller.

mod cpu_state;
mod gic_state;

pub use cpu_state::{CpuState, PendingEvents, RegisterState};
pub use gic_state::{CpuInterfaceState, GicCpuState, GicState, InterruptsState, ItsState};

#[cfg(any(target_arch = "aarch64", test))]
pub(crate) mod debug;
#[cfg(any(target_arch = "aarch64", test))]
pub(crate) mod exception;
#[cfg(any(target_arch = "aarch64", test))]
pub(crate) mod psci;
mod registers;

use crate::{GuestDebug, HardwareBreakpoint, Result};
use machine::interrupt::InterruptController;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Interrupt numbers up to here are private to a CPU; shared ones (SPIs) follow.
pub const FIRST_SPI: u32 = 32;

/// What CPUs of the host can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFeatures {
    /// Bits of a guest-physical address, at most.
    pub address_bits: u8,
    /// Scalable vectors.
    pub sve: bool,
    /// Pointer authentication, with address and generic keys.
    pub pointer_authentication: bool,
    /// The performance monitor, PMUv3.
    pub pmu: bool,
}

/// What a CPU has, besides what each has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VcpuFeatures {
    /// Scalable vectors, of all lengths that the host has.
    pub sve: bool,
    /// Pointer authentication.
    pub pointer_authentication: bool,
    /// The performance monitor.
    pub pmu: bool,
    /// It does not run until another CPU asks the firmware (PSCI) to start it.
    pub powered_off: bool,
}

/// Whether a CPU runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// It executes instructions.
    #[default]
    Runnable,
    /// It waits for another CPU to ask the firmware (PSCI) to start it.
    PoweredOff,
}

/// A register, by the number KVM gives it (Linux, `Documentation/virt/kvm/api.rst`, 4.68).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegisterId(pub u64);

impl RegisterId {
    const ARM64: u64 = 0x6000_0000_0000_0000;
    const SIZE_U64: u64 = 0x0030_0000_0000_0000;
    const CORE: u64 = 0x10_0000;
    const SYSTEM: u64 = 0x13_0000;

    /// The program counter.
    pub const PC: Self = Self::core(0x100);
    /// The processor state: exception level, interrupt masks, condition flags.
    pub const PSTATE: Self = Self::core(0x108);
    /// The stack pointer of exception level 0.
    pub const SP_EL0: Self = Self::core(0xf8);
    /// The stack pointer of exception level 1.
    pub const SP_EL1: Self = Self::core(0x110);
    /// The affinity: which CPU this is.
    pub const MPIDR_EL1: Self = Self::system(3, 0, 0, 0, 5);

    /// General register `X<n>`, 0 to 30.
    pub const fn x(n: u8) -> Self {
        Self::core((n as u64) << 3)
    }

    /// A register at this offset in the structure of core registers.
    const fn core(offset: u64) -> Self {
        Self(Self::ARM64 | Self::SIZE_U64 | Self::CORE | (offset / 4))
    }

    /// A system register by the fields of the instructions that access it.
    pub const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> Self {
        Self(Self::ARM64 | Self::SIZE_U64 | Self::SYSTEM | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)
    }

    /// The register's size in bytes: 1 to 256 where there is such a register.
    pub const fn size(self) -> usize {
        // The field is the size's logarithm.
        1 << (self.0 >> 52 & 0xf)
    }
}

/// The id of the CPU with this affinity (the affinity fields of MPIDR_EL1, and no other bits), as the hypervisor numbers them: 16 to a
/// group of level 1. `None`: no CPU can have it.
pub fn cpu_id(affinity: u64) -> Option<u32> {
    let [level_0, level_1, level_2, 0, 0, 0, 0, 0] = affinity.to_le_bytes() else { return None };
    (level_0 < 16).then_some(u32::from(level_0) | u32::from(level_1) << 4 | u32::from(level_2) << 12)
}

/// The state of an aarch64 CPU. Called while the CPU is not running.
///
/// Every method fails when the host refuses; the error names what was being done.
pub trait VcpuState {
    /// Gives the CPU its features, and its state after power-on. Again later, with the same features: only the latter.
    fn init(&mut self, features: &VcpuFeatures) -> Result<()>;

    /// Lets the performance monitor interrupt the CPU by the private interrupt `intid`, 16 to 31. Once, after the
    /// interrupt controller was made.
    fn start_pmu(&mut self, intid: u32) -> Result<()>;

    /// The numbers of all registers that there are.
    fn registers(&self) -> Result<Vec<RegisterId>>;

    /// A register of 8 bytes.
    fn register(&self, id: RegisterId) -> Result<u64>;
    /// Sets a register of 8 bytes.
    fn set_register(&mut self, id: RegisterId, value: u64) -> Result<()>;

    /// A register of any size, as bytes, the low one first.
    fn register_bytes(&self, id: RegisterId) -> Result<Vec<u8>>;
    /// Sets a register of any size.
    fn set_register_bytes(&mut self, id: RegisterId, value: &[u8]) -> Result<()>;

    /// Whether it runs.
    fn mp_state(&self) -> Result<MpState>;
    /// Sets whether it runs.
    fn set_mp_state(&mut self, state: MpState) -> Result<()>;

    /// What waits to be taken.
    fn events(&self) -> Result<PendingEvents>;
    /// Sets what waits to be taken.
    fn set_events(&mut self, events: &PendingEvents) -> Result<()>;

    /// Has the CPU stop for a debugger with [`crate::Exit::Debug`]; `None` ends that.
    fn set_guest_debug(&mut self, debug: Option<&GuestDebug>) -> Result<()>;
    /// Whether the CPU's breakpoint registers can watch all of these at once.
    fn can_watch(&self, breakpoints: &[HardwareBreakpoint]) -> bool;
    /// Gives the guest the exception of a breakpoint instruction that is its own, at which the CPU stopped.
    fn inject_breakpoint(&mut self) -> Result<()>;
}

/// Where the interrupt controller's parts are (GIC architecture version 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GicConfig {
    /// Guest-physical address of the distributor, [`GicConfig::DISTRIBUTOR_SIZE`] bytes.
    pub distributor: u64,
    /// Guest-physical address of the CPUs' redistributors, [`GicConfig::REDISTRIBUTOR_SIZE`] bytes each.
    pub redistributors: u64,
    /// Guest-physical address of the first translation service for message-signalled interrupts,
    /// [`GicConfig::ITS_SIZE`] bytes; others follow.
    pub first_its: u64,
    /// Number of translation services. One tells devices apart by their requester ids, which are unique in a PCI segment
    /// only, so each segment has its own.
    pub its_count: u32,
    /// Number of CPUs.
    pub cpus: u32,
    /// Number of shared interrupts, a multiple of 32, at most 960.
    pub spis: u32,
}

impl GicConfig {
    /// Bytes of the distributor's registers.
    pub const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
    /// Bytes of a CPU's redistributor's registers.
    pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
    /// Bytes of the ITS's registers.
    pub const ITS_SIZE: u64 = 0x2_0000;

    /// Guest-physical addresses of the translation services.
    pub fn its(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.first_its;
        (0..u64::from(self.its_count))
            .map(move |number| first.saturating_add(number.saturating_mul(Self::ITS_SIZE)))
    }
}

/// The interrupt controller. As an [`InterruptController`], a GSI is the number of a shared interrupt, from 0.
pub trait Gic: InterruptController {
    /// Back to the state after power-on, while no CPU runs.
    ///
    /// # Errors
    /// When the host refuses.
    fn reset(&self) -> Result<()>;

    /// The state now, while no CPU runs. Writes the rest of it to guest memory, where the guest has provided for that.
    ///
    /// # Errors
    /// When the host refuses, such as for tables of the guest's that are not in memory.
    fn save(&self) -> Result<GicState>;

    /// Becomes what `state`, and the guest memory that was saved after it, say, while no CPU runs.
    ///
    /// # Errors
    /// When the state is of a machine with other CPUs or interrupts, or the host refuses it. It is then in no usable state,
    /// until it is reset.
    fn restore(&self, state: &GicState) -> Result<()>;

    /// Has these CPUs take no interrupts, and all others those that the guest lets them; while no CPU runs. What is saved is
    /// what the guest has set.
    ///
    /// # Errors
    /// When the host refuses.
    fn hold_interrupts(&self, cpus: &BTreeSet<u32>) -> Result<()>;
}

/// The general registers, as text for a person.
#[cfg(target_arch = "aarch64")]
pub(crate) fn describe(read: impl Fn(RegisterId) -> Result<u64>) -> String {
    let text = |id| match read(id) {
        Ok(value) => format!("{value:#018x}"),
        Err(_) => "(unreadable)".to_owned(),
    };
    let mut lines = format!("pc  {}  pstate {}", text(RegisterId::PC), text(RegisterId::PSTATE));
    lines.push_str(&format!("\nsp_el1 {}  sp_el0 {}", text(RegisterId::SP_EL1), text(RegisterId::SP_EL0)));
    for n in 0..31 {
        lines.push_str(if n % 4 == 0 { "\n" } else { "  " });
        lines.push_str(&format!("x{n:<2} {}", text(RegisterId::x(n))));
    }
    for (name, id) in [
        ("sctlr_el1", RegisterId::SCTLR_EL1),
        ("vbar_el1", RegisterId::VBAR_EL1),
        ("esr_el1", RegisterId::ESR_EL1),
        ("far_el1", RegisterId::FAR_EL1),
        ("elr_el1", RegisterId::ELR_EL1),
        ("spsr_el1", RegisterId::SPSR_EL1),
        ("tcr_el1", RegisterId::TCR_EL1),
        ("ttbr0_el1", RegisterId::TTBR0_EL1),
        ("ttbr1_el1", RegisterId::TTBR1_EL1),
    ] {
        lines.push_str(&format!("\n{name} {}", text(id)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that KVM's documentation and the kernel's headers give.
    #[test]
    fn registers_have_the_kernels_numbers() {
        assert_eq!(RegisterId::PC.0, 0x6030_0000_0010_0040);
        assert_eq!(RegisterId::PSTATE.0, 0x6030_0000_0010_0042);
        assert_eq!(RegisterId::x(30).0, 0x6030_0000_0010_003c);
        assert_eq!(RegisterId::SP_EL1.0, 0x6030_0000_0010_0044);
        assert_eq!(RegisterId::MPIDR_EL1.0, 0x6030_0000_0013_c005);
        assert_eq!(RegisterId::PC.size(), 8);
        assert_eq!(RegisterId(0x6040_0000_0010_0054).size(), 16);
    }
}
