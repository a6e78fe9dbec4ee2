//! KVM on aarch64: the state of a CPU, and in [`gic`] the interrupt controller.

mod attributes;
mod debug;
pub(super) mod gic;
mod gic_hold;
mod gic_state;
mod power;
mod undescribed;

pub(super) use debug::Debug;
pub(super) use power::{Power, forward_calls, forwarded_call};
pub(super) use undescribed::{set_up_vm, undescribed_access};

use super::vcpu::KvmVcpu;
use crate::aarch64::{HostFeatures, MpState, PendingEvents, RegisterId, VcpuFeatures, VcpuState, exception};
use crate::{Error, GuestDebug, HardwareBreakpoint, Result};
use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVMIO,
    kvm_device_attr, kvm_mp_state, kvm_reg_list, kvm_vcpu_events, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm};
use std::io;
use vmm_sys_util::ioctl::ioctl_with_mut_ptr;
use vmm_sys_util::ioctl_iowr_nr;

// Called directly, since kvm-ioctls takes lists of 500 registers at most.
ioctl_iowr_nr!(KVM_GET_REG_LIST, KVMIO, 0xb0, kvm_reg_list);

/// Address bits of a machine on a KVM that does not let one choose.
const DEFAULT_ADDRESS_BITS: u8 = 40;
/// More registers than any CPU has.
const MAX_REGISTERS: usize = 4096;

/// What this KVM can give a CPU.
pub(super) fn host_features(kvm: &Kvm) -> HostFeatures {
    let address_bits = u8::try_from(kvm.get_host_ipa_limit()).ok().filter(|bits| *bits >= 32);
    HostFeatures {
        address_bits: address_bits.unwrap_or(DEFAULT_ADDRESS_BITS),
        sve: kvm.check_extension(Cap::ArmSve),
        pointer_authentication: kvm.check_extension(Cap::ArmPtrAuthAddress)
            && kvm.check_extension(Cap::ArmPtrAuthGeneric),
        pmu: kvm.check_extension(Cap::ArmPmuV3),
    }
}

impl KvmVcpu {
    fn refused<T>(&self, what: &'static str, result: std::result::Result<T, kvm_ioctls::Error>) -> Result<T> {
        result.map_err(|errno| self.failed(what, errno))
    }

    fn list_failed(&self, source: io::Error) -> Error {
        Error::Vcpu { id: self.id, what: "list the registers", source }
    }

    fn register_failed(&self, verb: &'static str, register: RegisterId, errno: kvm_ioctls::Error) -> Error {
        Error::Register { id: self.id, verb, register: register.0, source: errno.into() }
    }
}

impl VcpuState for KvmVcpu {
    fn init(&mut self, features: &VcpuFeatures) -> Result<()> {
        let mut init = kvm_vcpu_init::default();
        self.refused("ask for the host's kind of CPU", self.vm.get_preferred_target(&mut init))?;
        let bits = [
            (true, KVM_ARM_VCPU_PSCI_0_2),
            (features.powered_off, KVM_ARM_VCPU_POWER_OFF),
            (features.pmu, KVM_ARM_VCPU_PMU_V3),
            (features.sve, KVM_ARM_VCPU_SVE),
            (features.pointer_authentication, KVM_ARM_VCPU_PTRAUTH_ADDRESS),
            (features.pointer_authentication, KVM_ARM_VCPU_PTRAUTH_GENERIC),
        ];
        for (_, bit) in bits.into_iter().filter(|(wanted, _)| *wanted) {
            init.features[0] |= 1 << bit;
        }
        self.refused("set the CPU's features", self.fd.vcpu_init(&init))?;
        if features.sve {
            let feature = KVM_ARM_VCPU_SVE as i32;
            match self.fd.vcpu_finalize(&feature) {
                // The vector lengths were settled when it was first made.
                Err(errno) if errno.errno() == libc::EPERM => {}
                result => self.refused("settle the vector lengths", result)?,
            }
        }
        self.power.initialized(features);
        Ok(())
    }

    fn start_pmu(&mut self, intid: u32) -> Result<()> {
        let interrupt = kvm_device_attr {
            group: KVM_ARM_VCPU_PMU_V3_CTRL,
            attr: u64::from(KVM_ARM_VCPU_PMU_V3_IRQ),
            addr: &raw const intid as u64,
            flags: 0,
        };
        self.refused("set the performance monitor's interrupt", self.fd.set_device_attr(&interrupt))?;
        let start = kvm_device_attr {
            group: KVM_ARM_VCPU_PMU_V3_CTRL,
            attr: u64::from(KVM_ARM_VCPU_PMU_V3_INIT),
            addr: 0,
            flags: 0,
        };
        self.refused("start the performance monitor", self.fd.set_device_attr(&start))
    }

