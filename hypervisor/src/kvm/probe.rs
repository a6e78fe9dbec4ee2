//! Whether this KVM can run a stock Linux kernel at all.
//!
//! KVM on the processor's virtualization (VMX, SVM) can. A backend made of software can be loaded in its
//! place, and may run only guests made for it: a stock kernel would then hang or stop somewhere in its first
//! instructions. It is told apart by trying: a machine of one page executes an SSE instruction at the
//! highest privilege, which such a backend has to emulate and cannot. The trial takes about
//! two milliseconds, and is made only where there is reason to suspect a software backend.

use kvm_ioctls::Kvm;

/// See [`crate::Hypervisor::cannot_run_linux`].
#[cfg(target_arch = "x86_64")]
pub(super) fn cannot_run_linux(kvm: &Kvm) -> Option<String> {
    if processor_virtualizes() && !std::path::Path::new(SOFTWARE_BACKEND).exists() {
        return None;
    }
    trial::failure(kvm).map(|what| {
        format!(
            "this host's KVM is a software backend that cannot run a stock Linux kernel ({what}): use a host \
             whose processor offers VMX or SVM"
        )
    })
}

/// See [`crate::Hypervisor::cannot_run_linux`].
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn cannot_run_linux(_: &Kvm) -> Option<String> {
    None
}

/// Exists while the known software backend is loaded, which then is the only one.
#[cfg(target_arch = "x86_64")]
const SOFTWARE_BACKEND: &str = "/sys/module/kvm_pvm";

/// Whether CPUID tells of VMX or SVM.
#[cfg(target_arch = "x86_64")]
fn processor_virtualizes() -> bool {
    use std::arch::x86_64::__cpuid;
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    __cpuid(1).ecx & VMX != 0
        || (__cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & SVM != 0)
}

/// The trial itself.
#[cfg(target_arch = "x86_64")]
mod trial {
    use kvm_bindings::kvm_userspace_memory_region;
    use kvm_ioctls::{Kvm, VcpuExit};
    use std::ptr::null_mut;

    const PAGE: usize = 4096;
    /// The page that has the reset vector, 16 bytes before its end.
    const RESET_PAGE: u64 = 0xffff_f000;
    const RESET_VECTOR: usize = 0xff0;
    /// `xorps xmm0, xmm0; hlt`
    const CODE: [u8; 4] = [0x0f, 0x57, 0xc0, 0xf4];
    /// CR4.OSFXSR: SSE instructions are allowed.
    const OSFXSR: u64 = 1 << 9;

    /// How the trial failed; `None` if it succeeded, or could not be made.
    pub(super) fn failure(kvm: &Kvm) -> Option<&'static str> {
        // Before the machine, and so dropped after it.
        let page = Page::new()?;
        let vm = kvm.create_vm().ok()?;
        page.write(RESET_VECTOR, &CODE);
        let region = kvm_userspace_memory_region {
            guest_phys_addr: RESET_PAGE,
            memory_size: PAGE as u64,
            userspace_addr: page.0 as u64,
            ..Default::default()
        };
        // SAFETY: the page outlives the machine.
        unsafe { vm.set_user_memory_region(region) }.ok()?;
        let mut vcpu = vm.create_vcpu(0).ok()?;
        let mut sregs = vcpu.get_sregs().ok()?;
        sregs.cr4 |= OSFXSR;
        vcpu.set_sregs(&sregs).ok()?;
        match vcpu.run() {
            Ok(VcpuExit::InternalError) => Some("it cannot execute SSE instructions in kernel mode"),
            Ok(VcpuExit::Shutdown | VcpuExit::FailEntry(..)) => Some("it cannot run real mode"),
            _ => None,
        }
    }

    /// One page of guest memory.
    struct Page(*mut u8);

    impl Page {
        fn new() -> Option<Self> {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: makes a new mapping.
            let page =
                unsafe { libc::mmap(null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
            (page != libc::MAP_FAILED).then_some(Self(page.cast()))
        }

        fn write(&self, offset: usize, bytes: &[u8]) {
            assert!(bytes.len() <= PAGE.saturating_sub(offset));
            // SAFETY: checked to be within the page, which nothing refers to.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(offset), bytes.len()) };
        }
    }

    impl Drop for Page {
        fn drop(&mut self) {
            // SAFETY: mapped in `new` with this size.
            unsafe { libc::munmap(self.0.cast(), PAGE) };
        }
    }
}
