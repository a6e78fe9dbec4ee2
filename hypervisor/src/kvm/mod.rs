//! The KVM backend.
//!
//! [`Kvm`] is `/dev/kvm`. A machine uses the split interrupt controller on x86_64: local APICs in the
//! kernel, the I/O APIC in the monitor, which delivers through [`crate::Vm::ioapic_pin`]. On aarch64 all of the GICv3 is in
//! the kernel, and so is PSCI, save for what [`crate::Vm::forward_cpu_calls`] takes out of it.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod kick;
mod probe;
pub mod requests;
mod routing;
mod vcpu;
mod vm;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as native;
#[cfg(target_arch = "x86_64")]
use x86_64 as native;

use crate::clock::{self, HostClock};
use crate::{Error, Hypervisor, Result, Vcpu, Vm};
use kvm_ioctls::{Cap, VmFd};
use machine::clock::Clock;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Where KVM usually is.
pub const DEFAULT_PATH: &str = "/dev/kvm";

/// The version of the KVM API, fixed since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What is needed of KVM, by its name in the API, and what for.
const REQUIRED: &[(Cap, &str, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest memory"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "stopping a CPU"),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "device interrupts"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING", "device interrupts"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI", "message-signalled interrupts"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "doorbells"),
    (Cap::MpState, "KVM_CAP_MP_STATE", "starting further CPUs"),
];

/// What is needed of KVM on this architecture besides.
#[cfg(target_arch = "x86_64")]
const REQUIRED_NATIVE: &[(Cap, &str, &str)] = &[
    // Every aarch64 host that has the rest has this too, and does not say so.
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH", "doorbells of any access size"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP", "the interrupt controllers"),
    (Cap::X2ApicApi, "KVM_CAP_X2APIC_API", "interrupts to CPUs beyond the 255th"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "real mode"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "real mode"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "the CPU model"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS", "CPU state"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS", "CPU state"),
    (Cap::Xsave, "KVM_CAP_XSAVE", "CPU state"),
    (Cap::Xcrs, "KVM_CAP_XCRS", "CPU state"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ", "the guest's clock"),
];
#[cfg(target_arch = "aarch64")]
const REQUIRED_NATIVE: &[(Cap, &str, &str)] = &[
    (Cap::DeviceCtrl, "KVM_CAP_DEVICE_CTRL", "the interrupt controller"),
    (Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2", "starting further CPUs"),
    (Cap::OneReg, "KVM_CAP_ONE_REG", "CPU state"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS", "CPU state"),
];

/// The host's KVM.
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
    max_vcpus: u32,
}

impl Kvm {
    /// Opens the KVM device at `path`, usually [`DEFAULT_PATH`], and checks that it can do what is needed.
    ///
    /// # Errors
    /// When the file is missing, not permitted or not KVM, or when KVM lacks a needed capability.
    pub fn open(path: &Path) -> Result<Self> {
        let c_path =
            CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::Missing { path: path.into() })?;
        let kvm = kvm_ioctls::Kvm::new_with_path(c_path).map_err(|errno| match errno.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTDIR => Error::Missing { path: path.into() },
            libc::EACCES | libc::EPERM => Error::NotPermitted { path: path.into() },
            _ => Error::Open { path: path.into(), source: errno.into() },
        })?;
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(Error::ApiVersion { path: path.into(), found });
        }
        for &(cap, name, purpose) in REQUIRED.iter().chain(REQUIRED_NATIVE) {
            if !kvm.check_extension(cap) {
                return Err(Error::Capability { name, purpose });
            }
        }
        let max_vcpus = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
        Ok(Self { kvm, max_vcpus })
    }
}

impl Kvm {
    /// Makes a machine by `create`.
    fn create(
        &self,
        create: impl Fn(&kvm_ioctls::Kvm) -> std::result::Result<VmFd, kvm_ioctls::Error>,
    ) -> Result<Arc<dyn Vm>> {
        // Creating a machine allocates much in the kernel and may be cut short by a signal.
        let fd = loop {
            match create(&self.kvm) {
                Ok(fd) => break fd,
                Err(errno) if errno.errno() == libc::EINTR => {}
                Err(errno) => {
                    return Err(Error::Vm { what: "create a virtual machine", source: errno.into() });
                }
            }
        };
        Ok(Arc::new(vm::KvmVm::new(fd)?))
    }
}

impl Hypervisor for Kvm {
    #[cfg(target_arch = "x86_64")]
    fn create_vm(&self) -> Result<Arc<dyn Vm>> {
        self.create(kvm_ioctls::Kvm::create_vm)
    }

    #[cfg(target_arch = "aarch64")]
    fn create_vm(&self) -> Result<Arc<dyn Vm>> {
        self.create_vm_of(self.host_features().address_bits)
    }

    #[cfg(target_arch = "aarch64")]
    fn create_vm_of(&self, bits: u8) -> Result<Arc<dyn Vm>> {
        // A host that does not let one choose takes 0, and has 40 bits.
        let chosen = if self.kvm.check_extension(Cap::ArmVmIPASize) { u32::from(bits) } else { 0 };
        self.create(|kvm| kvm.create_vm_with_ipa_size(chosen))
    }

    #[cfg(target_arch = "aarch64")]
    fn host_features(&self) -> crate::aarch64::HostFeatures {
        aarch64::host_features(&self.kvm)
    }

    fn max_vcpus(&self) -> u32 {
        self.max_vcpus
    }

    #[cfg(target_arch = "x86_64")]
    fn supported_cpuid(&self) -> Result<Vec<crate::x86_64::CpuidEntry>> {
        let cpuid = self
            .kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(|errno| Error::Vm { what: "ask the host's KVM for its CPUID", source: errno.into() })?;
        Ok(cpuid.as_slice().iter().map(x86_64::cpuid_from_kvm).collect())
    }

    #[cfg(target_arch = "x86_64")]
    fn clock(&self, vcpus: &mut [Box<dyn Vcpu>]) -> Arc<dyn Clock> {
        let tsc_khz = vcpus.first_mut().and_then(|vcpu| vcpu.x86_64().tsc_khz().ok());
        Arc::new(HostClock::new(clock::counter_hz(tsc_khz)))
    }

    #[cfg(target_arch = "aarch64")]
    fn clock(&self, _: &mut [Box<dyn Vcpu>]) -> Arc<dyn Clock> {
        Arc::new(HostClock::new(clock::counter_hz()))
    }

    fn cannot_run_linux(&self) -> Option<String> {
        probe::cannot_run_linux(&self.kvm)
    }
}

/// The host's answer to a KVM call, as an [`io::Error`] that says what was being done.
fn refused(what: &str, errno: kvm_ioctls::Error) -> io::Error {
    let source = io::Error::from(errno);
    io::Error::new(source.kind(), format!("cannot {what}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_kvm_is_refused_with_a_hint() {
        let missing = Kvm::open(Path::new("/nonexistent/kvm")).err().unwrap();
        assert!(matches!(missing, Error::Missing { .. }));
        assert!(missing.to_string().contains("load the kvm module"));
        let other = Kvm::open(Path::new("/dev/null")).err().unwrap();
        assert!(matches!(other, Error::ApiVersion { .. }), "{other}");
        let directory = Kvm::open(Path::new("/")).err().unwrap();
        assert!(matches!(directory, Error::Open { .. }), "{directory}");
    }
}
