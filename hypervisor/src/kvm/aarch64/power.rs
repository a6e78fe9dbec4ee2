//! CPUs that are on or off as the monitor says, and not KVM: what the guest asks of PSCI about them comes to the monitor (Linux,
//! `Documentation/virt/kvm/devices/vm.rst`, `KVM_ARM_VM_SMCCC_FILTER`, since 6.4). All else of PSCI stays with KVM.
//!
//! KVM is kept told of what the monitor decides, since the state of a CPU is read from it. A CPU that starts is initialized anew, which is what
//! KVM does inside for the same call.

use super::super::vcpu::KvmVcpu;
use crate::aarch64::psci::{self, Request};
use crate::aarch64::{MpState, RegisterId, VcpuFeatures, VcpuState};
use crate::{CpuAnswer, CpuStart, Error, Exit, Result};
use kvm_bindings::{
    KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, KVM_EXIT_HYPERCALL, kvm_device_attr, kvm_run,
    kvm_smccc_filter, kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER as FORWARD,
};
use kvm_ioctls::VmFd;

/// SCTLR_EL1: data are big-endian.
const BIG_ENDIAN: u64 = 1 << 25;

/// Whether a CPU is on, as the monitor has it.
#[derive(Debug, Default)]
pub(in super::super) struct Power {
    /// The monitor is asked.
    forwarded: bool,
    off: bool,
    /// As it was initialized last.
    features: VcpuFeatures,
}

impl Power {
    /// See [`crate::Vcpu::is_off`].
    pub(in super::super) fn is_off(&self) -> bool {
        self.forwarded && self.off
    }

    /// The CPU was initialized.
    pub(super) fn initialized(&mut self, features: &VcpuFeatures) {
        self.features = *features;
        self.off = features.powered_off;
    }

    /// KVM was told.
    pub(super) fn set(&mut self, state: MpState) {
        self.off = state == MpState::PoweredOff;
    }
}

/// See [`crate::Vm::forward_cpu_calls`].
pub(in super::super) fn forward_calls(vm: &VmFd) -> Result<bool> {
    let attribute = |addr| kvm_device_attr {
        group: KVM_ARM_VM_SMCCC_CTRL,
        attr: u64::from(KVM_ARM_VM_SMCCC_FILTER),
        addr,
        flags: 0,
    };
    if vm.has_device_attr(&attribute(0)).is_err() {
        return Ok(false);
    }
    for (base, nr_functions) in psci::FUNCTIONS {
        let filter = kvm_smccc_filter { base, nr_functions, action: FORWARD as u8, pad: [0; 15] };
        vm.set_device_attr(&attribute(&raw const filter as u64)).map_err(|errno| Error::Vm {
            what: "have the host tell of CPUs that start CPUs",
            source: errno.into(),
        })?;
    }
    Ok(true)
}

/// The function that the guest calls, if that is why it left.
pub(in super::super) fn forwarded_call(run: &kvm_run) -> Option<u32> {
    if run.exit_reason != KVM_EXIT_HYPERCALL {
        return None;
    }
    // SAFETY: the exit reason says which member of the union KVM filled in.
    Some(unsafe { run.__bindgen_anon_1.hypercall }.nr as u32)
}

impl KvmVcpu {
    /// Has CPUs know who is asked.
    pub(in super::super) fn with_calls_forwarded(mut self, forwarded: bool) -> Self {
        self.power.forwarded = forwarded;
        self
    }

    /// The guest calls `function`, and goes on behind the instruction by which it does.
    pub(in super::super) fn called(&mut self, function: u32) -> Result<Exit<'static>> {
        let argument = |n| self.register(RegisterId::x(n));
        let arguments = [argument(1)?, argument(2)?, argument(3)?];
        let big_endian = self.register(RegisterId::SCTLR_EL1)? & BIG_ENDIAN != 0;
        match Request::new(function, arguments, big_endian) {
            Some(Request::Call(call)) => Ok(Exit::CpuCall(call)),
            Some(Request::Stop) => {
                self.set_mp_state(MpState::PoweredOff)?;
                Ok(Exit::Stopped)
            }
            None => {
                Ok(Exit::Failed { reason: format!("KVM forwards the call {function:#x} of the guest's") })
            }
        }
    }

    /// See [`crate::Vcpu::answer`].
    pub(in super::super) fn answer_call(&mut self, answer: CpuAnswer) -> Result<()> {
        self.set_register(RegisterId::x(0), psci::code(answer))
    }

    /// See [`crate::Vcpu::start`].
    pub(in super::super) fn power_on(&mut self, start: &CpuStart) -> Result<()> {
        // With other features KVM would refuse it, and older KVMs count it as one whether the CPU is off at first.
        let features = self.power.features;
        self.init(&features)?;
        self.set_register(RegisterId::PC, start.entry)?;
        self.set_register(RegisterId::x(0), start.argument)?;
        if start.big_endian {
            let control = self.register(RegisterId::SCTLR_EL1)?;
            self.set_register(RegisterId::SCTLR_EL1, control | BIG_ENDIAN)?;
        }
        self.set_mp_state(MpState::Runnable)
    }
}
