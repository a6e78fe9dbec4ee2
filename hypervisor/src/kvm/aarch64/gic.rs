//! KVM's GICv3: distributor, redistributors, and the ITS that translates messages of devices (Linux,
//! `Documentation/virt/kvm/devices/arm-vgic-v3.rst` and `arm-vgic-its.rst`).

use super::attributes::set;
use super::gic_hold::Held;
use crate::aarch64::{FIRST_SPI, Gic, GicConfig, GicState};
use crate::{Error, Result};
use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_ITS_ADDR_TYPE,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};
use machine::interrupt::InterruptController;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// A GICv3 with an ITS.
pub(in super::super) struct KvmGic {
    vm: Arc<VmFd>,
    pub(super) gic: DeviceFd,
    pub(super) its: Vec<DeviceFd>,
    pub(super) config: GicConfig,
    /// How many sources hold each shared interrupt active.
    holders: Mutex<Vec<u32>>,
    pub(super) held: Held,
}

impl KvmGic {
    /// Makes the controller of a machine that has all its CPUs.
    pub(in super::super) fn new(vm: &Arc<VmFd>, config: &GicConfig) -> Result<Self> {
        let failed = |what| move |errno: kvm_ioctls::Error| Error::Vm { what, source: errno.into() };
        let create = |type_| vm.create_device(&mut kvm_create_device { type_, fd: 0, flags: 0 });

        let gic = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3)
            .map_err(failed("make a GICv3 interrupt controller (the host's CPUs may be too old for one)"))?;
        let interrupts = FIRST_SPI.saturating_add(config.spis);
        set(&gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, interrupts.into())
            .map_err(failed("set the number of interrupts"))?;
        set(&gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST.into(), config.distributor)
            .map_err(failed("place the interrupt distributor"))?;
        // Bits 63 to 52 are the number of CPUs, 51 to 16 the address, 11 to 0 the region's number.
        let region = u64::from(config.cpus) << 52 | config.redistributors;
        set(&gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION.into(), region)
            .map_err(failed("place the interrupt redistributors"))?;
        let init =
            |device: &DeviceFd| set(device, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), 0);
        init(&gic).map_err(failed("start the interrupt controller"))?;

        let mut services = Vec::new();
        for address in config.its() {
            let its = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS)
                .map_err(failed("make an interrupt translation service"))?;
            set(&its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE.into(), address)
                .map_err(failed("place the interrupt translation service"))?;
            init(&its).map_err(failed("start the interrupt translation service"))?;
            services.push(its);
        }
        let holders = Mutex::new(vec![0; config.spis as usize]);
        Ok(Self { vm: Arc::clone(vm), gic, its: services, config: *config, holders, held: Held::default() })
    }

    /// Sets the level of a shared interrupt's pin.
    fn set_pin(&self, spi: u32, active: bool) {
        let irq = (KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT) | FIRST_SPI.saturating_add(spi);
        // Fails only for an interrupt that there is not.
        let _ = self.vm.set_irq_line(irq, active);
    }
}

impl Gic for KvmGic {
    fn reset(&self) -> Result<()> {
        self.reset_all()
    }

    fn save(&self) -> Result<GicState> {
        self.save_all()
    }

    fn restore(&self, state: &GicState) -> Result<()> {
        self.restore_all(state)
    }

    fn hold_interrupts(&self, cpus: &BTreeSet<u32>) -> Result<()> {
        self.hold(cpus)
    }
}

impl InterruptController for KvmGic {
    fn set_level(&self, gsi: u32, active: bool) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(holders) = usize::try_from(gsi).ok().and_then(|at| holders.get_mut(at)) else { return };
        let before = *holders;
        *holders = if active { before.saturating_add(1) } else { before.saturating_sub(1) };
        if (before == 0) != (*holders == 0) {
            self.set_pin(gsi, active);
        }
    }

    fn pulse(&self, gsi: u32) {
        self.set_pin(gsi, true);
        self.set_pin(gsi, false);
    }
}
