//! CPUs: what they have ([`CpuModel`]), and the state they start in.

use super::boot::EntryPoint;
use crate::caches::Cache;
use crate::topology::Topology;
use hypervisor::Result;
use hypervisor::aarch64::{HostFeatures, RegisterId, VcpuFeatures, VcpuState};

/// The private interrupt of the performance monitor, as Arm's Base System Architecture has it.
pub const PMU_INTERRUPT: u32 = 23;

/// Private interrupts of the architecture's timers (Arm Base System Architecture, 3.6): the secure one,
pub(super) const TIMER_SECURE: u32 = 29;
/// the one of an operating system,
pub(super) const TIMER_PHYSICAL: u32 = 30;
/// the one of an operating system that a hypervisor may stop,
pub(super) const TIMER_VIRTUAL: u32 = 27;
/// and the hypervisor's.
pub(super) const TIMER_HYPERVISOR: u32 = 26;

/// What the CPUs of a machine have, and how they are grouped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    topology: Topology,
    features: VcpuFeatures,
    caches: Vec<Cache>,
}

impl CpuModel {
    /// CPUs with all that the host has, and caches like its, nearest first.
    pub fn new(host: &HostFeatures, topology: Topology, caches: Vec<Cache>) -> Self {
        let features = VcpuFeatures {
            sve: host.sve,
            pointer_authentication: host.pointer_authentication,
            pmu: host.pmu,
            powered_off: false,
        };
        Self { topology, features, caches }
    }

    /// How they are grouped.
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// The caches of each, nearest first.
    pub fn caches(&self) -> &[Cache] {
        &self.caches
    }

    /// Whether they have a performance monitor.
    pub fn has_pmu(&self) -> bool {
        self.features.pmu
    }

    fn features(&self, index: u32) -> VcpuFeatures {
        VcpuFeatures { powered_off: index != 0, ..self.features }
    }
}

/// The affinity fields of MPIDR_EL1 of CPU number `index`, by which PSCI, the interrupt controller and the tables know it:
/// 16 CPUs to a group of level 1, as the hypervisor numbers them.
pub fn affinity(index: u32) -> u64 {
    let index = u64::from(index);
    index & 0xf | (index >> 4 & 0xff) << 8 | (index >> 12 & 0xff) << 16
}

/// Gives CPU number `index`, just made, its features. Before the interrupt controller is made.
///
/// # Errors
/// When the hypervisor refuses.
pub fn init_vcpu(vcpu: &mut dyn VcpuState, model: &CpuModel, index: u32) -> Result<()> {
    vcpu.init(&model.features(index))
}

/// Sets up CPU number `index`, initialized and never run. CPU 0 starts at `entry`; the others wait until it starts them.
///
/// # Errors
/// When the hypervisor refuses.
pub fn configure_vcpu(
    vcpu: &mut dyn VcpuState,
    model: &CpuModel,
    index: u32,
    entry: &EntryPoint,
) -> Result<()> {
    if model.has_pmu() {
        vcpu.start_pmu(PMU_INTERRUPT)?;
    }
    if index == 0 { enter(vcpu, entry) } else { Ok(()) }
}

/// Sets CPU number `index`, which may have run and does not now, back to the state of [`configure_vcpu`].
///
/// # Errors
/// When the hypervisor refuses.
pub fn reset_vcpu(vcpu: &mut dyn VcpuState, model: &CpuModel, index: u32, entry: &EntryPoint) -> Result<()> {
    vcpu.init(&model.features(index))?;
    if index == 0 { enter(vcpu, entry) } else { Ok(()) }
}

/// What a kernel finds at its entry (Linux, `Documentation/arch/arm64/booting.rst`): the device tree's address, and
/// exception level 1 with all interrupts masked, which is how a CPU comes out of reset.
fn enter(vcpu: &mut dyn VcpuState, entry: &EntryPoint) -> Result<()> {
    for n in 1..4 {
        vcpu.set_register(RegisterId::x(n), 0)?;
    }
    vcpu.set_register(RegisterId::x(0), entry.boot_data.0)?;
    vcpu.set_register(RegisterId::PC, entry.address.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_cpus_share_a_group() {
        assert_eq!([0, 15, 16, 255, 4096].map(affinity), [0, 0xf, 0x100, 0xf0f, 0x1_0000]);
    }
}
