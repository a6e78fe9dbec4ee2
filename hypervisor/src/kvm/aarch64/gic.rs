//! KVM's GICv3: distributor, redistributors, and the ITS that translates messages of devices (Linux,
//! `Documentation/virt/kvm/devices/arm-vgic-v3.rst` and `arm-vgic-its.rst`).

use crate::aarch64::{FIRST_SPI, Gic, GicConfig};
use crate::{Error, Result};
use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_DEV_ARM_ITS_CTRL_RESET, KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_VGIC_ITS_ADDR_TYPE,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};
use machine::interrupt::InterruptController;
use std::sync::{Arc, Mutex, PoisonError};

/// A GICv3 with an ITS.
pub(in super::super) struct KvmGic {
    vm: Arc<VmFd>,
    gic: DeviceFd,
    its: Vec<DeviceFd>,
    config: GicConfig,
    /// How many sources hold each shared interrupt active.
    holders: Mutex<Vec<u32>>,
}

/// Sets an attribute of a device whose argument is a value in memory.
fn set<T>(device: &DeviceFd, group: u32, attr: u32, value: &T) -> std::result::Result<(), kvm_ioctls::Error> {
    let addr = std::ptr::from_ref(value) as u64;
    device.set_device_attr(&kvm_device_attr { group, attr: u64::from(attr), addr, flags: 0 })
}

impl KvmGic {
    /// Makes the controller of a machine that has all its CPUs.
    pub(in super::super) fn new(vm: &Arc<VmFd>, config: &GicConfig) -> Result<Self> {
        let failed = |what| move |errno: kvm_ioctls::Error| Error::Vm { what, source: errno.into() };
        let create = |type_| vm.create_device(&mut kvm_create_device { type_, fd: 0, flags: 0 });

        let gic = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3)
            .map_err(failed("make a GICv3 interrupt controller (the host's CPUs may be too old for one)"))?;
        let interrupts = FIRST_SPI + config.spis;
        set(&gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts)
            .map_err(failed("set the number of interrupts"))?;
        set(&gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &config.distributor)
            .map_err(failed("place the interrupt distributor"))?;
        // Bits 63 to 52 are the number of CPUs, 51 to 16 the address, 11 to 0 the region's number.
        let region = u64::from(config.cpus) << 52 | config.redistributors;
        set(&gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &region)
            .map_err(failed("place the interrupt redistributors"))?;
        let init =
            |device: &DeviceFd| set(device, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, &0u64);
        init(&gic).map_err(failed("start the interrupt controller"))?;

        let mut services = Vec::new();
        for address in config.its() {
            let its = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS)
                .map_err(failed("make an interrupt translation service"))?;
            set(&its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &address)
                .map_err(failed("place the interrupt translation service"))?;
            init(&its).map_err(failed("start the interrupt translation service"))?;
            services.push(its);
        }
        let holders = Mutex::new(vec![0; config.spis as usize]);
        Ok(Self { vm: Arc::clone(vm), gic, its: services, config: *config, holders })
    }

    /// Sets the level of a shared interrupt's pin.
    fn set_pin(&self, spi: u32, active: bool) {
        let irq = (KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT) | (FIRST_SPI + spi);
        // Fails only for an interrupt that there is not.
        let _ = self.vm.set_irq_line(irq, active);
    }

    fn set_register(&self, group: u32, cpu: u64, offset: u64, value: u32) -> Result<()> {
        let addr = &raw const value as u64;
        self.gic
            .set_device_attr(&kvm_device_attr { group, attr: cpu << 32 | offset, addr, flags: 0 })
            .map_err(|errno| Error::Vm { what: "reset the interrupt controller", source: errno.into() })
    }

    /// Sets registers of a distributor or redistributor that have some bits for each interrupt in `first..end`.
    fn set_all(
        &self,
        group: u32,
        cpu: u64,
        registers: &[(u64, u32, u32)],
        first: u32,
        end: u32,
    ) -> Result<()> {
        for &(base, bits, value) in registers {
            for number in (first..end).step_by((32 / bits) as usize) {
                let offset = base + u64::from(number * bits / 8);
                self.set_register(group, cpu, offset, value)?;
            }
        }
        Ok(())
    }
}

/// Affinity fields, as the interrupt controller's attributes take them, of the CPU KVM numbers `id`: 16 CPUs to a
/// group of affinity level 1.
fn affinity(id: u32) -> u64 {
    let id = u64::from(id);
    id & 0xf | (id >> 4 & 0xff) << 8 | (id >> 12 & 0xff) << 16
}

// Registers with bits for each interrupt (GIC architecture, 12.9): offset, bits an interrupt, value after power-on. A
// one written to a clearing register clears.
const CLEAR_ENABLE: (u64, u32, u32) = (0x180, 1, u32::MAX);
const CLEAR_PENDING: (u64, u32, u32) = (0x280, 1, u32::MAX);
const CLEAR_ACTIVE: (u64, u32, u32) = (0x380, 1, u32::MAX);
const GROUP: (u64, u32, u32) = (0x80, 1, u32::MAX);
const PRIORITY: (u64, u32, u32) = (0x400, 8, 0);
const CONFIGURATION: (u64, u32, u32) = (0xc00, 2, 0);

impl Gic for KvmGic {
    fn reset(&self) -> Result<()> {
        const CTLR: u64 = 0;
        /// Where a redistributor's registers for private interrupts begin.
        const PRIVATE: u64 = 0x1_0000;
        for its in &self.its {
            set(its, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_CTRL_RESET, &0u64).map_err(|errno| {
                Error::Vm { what: "reset the interrupt translation service", source: errno.into() }
            })?;
        }
        let shared = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
        self.set_register(shared, 0, CTLR, 0)?;
        let registers = [CLEAR_ENABLE, CLEAR_PENDING, CLEAR_ACTIVE, GROUP, PRIORITY, CONFIGURATION];
        self.set_all(shared, 0, &registers, FIRST_SPI, FIRST_SPI + self.config.spis)?;
        for cpu in (0..self.config.cpus).map(affinity) {
            let private = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
            self.set_register(private, cpu, CTLR, 0)?;
            let registers = registers.map(|(base, bits, value)| (PRIVATE + base, bits, value));
            // Private interrupts are configured by the CPU.
            self.set_all(private, cpu, &registers[..5], 0, FIRST_SPI)?;
        }
        Ok(())
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
