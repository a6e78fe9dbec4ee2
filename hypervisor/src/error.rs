//! What can go wrong between the monitor and the hypervisor.

use crate::AddressSpace;
use machine::state::StateError;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a hypervisor call failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The device file is not there.
    #[error(
        "{path}: not found: load the kvm module (modprobe kvm_intel or kvm_amd), enable virtualization in the \
         firmware's setup, or run on a host that has KVM"
    )]
    Missing {
        /// The device file.
        path: PathBuf,
    },
    /// This user may not open the device file.
    #[error("{path}: permission denied: add the user to group kvm (usermod -aG kvm USER) and log in again")]
    NotPermitted {
        /// The device file.
        path: PathBuf,
    },
    /// The device file cannot be opened for another reason.
    #[error("{path}: cannot be opened: {source}")]
    Open {
        /// The device file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The file opened is not KVM, or not the KVM this program was written for.
    #[error("{path}: speaks KVM API version {found}, and 12 is needed: use the host's /dev/kvm")]
    ApiVersion {
        /// The device file.
        path: PathBuf,
        /// What it said; negative if it is no KVM at all.
        found: i32,
    },
    /// The host's KVM is too old or too limited.
    #[error("the host's KVM lacks {name} ({purpose}): use a newer kernel")]
    Capability {
        /// The capability's name in the KVM API.
        name: &'static str,
        /// What it is needed for.
        purpose: &'static str,
    },
    /// A call for the machine as a whole failed.
    #[error("cannot {what}: {source}")]
    Vm {
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// A memory slot could not be set.
    #[error("cannot map memory slot {slot} ({size:#x} bytes at guest address {guest_address:#x}): {source}")]
    MapMemory {
        /// The slot's number.
        slot: u32,
        /// Guest-physical address.
        guest_address: u64,
        /// Size in bytes.
        size: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// A memory slot could not be removed.
    #[error("cannot unmap memory slot {slot}: {source}")]
    UnmapMemory {
        /// The slot's number.
        slot: u32,
        /// The host's answer.
        source: io::Error,
    },
    /// A doorbell could not be attached or detached.
    #[error("cannot {verb} the doorbell at {space:?} address {address:#x}: {source}")]
    Doorbell {
        /// `"attach"` or `"detach"`.
        verb: &'static str,
        /// Which address space.
        space: AddressSpace,
        /// The address the guest writes.
        address: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// There is no such input pin.
    #[error("the I/O APIC has {pins} pins, and pin {pin} is not one of them")]
    NoSuchPin {
        /// The pin asked for.
        pin: u32,
        /// How many there are.
        pins: u32,
    },
    /// A CPU could not be made.
    #[error("cannot create CPU {id}: {source}")]
    CreateVcpu {
        /// The CPU's id.
        id: u32,
        /// The host's answer.
        source: io::Error,
    },
    /// A CPU could not be run, or its state read or set.
    #[error("CPU {id}: cannot {what}: {source}")]
    Vcpu {
        /// The CPU's id.
        id: u32,
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The host does not know a register, or refuses the value.
    #[error("CPU {id}: cannot {verb} register {register:#x}: {source}")]
    Register {
        /// The CPU's id.
        id: u32,
        /// `"read"` or `"write"`.
        verb: &'static str,
        /// The number KVM gives it.
        register: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// A register or table of the interrupt controller could not be read or set.
    #[error("interrupt controller: cannot {verb} {what}: {source}")]
    Gic {
        /// What was being done, such as `"read"`.
        verb: &'static str,
        /// The register or table, with where it is.
        what: String,
        /// The host's answer.
        source: io::Error,
    },
    /// A saved state is not one of this machine.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host does not know a model-specific register, or refuses the value.
    #[error("CPU {id}: cannot {verb} MSR {index:#x}: the host does not know it or refuses the value")]
    Msr {
        /// The CPU's id.
        id: u32,
        /// `"read"` or `"write"`.
        verb: &'static str,
        /// The register.
        index: u32,
    },
    /// More items than the interface takes.
    #[error("CPU {id}: {count} CPUID entries, and the host takes at most {most}")]
    TooManyCpuidEntries {
        /// The CPU's id.
        id: u32,
        /// How many there were.
        count: usize,
        /// The most there may be.
        most: usize,
    },
}
