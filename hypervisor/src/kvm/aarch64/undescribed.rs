//! Accesses to device memory that the processor does not describe (Linux, `Documentation/virt/kvm/api.rst`,
//! `KVM_CAP_ARM_NISV_TO_USER` and `KVM_CAP_ARM_INJECT_EXT_DABT`).
//!
//! KVM knows of an access what the syndrome of the abort says, and for an instruction that loads or stores two registers or
//! vectors, or writes its base register back, that says next to nothing. Left to itself KVM then refuses to run the CPU. Here it
//! tells, and the guest gets the exception of a bus that did not answer.

use super::super::vcpu::KvmVcpu;
use crate::{Error, Result};
use kvm_bindings::{
    KVM_CAP_ARM_INJECT_EXT_DABT, KVM_CAP_ARM_NISV_TO_USER, KVM_EXIT_ARM_NISV, kvm_enable_cap, kvm_run,
    kvm_vcpu_events,
};
use kvm_ioctls::VmFd;
use std::ffi::c_ulong;

/// Has KVM tell of such accesses. A host without that (before Linux 5.5) ends a machine whose guest makes one.
pub fn set_up_vm(vm: &VmFd) -> Result<()> {
    let needed = [KVM_CAP_ARM_NISV_TO_USER, KVM_CAP_ARM_INJECT_EXT_DABT];
    if needed.into_iter().any(|capability| vm.check_extension_raw(c_ulong::from(capability)) <= 0) {
        return Ok(());
    }
    let request = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
    vm.enable_cap(&request).map_err(|errno| Error::Vm {
        what: "have the host tell of accesses that it cannot describe",
        source: errno.into(),
    })
}

/// The guest-physical address of such an access, if it is why the guest left.
pub fn undescribed_access(run: &kvm_run) -> Option<u64> {
    if run.exit_reason != KVM_EXIT_ARM_NISV {
        return None;
    }
    // SAFETY: the exit reason says which member of the union KVM filled in.
    Some(unsafe { run.__bindgen_anon_1.arm_nisv }.fault_ipa)
}

impl KvmVcpu {
    /// Gives the guest a synchronous external abort for the access at which it left.
    pub(in super::super) fn inject_external_abort(&self) -> Result<()> {
        let mut events = kvm_vcpu_events::default();
        events.exception.ext_dabt_pending = 1;
        let set = self.fd.set_vcpu_events(&events);
        set.map_err(|errno| self.failed("give the guest an external abort", errno))
    }
}
