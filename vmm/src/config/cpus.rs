//! `--cpus`.

use super::ConfigError;
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
        /// Scalable vectors (SVE) of an Arm CPU: as the host has them (host), for certain (on), or not (off).
        ["sve"] sve: CpuFeature = CpuFeature::Host,
        /// Pointer authentication of an Arm CPU.
        ["pauth"] pauth: CpuFeature = CpuFeature::Host,
        /// The performance monitor of an Arm CPU.
        ["pmu"] pmu: CpuFeature = CpuFeature::Host,
    }
}

impl CpusConfig {
    /// The most CPUs the machine can have.
    pub fn limit(&self) -> u32 {
        self.max_vcpus.unwrap_or(self.boot_vcpus)
    }

    /// Refuses a choice of features that CPUs of this architecture have or lack as they are.
    ///
    /// # Errors
    /// Names the first that was chosen.
    pub fn check_no_features(&self) -> Result<(), ConfigError> {
        let choices = [("sve", self.sve), ("pauth", self.pauth), ("pmu", self.pmu)];
        match choices.into_iter().find(|(_, choice)| *choice != CpuFeature::Host) {
            Some((key, choice)) => Err(ConfigError {
                option: format!("--cpus {key}={}", choice.show()),
                reason: "is a choice for Arm machines, and this is none; leave it out".into(),
            }),
            None => Ok(()),
        }
    }
}

/// Whether CPUs have a feature that not every host's have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum CpuFeature {
    /// If the host's have.
    #[default]
    #[serde(alias = "host")]
    Host,
    /// They have, or there is no machine.
    #[serde(alias = "on")]
    On,
    /// They have not.
    #[serde(alias = "off")]
    Off,
}

impl CpuFeature {
    /// Whether CPUs have the feature, which is the choice `key` of `--cpus` and called `name`, where the host's KVM can give it
    /// or not.
    ///
    /// # Errors
    /// When they must have it, and it cannot.
    pub fn settle(self, key: &str, name: &str, can_have: bool) -> Result<bool, ConfigError> {
        match self {
            Self::Host => Ok(can_have),
            Self::Off => Ok(false),
            Self::On if can_have => Ok(true),
            Self::On => Err(ConfigError {
                option: format!("--cpus {key}=on"),
                reason: format!(
                    "this host's KVM has no {name} to give to a machine; leave it out, or use a host that has"
                ),
            }),
        }
    }
}

impl Setting for CpuFeature {
    const HINT: &'static str = "host|on|off";
    fn show(&self) -> String {
        match self {
            Self::Host => "host",
            Self::On => "on",
            Self::Off => "off",
        }
        .into()
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
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;

    #[test]
    fn features_are_as_the_host_has_them_unless_chosen() {
        let settle = |choice: CpuFeature, has| choice.settle("sve", "scalable vectors", has);
        for has in [false, true] {
            assert_eq!(settle(CpuFeature::default(), has), Ok(has));
            assert_eq!(settle(CpuFeature::Off, has), Ok(false));
        }
        assert_eq!(settle(CpuFeature::On, true), Ok(true));
        let refusal = settle(CpuFeature::On, false).unwrap_err().to_string();
        assert!(refusal.starts_with("--cpus sve=on: this host's KVM has no scalable vectors"), "{refusal}");
    }

    #[test]
    fn features_of_other_architectures_cannot_be_chosen() {
        let cpus = CpusConfig::parse("boot=2,pauth=host").unwrap();
        assert_eq!(cpus.check_no_features(), Ok(()));
        let cpus = CpusConfig::parse("boot=2,pmu=off").unwrap();
        assert_eq!(cpus.pmu, CpuFeature::Off);
        let refusal = cpus.check_no_features().unwrap_err().to_string();
        assert!(refusal.starts_with("--cpus pmu=off: is a choice for Arm machines"), "{refusal}");
        let json: CpusConfig = serde_json::from_str(r#"{"sve": "On"}"#).unwrap();
        assert_eq!(json.sve, CpuFeature::On);
        assert!(CpusConfig::parse("sve=maybe").unwrap_err().to_string().contains("not one of host, on, off"));
    }
}
