//! One machine on KVM: memory slots, doorbells (ioeventfd), interrupt sources.

#[cfg(target_arch = "x86_64")]
use super::routing::KvmMsi;
use super::routing::Routes;
use super::vcpu::KvmVcpu;
use crate::{AddressSpace, Error, MemorySlot, Result, Vcpu, Vm};
use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVMIO, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch,
    kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use machine::doorbell::DoorbellAddress;
use machine::interrupt::{MsiAllocator, MsiSource};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;
#[cfg(target_arch = "aarch64")]
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

// Called directly, since kvm-ioctls cannot express "any value, of this size".
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);

/// A machine on KVM.
pub(super) struct KvmVm {
    fd: Arc<VmFd>,
    routes: Arc<Routes>,
    /// The I/O APIC's.
    #[cfg(target_arch = "x86_64")]
    pins: Vec<OnceLock<Arc<KvmMsi>>>,
    /// What CPUs ask of the firmware about each other comes to the monitor.
    #[cfg(target_arch = "aarch64")]
    forwards_calls: AtomicBool,
}

impl KvmVm {
    /// Sets up a new machine.
    pub(super) fn new(fd: VmFd) -> Result<Self> {
        super::native::set_up_vm(&fd)?;
        #[cfg(target_arch = "x86_64")]
        let pins = crate::x86_64::IOAPIC_PINS;
        #[cfg(not(target_arch = "x86_64"))]
        let pins = 0;
        let fd = Arc::new(fd);
        let routes = Routes::new(fd.clone(), pins)
            .map_err(|source| Error::Vm { what: "make the table of interrupt routes", source })?;
        Ok(Self {
            fd,
            routes: Arc::new(routes),
            #[cfg(target_arch = "x86_64")]
            pins: (0..pins).map(|_| OnceLock::new()).collect(),
            #[cfg(target_arch = "aarch64")]
            forwards_calls: AtomicBool::new(false),
        })
    }

    fn doorbell(
        &self,
        verb: &'static str,
        flags: u32,
        space: AddressSpace,
        base: u64,
        doorbell: &DoorbellAddress,
    ) -> Result<()> {
        let address = base.wrapping_add(doorbell.offset);
        let failed = |source| Error::Doorbell { verb, space, address, source };
        let mut flags = flags;
        if space == AddressSpace::Port {
            flags |= 1 << kvm_ioeventfd_flag_nr_pio;
        }
        if doorbell.value.is_some() {
            if doorbell.size.is_none() {
                let reason = "a doorbell that rings for one value needs an access size";
                return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, reason)));
            }
            flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
        }
        let argument = kvm_ioeventfd {
            datamatch: doorbell.value.unwrap_or(0),
            addr: address,
            len: doorbell.size.map_or(0, u32::from),
            fd: doorbell.doorbell.as_raw_fd(),
            flags,
            ..Default::default()
        };
        // SAFETY: the request takes a pointer to this structure, which KVM only reads.
        match unsafe { ioctl_with_ref(&*self.fd, KVM_IOEVENTFD(), &argument) } {
            0 => Ok(()),
            _ => Err(failed(io::Error::last_os_error())),
        }
    }
}

impl MsiAllocator for KvmVm {
    fn allocate(&self) -> io::Result<Arc<dyn MsiSource>> {
        Ok(self.routes.allocate()?)
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>> {
        let failed = |source| Error::CreateVcpu { id, source };
        let fd = self.fd.create_vcpu(u64::from(id)).map_err(|errno| failed(errno.into()))?;
        let vcpu = KvmVcpu::new(id, fd, Arc::clone(&self.fd)).map_err(failed)?;
        #[cfg(target_arch = "aarch64")]
        let vcpu = vcpu.with_calls_forwarded(self.forwards_calls.load(Ordering::Relaxed));
        Ok(Box::new(vcpu))
    }

    #[cfg(target_arch = "aarch64")]
    fn forward_cpu_calls(&self) -> Result<bool> {
        let forwards = super::native::forward_calls(&self.fd)?;
        self.forwards_calls.store(forwards, Ordering::Relaxed);
        Ok(forwards)
    }

    unsafe fn map_memory(&self, slot: MemorySlot) -> Result<()> {
        let mut flags = 0;
        if slot.readonly {
            flags |= KVM_MEM_READONLY;
        }
        if slot.log_dirty {
            flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        let region = kvm_userspace_memory_region {
            slot: slot.slot,
            flags,
            guest_phys_addr: slot.guest_address,
            memory_size: slot.size,
            userspace_addr: slot.host_address as u64,
        };
        // SAFETY: the caller keeps the host memory mapped for as long as the slot has it.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(|errno| Error::MapMemory {
            slot: slot.slot,
            guest_address: slot.guest_address,
            size: slot.size,
            source: errno.into(),
        })
    }

    fn unmap_memory(&self, slot: u32) -> Result<()> {
        let region = kvm_userspace_memory_region { slot, ..Default::default() };
        // SAFETY: a region of size zero takes memory from the guest and gives none.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(|errno| Error::UnmapMemory { slot, source: errno.into() })
    }

    fn attach_doorbell(&self, space: AddressSpace, base: u64, doorbell: &DoorbellAddress) -> Result<()> {
        self.doorbell("attach", 0, space, base, doorbell)
    }

    fn detach_doorbell(&self, space: AddressSpace, base: u64, doorbell: &DoorbellAddress) -> Result<()> {
        self.doorbell("detach", 1 << kvm_ioeventfd_flag_nr_deassign, space, base, doorbell)
    }

    #[cfg(target_arch = "x86_64")]
    fn ioapic_pin(&self, pin: u32) -> Result<Arc<dyn MsiSource>> {
        let slot = usize::try_from(pin).ok().and_then(|at| self.pins.get(at));
        let slot = slot.ok_or(Error::NoSuchPin { pin, pins: crate::x86_64::IOAPIC_PINS })?;
        Ok(Arc::clone(slot.get_or_init(|| self.routes.pin(pin))) as Arc<dyn MsiSource>)
    }

    #[cfg(target_arch = "aarch64")]
    fn create_gic(&self, config: &crate::aarch64::GicConfig) -> Result<Arc<dyn crate::aarch64::Gic>> {
        Ok(Arc::new(super::aarch64::gic::KvmGic::new(&self.fd, config)?))
    }
}
