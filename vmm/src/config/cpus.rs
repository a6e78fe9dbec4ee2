//! `--cpus`.

use super::options::{Setting, options};
use serde::{Deserialize, Serialize};

options! {
    /// The machine's CPUs.
    pub struct CpusConfig {
        /// CPUs present when the machine starts.
        ["boot"] boot_vcpus: u32 = 1,
        /// CPUs the machine can have; those above `boot` can be added later.
        ["max"] max_vcpus: Option<u32> = None,
        /// Threads per core, cores per die, dies per package, and packages. Their product is `max`.
        ["topology"] topology: Option<CpuTopology> = None,
        /// Host CPUs each CPU may run on, such as `[0@[1,2],1@[3-5]]`.
        ["affinity"] affinity: Vec<CpuAffinity> = Vec::new(),
        /// Physical address bits shown to the guest, at most the host's.
        ["max_phys_bits", 32..=52] max_phys_bits: u8 = 46,
        /// Whether the guest may use hardware virtualization itself.
        ["nested"] nested: bool = true,
        /// Who may share a core of the host: the machine's threads with each other (vm), none with another (vcpu), all (off).
        ["core_scheduling"] core_scheduling: CoreScheduling = CoreScheduling::Off,
    }
}

impl CpusConfig {
    /// The most CPUs the machine can have.
    pub fn limit(&self) -> u32 {
        self.max_vcpus.unwrap_or(self.boot_vcpus)
    }
}

/// Which threads may run at the same time on the hardware threads of a core of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum CoreScheduling {
    /// Those of this machine.
    #[serde(alias = "vm")]
    Vm,
    /// Each CPU has a core to itself.
    #[serde(alias = "vcpu")]
    Vcpu,
    /// Any.
    #[default]
    #[serde(alias = "off")]
    Off,
}

impl Setting for CoreScheduling {
    const HINT: &'static str = "vm|vcpu|off";
    fn show(&self) -> String {
        match self {
            Self::Vm => "vm",
            Self::Vcpu => "vcpu",
            Self::Off => "off",
        }
        .into()
    }
}

/// How CPUs are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuTopology {
    /// Threads of a core.
    pub threads_per_core: u16,
    /// Cores of a die.
    pub cores_per_die: u16,
    /// Dies of a package.
    pub dies_per_package: u16,
    /// Packages (sockets).
    pub packages: u16,
}

impl CpuTopology {
    /// The number of CPUs it makes.
    pub fn cpus(self) -> u64 {
        u64::from(self.threads_per_core)
            * u64::from(self.cores_per_die)
            * u64::from(self.dies_per_package)
            * u64::from(self.packages)
    }
}

impl Setting for CpuTopology {
    const HINT: &'static str = "<threads>:<cores>:<dies>:<packages>";
    fn show(&self) -> String {
        format!(
            "{}:{}:{}:{}",
            self.threads_per_core, self.cores_per_die, self.dies_per_package, self.packages
        )
    }
}

/// The host CPUs a CPU may run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuAffinity {
    /// The guest's CPU.
    pub vcpu: u32,
    /// The host's CPUs.
    pub host_cpus: Vec<usize>,
}

impl Setting for CpuAffinity {
    const HINT: &'static str = "<cpu>@<host cpus>";
    fn show(&self) -> String {
        format!("{}@{}", self.vcpu, self.host_cpus.show())
    }
}
