//! CPUs: how many and how they are grouped ([`Topology`]), what they are able to do ([`CpuModel`]), and the
//! state they start in ([`configure_vcpu`], [`reset_vcpu`]).

mod cpuid;
mod registers;
mod start;

pub use cpuid::{CpuModel, CpuOptions, HostCpu, Vendor};
pub use start::{configure_vcpu, reset_vcpu};

pub use crate::topology::{Place, Topology, TopologyError};
