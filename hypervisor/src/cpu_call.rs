//! What a guest asks of its firmware about CPUs (PSCI on aarch64), where the monitor answers that and not the hypervisor: see
//! [`crate::Vm::forward_cpu_calls`].

use std::ops::Range;

/// What is asked. CPUs are known by their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuCall {
    /// To start a CPU.
    Start {
        /// Which one; `None`: what the guest names is never a CPU.
        cpu: Option<u32>,
        /// How it is to start.
        start: CpuStart,
    },
    /// Whether any of these CPUs is on.
    State {
        /// Which ones.
        cpus: Range<u32>,
    },
}

/// How a CPU starts. All else is as after power-on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuStart {
    /// Guest-physical address of its first instruction, as the guest gave it.
    pub entry: u64,
    /// What it finds in its first register.
    pub argument: u64,
    /// Its data are big-endian, as those of the CPU that starts it.
    pub big_endian: bool,
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuAnswer {
    /// The CPU starts.
    Starts,
    /// It runs already, or is about to.
    AlreadyOn,
    /// It is not there now.
    Absent,
    /// There never is such a CPU.
    NoSuchCpu,
    /// One of the CPUs is on.
    On,
    /// None of them is.
    Off,
}
