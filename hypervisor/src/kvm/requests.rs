//! The requests that the backend makes of KVM, for the filters of those who confine its threads.
//!
//! A request is known by its number: what data goes which way, of what size, and a number within KVM's.

use kvm_bindings::{
    kvm_device_attr, kvm_ioeventfd, kvm_irq_level, kvm_irq_routing, kvm_irqfd, kvm_userspace_memory_region,
};

/// Which way data goes (`_IOC_NONE` and so on).
const NONE: u64 = 0;
const IN: u64 = 1;
const OUT: u64 = 2;
const BOTH: u64 = IN | OUT;

const fn request<Data>(direction: u64, number: u64) -> u64 {
    direction << 30 | (size_of::<Data>() as u64) << 16 | (kvm_bindings::KVMIO as u64) << 8 | number
}

/// What delivers an interrupt, and where to: asked by whoever sets one up or drops it.
pub const INTERRUPT: &[u64] = &[request::<kvm_irq_routing>(IN, 0x6a), request::<kvm_irqfd>(IN, 0x76)];

/// The level of a wired interrupt, where the kernel has the interrupt controller.
pub const LINE: &[u64] = &[request::<kvm_irq_level>(IN, 0x61)];

/// State of the interrupt controller, where the kernel has it.
pub const CONTROLLER: &[u64] = &[request::<kvm_device_attr>(IN, 0xe1), request::<kvm_device_attr>(IN, 0xe2)];

/// Doorbells: asked by whoever maps devices.
pub const DOORBELL: &[u64] = &[request::<kvm_ioeventfd>(IN, 0x79)];

/// Making a CPU.
pub const CREATE_CPU: &[u64] = &[request::<()>(NONE, 0x41)];

/// Giving memory to the guest, and taking it.
pub const MEMORY: &[u64] = &[request::<kvm_userspace_memory_region>(IN, 0x46)];

/// Running a CPU.
pub const RUN: &[u64] = &[request::<()>(NONE, 0x80)];

/// A CPU's state.
#[cfg(target_arch = "x86_64")]
pub const CPU_STATE: &[u64] = {
    use kvm_bindings::*;
    &[
        // Whether the XSAVE area is larger than it used to be.
        request::<()>(NONE, 0x03),
        request::<kvm_regs>(OUT, 0x81),
        request::<kvm_regs>(IN, 0x82),
        request::<kvm_sregs>(OUT, 0x83),
        request::<kvm_sregs>(IN, 0x84),
        request::<kvm_msrs>(BOTH, 0x88),
        request::<kvm_msrs>(IN, 0x89),
        request::<kvm_fpu>(OUT, 0x8c),
        request::<kvm_fpu>(IN, 0x8d),
        request::<kvm_lapic_state>(OUT, 0x8e),
        request::<kvm_lapic_state>(IN, 0x8f),
        request::<kvm_cpuid2>(IN, 0x90),
        request::<kvm_mp_state>(OUT, 0x98),
        request::<kvm_mp_state>(IN, 0x99),
        // NMI.
        request::<()>(NONE, 0x9a),
        // What a debugger asks for.
        request::<kvm_guest_debug>(IN, 0x9b),
        request::<kvm_vcpu_events>(OUT, 0x9f),
        request::<kvm_vcpu_events>(IN, 0xa0),
        request::<kvm_debugregs>(OUT, 0xa1),
        request::<kvm_debugregs>(IN, 0xa2),
        // Frequency of the time-stamp counter.
        request::<()>(NONE, 0xa2),
        request::<()>(NONE, 0xa3),
        request::<kvm_xsave>(OUT, 0xa4),
        request::<kvm_xsave>(IN, 0xa5),
        request::<kvm_xcrs>(OUT, 0xa6),
        request::<kvm_xcrs>(IN, 0xa7),
        request::<kvm_xsave>(OUT, 0xcf),
    ]
};

/// A CPU's state.
#[cfg(target_arch = "aarch64")]
pub const CPU_STATE: &[u64] = {
    use kvm_bindings::*;
    &[
        // How many breakpoint registers there are.
        request::<()>(NONE, 0x03),
        request::<kvm_mp_state>(OUT, 0x98),
        request::<kvm_mp_state>(IN, 0x99),
        // What a debugger asks for.
        request::<kvm_guest_debug>(IN, 0x9b),
        request::<kvm_vcpu_events>(OUT, 0x9f),
        request::<kvm_vcpu_events>(IN, 0xa0),
        request::<kvm_one_reg>(IN, 0xab),
        request::<kvm_one_reg>(IN, 0xac),
        // The host's kind of CPU, and becoming one: a reset.
        request::<kvm_vcpu_init>(IN, 0xae),
        request::<kvm_vcpu_init>(OUT, 0xaf),
        request::<kvm_reg_list>(BOTH, 0xb0),
        // Vector lengths are settled.
        request::<i32>(IN, 0xc2),
        // The performance monitor.
        request::<kvm_device_attr>(IN, 0xe1),
    ]
};

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use super::*;

    /// The kernel's numbers, as `strace -X raw` shows them.
    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(INTERRUPT, [0x4008_ae6a, 0x4020_ae76]);
        assert_eq!(DOORBELL, [0x4040_ae79]);
        assert_eq!(RUN, [0xae80]);
        assert_eq!((CREATE_CPU, MEMORY), ([0xae41].as_slice(), [0x4020_ae46].as_slice()));
        for known in [
            0xae03,
            0x8090_ae81,
            0x4090_ae82,
            0x8138_ae83,
            0x4138_ae84,
            0xc008_ae88,
            0x4008_ae89,
            0x4008_ae90,
            0x8400_ae8e,
            0x4400_ae8f,
            0x8004_ae98,
            0x4004_ae99,
            0x4048_ae9b,
            0x8040_ae9f,
            0x4040_aea0,
            0x4080_aea2,
            0x9000_aea4,
            0x5000_aea5,
            0x4188_aea7,
        ] {
            assert!(CPU_STATE.contains(&known), "{known:#x}");
        }
    }
}
