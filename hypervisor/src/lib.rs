//! The only code that talks to `/dev/kvm`.
//!
//! [`Hypervisor`] opens a backend, [`Vm`] is one machine's memory and interrupt plumbing, [`Vcpu`] one CPU.
//! Two implementations: [`kvm`], and [`sim`], whose CPUs follow a script, so that whole machines are
//! tested without virtualization. What is particular to an architecture is in a module named after it.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod aarch64;
pub mod kvm;
pub mod sim;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

/// The architecture this is built for, for those who only pass its types on.
#[cfg(target_arch = "aarch64")]
pub use aarch64 as native;
#[cfg(target_arch = "x86_64")]
pub use x86_64 as native;

mod clock;
mod cpu_call;
mod debug;
mod error;
mod exit;

pub use cpu_call::{CpuAnswer, CpuCall, CpuStart};
pub use debug::{DebugCause, DebugStop, GuestDebug, HardwareBreakpoint, WatchedAccess};
pub use error::Error;
pub use exit::{Exit, SystemEvent};

use machine::clock::Clock;
use machine::doorbell::DoorbellAddress;
use machine::interrupt::MsiAllocator;
#[cfg(target_arch = "x86_64")]
use machine::interrupt::MsiSource;
use std::sync::Arc;

/// Result of a hypervisor call.
pub type Result<T> = std::result::Result<T, Error>;

/// A backend that makes machines.
pub trait Hypervisor: Send + Sync {
    /// Makes a machine without memory and CPUs.
    ///
    /// # Errors
    /// When the host refuses.
    fn create_vm(&self) -> Result<Arc<dyn Vm>>;

    /// The most CPUs a machine may have.
    fn max_vcpus(&self) -> u32;

    /// What this backend offers of the architecture's CPU.
    ///
    /// # Errors
    /// When the host cannot be asked.
    #[cfg(target_arch = "x86_64")]
    fn supported_cpuid(&self) -> Result<Vec<x86_64::CpuidEntry>>;

    /// What this backend offers of the architecture's CPU.
    #[cfg(target_arch = "aarch64")]
    fn host_features(&self) -> aarch64::HostFeatures;

    /// Makes a machine whose guest-physical addresses have `bits` bits, at most those of [`Hypervisor::host_features`];
    /// fewer cost the guest less. [`Hypervisor::create_vm`] gives it all that the host has.
    ///
    /// # Errors
    /// When the host refuses.
    #[cfg(target_arch = "aarch64")]
    fn create_vm_of(&self, bits: u8) -> Result<Arc<dyn Vm>>;

    /// The clock of a machine with these CPUs. Its monotonic time starts at zero now.
    fn clock(&self, vcpus: &mut [Box<dyn Vcpu>]) -> Arc<dyn Clock>;

    /// `None` if a stock Linux kernel can run; else the reason it cannot, for the user.
    fn cannot_run_linux(&self) -> Option<String>;
}

/// Which address space an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressSpace {
    /// Memory-mapped.
    Mmio,
    /// x86 port I/O.
    Port,
}

/// A run of this process's memory given to the guest.
#[derive(Clone, Copy, Debug)]
pub struct MemorySlot {
    /// The slot's number; one region each.
    pub slot: u32,
    /// Guest-physical address, page-aligned.
    pub guest_address: u64,
    /// Size in bytes, page-aligned.
    pub size: u64,
    /// Where it is mapped in this process.
    pub host_address: *mut u8,
    /// Guest writes exit instead.
    pub readonly: bool,
    /// Record which pages the guest writes.
    pub log_dirty: bool,
}

/// One machine.
pub trait Vm: MsiAllocator {
    /// Makes a CPU. Called once for each id, from the thread that will run it or before.
    ///
    /// # Errors
    /// When the host refuses.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>>;