    fn registers(&self) -> Result<Vec<RegisterId>> {
        // The list's length, then the list. It grows with the host's kernel, so the length is asked for.
        let mut list = vec![0u64];
        for _ in 0..2 {
            let pointer = list.as_mut_ptr().cast::<kvm_reg_list>();
            // SAFETY: KVM reads the length, and writes it and so many registers as that said, for which there is room.
            if unsafe { ioctl_with_mut_ptr(&self.fd, KVM_GET_REG_LIST(), pointer) } == 0 {
                return Ok(list.into_iter().skip(1).map(RegisterId).collect());
            }
            let error = io::Error::last_os_error();
            let length = list.first().and_then(|length| usize::try_from(*length).ok()).unwrap_or(0);
            if error.raw_os_error() != Some(libc::E2BIG) || length > MAX_REGISTERS {
                return Err(self.list_failed(error));
            }
            list.resize(length.saturating_add(1), 0);
        }
        Err(self.list_failed(io::Error::other("it grew meanwhile")))
    }

    fn register(&self, id: RegisterId) -> Result<u64> {
        let mut value = [0; 8];
        match self.fd.get_one_reg(id.0, &mut value) {
            Ok(_) => Ok(u64::from_le_bytes(value)),
            Err(errno) => Err(self.register_failed("read", id, errno)),
        }
    }

    fn set_register(&mut self, id: RegisterId, value: u64) -> Result<()> {
        self.set_register_bytes(id, &value.to_le_bytes())
    }

    fn register_bytes(&self, id: RegisterId) -> Result<Vec<u8>> {
        let mut value = vec![0; id.size()];
        match self.fd.get_one_reg(id.0, &mut value) {
            Ok(_) => Ok(value),
            Err(errno) => Err(self.register_failed("read", id, errno)),
        }
    }

    fn set_register_bytes(&mut self, id: RegisterId, value: &[u8]) -> Result<()> {
        match self.fd.set_one_reg(id.0, value) {
            Ok(_) => Ok(()),
            Err(errno) => Err(self.register_failed("write", id, errno)),
        }
    }

    fn mp_state(&self) -> Result<MpState> {
        let state = self.refused("read whether the CPU runs", self.fd.get_mp_state())?.mp_state;
        Ok(if state == KVM_MP_STATE_STOPPED { MpState::PoweredOff } else { MpState::Runnable })
    }

    fn set_mp_state(&mut self, state: MpState) -> Result<()> {
        let mp_state = match state {
            MpState::Runnable => KVM_MP_STATE_RUNNABLE,
            MpState::PoweredOff => KVM_MP_STATE_STOPPED,
        };
        self.refused("set whether the CPU runs", self.fd.set_mp_state(kvm_mp_state { mp_state }))?;
        self.power.set(state);
        Ok(())
    }

    fn events(&self) -> Result<PendingEvents> {
        let exception = self.refused("read the pending events", self.fd.get_vcpu_events())?.exception;
        let serror = exception.serror_pending != 0;
        let syndrome = (serror && exception.serror_has_esr != 0).then_some(exception.serror_esr);
        Ok(PendingEvents { serror, serror_syndrome: syndrome })
    }

    fn set_events(&mut self, events: &PendingEvents) -> Result<()> {
        let mut kvm = kvm_vcpu_events::default();
        kvm.exception.serror_pending = events.serror.into();
        kvm.exception.serror_has_esr = events.serror_syndrome.is_some().into();
        kvm.exception.serror_esr = events.serror_syndrome.unwrap_or_default();
        self.refused("set the pending events", self.fd.set_vcpu_events(&kvm))
    }

    fn set_guest_debug(&mut self, debug: Option<&GuestDebug>) -> Result<()> {
        self.stop_for(debug)
    }

    fn can_watch(&self, breakpoints: &[HardwareBreakpoint]) -> bool {
        self.has_registers_for(breakpoints)
    }

    fn inject_breakpoint(&mut self) -> Result<()> {
        let syndrome = self.debug.syndrome();
        exception::take(self, syndrome)
    }
}