    /// Has CPUs made from now on exit with [`Exit::CpuCall`] and [`Exit::Stopped`] for what the guest asks of its firmware about CPUs, so
    /// that the monitor, which knows which of them are there, answers. `false`: the hypervisor answers itself, as it does unless this is
    /// called, and takes every CPU for one that is there.
    ///
    /// # Errors
    /// When the host has this, and refuses.
    fn forward_cpu_calls(&self) -> Result<bool> {
        Ok(false)
    }

    /// Gives memory to the guest, or changes a slot's flags.
    ///
    /// # Safety
    /// `slot.host_address..+slot.size` is mapped, and stays so until the slot is unmapped or the machine
    /// is gone. The guest writes to it at any time.
    ///
    /// # Errors
    /// When the host refuses, such as for an overlap.
    unsafe fn map_memory(&self, slot: MemorySlot) -> Result<()>;

    /// Takes a slot's memory from the guest.
    ///
    /// # Errors
    /// When there is no such slot.
    fn unmap_memory(&self, slot: u32) -> Result<()>;

    /// From now on, the guest write that `doorbell` describes (its offset being relative to `base`) rings it
    /// without an exit.
    ///
    /// # Errors
    /// When the address is taken or the host refuses.
    fn attach_doorbell(&self, space: AddressSpace, base: u64, doorbell: &DoorbellAddress) -> Result<()>;

    /// Undoes [`Vm::attach_doorbell`], with the same arguments.
    ///
    /// # Errors
    /// When it was not attached.
    fn detach_doorbell(&self, space: AddressSpace, base: u64, doorbell: &DoorbellAddress) -> Result<()>;

    /// The message-signalled source that stands for input pin `pin` of the I/O APIC in the split interrupt
    /// controller: its route is what the pin's redirection entry says.
    ///
    /// # Errors
    /// When there is no such pin.
    #[cfg(target_arch = "x86_64")]
    fn ioapic_pin(&self, pin: u32) -> Result<Arc<dyn MsiSource>>;

    /// Makes the interrupt controller, once, when all CPUs are there and initialized.
    ///
    /// # Errors
    /// When the host refuses, or has none of this kind.
    #[cfg(target_arch = "aarch64")]
    fn create_gic(&self, config: &aarch64::GicConfig) -> Result<Arc<dyn aarch64::Gic>>;
}

/// Stops a CPU's run from another thread.
pub trait Kick: Send + Sync {
    /// Makes the CPU's current, or else its next, [`Vcpu::run`] return [`Exit::Interrupted`] soon.
    fn kick(&self);
}

/// One CPU.
pub trait Vcpu: Send {
    /// Runs the guest until something needs the monitor.
    ///
    /// # Errors
    /// When the CPU cannot be run; it is then in no usable state.
    fn run(&mut self) -> Result<Exit<'_>>;

    /// Whether the CPU is off: it is not to be run until [`Vcpu::start`]. Only CPUs whose calls the monitor answers are.
    fn is_off(&self) -> bool {
        false
    }

    /// Starts a CPU that is off. Without effect where none ever is.
    ///
    /// # Errors
    /// When the host refuses; it is then in no usable state.
    fn start(&mut self, _: &CpuStart) -> Result<()> {
        Ok(())
    }

    /// Answers the call for which [`Vcpu::run`] returned [`Exit::CpuCall`] last. Without effect where it never does.
    ///
    /// # Errors
    /// When the host refuses.
    fn answer(&mut self, _: CpuAnswer) -> Result<()> {
        Ok(())
    }

    /// A handle that interrupts [`Vcpu::run`]. Taken on the thread that will run the CPU.
    fn kick_handle(&self) -> Arc<dyn Kick>;

    /// The registers, as text for a person, for a report of a crash.
    fn describe(&self) -> String;

    /// The registers and all else that is particular to the architecture.
    fn native(&mut self) -> &mut dyn native::VcpuState;
}

#[cfg(target_arch = "x86_64")]
impl dyn Vcpu + '_ {
    /// [`Vcpu::native`], where only x86_64 is meant.
    pub fn x86_64(&mut self) -> &mut dyn x86_64::VcpuState {
        self.native()
    }
}
