//! Saving and restoring KVM's GICv3 (Linux, `Documentation/virt/kvm/devices/arm-vgic-v3.rst` and `arm-vgic-its.rst`), and
//! resetting it, for which KVM has no call.

use super::attributes;
use super::gic::KvmGic;
use crate::aarch64::{
    CpuInterfaceState, FIRST_SPI, GicCpuState, GicState, InterruptsState, ItsState, RegisterId,
};
use crate::{Error, Result};
use kvm_bindings::{
    KVM_DEV_ARM_ITS_CTRL_RESET, KVM_DEV_ARM_ITS_RESTORE_TABLES, KVM_DEV_ARM_ITS_SAVE_TABLES,
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_ITS_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, VGIC_LEVEL_INFO_LINE_LEVEL,
};
use kvm_ioctls::DeviceFd;

// Registers of the distributor and of redistributors (GIC architecture, 12.9 and 12.11). Those of KVM's that say nothing
// (GICD_STATUSR, GICR_STATUSR, GICR_WAKER) are left alone.
const GICD_CTLR: u64 = 0;
const GICD_IIDR: u64 = 8;
const GICD_IROUTER: u64 = 0x6000;
const GICR_CTLR: u64 = 0;
const GICR_PROPBASER: u64 = 0x70;
const GICR_PENDBASER: u64 = 0x78;
/// Where a redistributor's registers for private interrupts begin.
const GICR_SGI: u64 = 0x1_0000;

/// A register with bits for each interrupt: its offset, and bits an interrupt.
type Bank = (u64, u32);
const IGROUPR: Bank = (0x80, 1);
const ISENABLER: Bank = (0x100, 1);
const ICENABLER: Bank = (0x180, 1);
/// What is read and written is the latch, of which a write sets all bits; ICPENDR has none.
const ISPENDR: Bank = (0x200, 1);
const ISACTIVER: Bank = (0x300, 1);
const ICACTIVER: Bank = (0x380, 1);
const IPRIORITYR: Bank = (0x400, 8);
const ICFGR: Bank = (0xc00, 2);

// Registers of a translation service (GIC architecture, 12.19).
const GITS_CTLR: u64 = 0;
const GITS_IIDR: u64 = 4;
const GITS_CBASER: u64 = 0x80;
const GITS_CWRITER: u64 = 0x88;
const GITS_CREADR: u64 = 0x90;
const GITS_BASER: u64 = 0x100;
const GITS_BASERS: usize = 8;

// Registers of a CPU (GIC architecture, 12.2).
const ICC_PMR: RegisterId = RegisterId::system(3, 0, 4, 6, 0);
const ICC_BPR0: RegisterId = RegisterId::system(3, 0, 12, 8, 3);
const ICC_BPR1: RegisterId = RegisterId::system(3, 0, 12, 12, 3);
const ICC_CTLR: RegisterId = RegisterId::system(3, 0, 12, 12, 4);
const ICC_SRE: RegisterId = RegisterId::system(3, 0, 12, 12, 5);
pub(super) const ICC_IGRPEN0: RegisterId = RegisterId::system(3, 0, 12, 12, 6);
pub(super) const ICC_IGRPEN1: RegisterId = RegisterId::system(3, 0, 12, 12, 7);

const fn icc_ap0r(n: u64) -> RegisterId {
    RegisterId::system(3, 0, 12, 8, 4 | n)
}

const fn icc_ap1r(n: u64) -> RegisterId {
    RegisterId::system(3, 0, 12, 9, n)
}

/// How many registers of active priorities there are, by ICC_CTLR_EL1: one for 5 bits of priority, two for 6, four for 7.
fn active_priority_registers(ctlr: u64) -> u64 {
    // The field has the number of bits less one.
    1 << (ctlr >> 8 & 7).saturating_sub(4).min(2)
}

/// One of the controller's devices, registers of which are accessed.
struct Frame<'a> {
    device: &'a DeviceFd,
    group: u32,
    /// What its attributes have beside the offset: the CPU.
    cpu: u64,
    /// Of its registers for interrupts.
    base: u64,
    /// The first of its interrupts.
    first: u32,
    /// After the last of them.
    end: u32,
}

impl Frame<'_> {
    fn read(&self, offset: u64) -> Result<u32> {
        Ok(access("read register", offset, attributes::get(self.device, self.group, self.cpu | offset))?
            as u32)
    }

    fn write(&self, offset: u64, value: u32) -> Result<()> {
        access(
            "write register",
            offset,
            attributes::set(self.device, self.group, self.cpu | offset, value.into()),
        )
    }

    /// A register of 64 bits, whose halves KVM has apart.
    fn read64(&self, offset: u64) -> Result<u64> {
        Ok(u64::from(self.read(offset)?) | u64::from(self.read(offset.saturating_add(4))?) << 32)
    }

    fn write64(&self, offset: u64, value: u64) -> Result<()> {
        self.write(offset, value as u32)?;
        self.write(offset.saturating_add(4), (value >> 32) as u32)
    }

    /// Where a bank has the words of the interrupts.
    fn words(&self, (offset, bits): Bank) -> impl Iterator<Item = u64> + use<> {
        let base = self.base.saturating_add(offset);
        (self.first..self.end)
            .step_by(32_u32.checked_div(bits).unwrap_or(32) as usize)
            .map(move |first| base.saturating_add((first.saturating_mul(bits) / 8).into()))
    }

    fn read_bank(&self, bank: Bank) -> Result<Vec<u32>> {
        self.words(bank).map(|offset| self.read(offset)).collect()
    }

    fn write_bank(&self, bank: Bank, words: &[u32]) -> Result<()> {
        self.words(bank).zip(words).try_for_each(|(offset, word)| self.write(offset, *word))
    }

    fn fill_bank(&self, bank: Bank, word: u32) -> Result<()> {
        self.words(bank).try_for_each(|offset| self.write(offset, word))
    }

    /// The attribute for the levels of the 32 pins from `first` on.
    fn level(&self, first: u32) -> u64 {
        let kind = u64::from(VGIC_LEVEL_INFO_LINE_LEVEL) << KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT;
        self.cpu | kind | u64::from(first)
    }

    fn read_interrupts(&self) -> Result<InterruptsState> {
        let level = |first| {
            let level = attributes::get(self.device, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, self.level(first));
            access("read the level of pin", first.into(), level).map(|word| word as u32)
        };
        Ok(InterruptsState {
            igroupr: self.read_bank(IGROUPR)?,
            isenabler: self.read_bank(ISENABLER)?,
            ispendr: self.read_bank(ISPENDR)?,
            isactiver: self.read_bank(ISACTIVER)?,
            ipriorityr: self.read_bank(IPRIORITYR)?,
            icfgr: self.read_bank(ICFGR)?,
            line_level: (self.first..self.end).step_by(32).map(level).collect::<Result<_>>()?,
        })
    }

    /// Sets what there is of interrupts that were reset. What they are comes before what is pending, and that they are enabled
    /// last.
    fn write_interrupts(&self, state: &InterruptsState) -> Result<()> {
        self.write_bank(IGROUPR, &state.igroupr)?;
        self.write_bank(ICFGR, &state.icfgr)?;
        self.write_bank(IPRIORITYR, &state.ipriorityr)?;
        for (first, level) in (self.first..self.end).step_by(32).zip(&state.line_level) {
            let attr = self.level(first);
            let set = attributes::set(self.device, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, attr, (*level).into());
            access("set the level of pin", first.into(), set)?;
        }
        self.write_bank(ISPENDR, &state.ispendr)?;
        self.write_bank(ISACTIVER, &state.isactiver)?;
        self.write_bank(ISENABLER, &state.isenabler)
    }

    fn reset_interrupts(&self) -> Result<()> {
        self.fill_bank(ICENABLER, u32::MAX)?;
        self.fill_bank(ISPENDR, 0)?;
        self.fill_bank(ICACTIVER, u32::MAX)?;
        self.fill_bank(IGROUPR, u32::MAX)?;
        self.fill_bank(IPRIORITYR, 0)?;
        // KVM does not let private ones be changed, and skips these.
        self.fill_bank(ICFGR, 0)
    }
}

fn access<T>(
    verb: &'static str,
    offset: u64,
    result: std::result::Result<T, kvm_ioctls::Error>,
) -> Result<T> {
    result.map_err(|errno| Error::Gic { verb, what: format!("{offset:#x}"), source: errno.into() })
}

/// Affinity fields, as the interrupt controller's attributes take them, of the CPU KVM numbers `id`: 16 CPUs to a
/// group of affinity level 1.
fn affinity(id: u32) -> u64 {
    let id = u64::from(id);
    id & 0xf | (id >> 4 & 0xff) << 8 | (id >> 12 & 0xff) << 16
}

impl KvmGic {
    fn distributor(&self) -> Frame<'_> {
        let (first, end) = (FIRST_SPI, FIRST_SPI.saturating_add(self.config.spis));
        Frame { device: &self.gic, group: KVM_DEV_ARM_VGIC_GRP_DIST_REGS, cpu: 0, base: 0, first, end }
    }

    fn redistributor(&self, cpu: u32) -> Frame<'_> {
        let (group, cpu) = (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, affinity(cpu) << 32);
        Frame { device: &self.gic, group, cpu, base: GICR_SGI, first: 0, end: FIRST_SPI }
    }

    pub(super) fn icc(&self, cpu: u32, register: RegisterId) -> Result<u64> {
        let value =
            attributes::get(&self.gic, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, icc_attribute(cpu, register));
        access("read CPU register", register.0, value)
    }

    pub(super) fn set_icc(&self, cpu: u32, register: RegisterId, value: u64) -> Result<()> {
        let attr = icc_attribute(cpu, register);
        let set = attributes::set(&self.gic, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attr, value);
        access("write CPU register", register.0, set)
    }

    fn save_interface(&self, cpu: u32) -> Result<CpuInterfaceState> {
        let read = |register| self.icc(cpu, register);
        let ctlr = read(ICC_CTLR)?;
        let count = active_priority_registers(ctlr);
        Ok(CpuInterfaceState {
            ctlr,
            sre: read(ICC_SRE)?,
            pmr: read(ICC_PMR)?,
            bpr0: read(ICC_BPR0)?,
            bpr1: read(ICC_BPR1)?,
            ap0r: (0..count).map(|n| read(icc_ap0r(n))).collect::<Result<_>>()?,
            ap1r: (0..count).map(|n| read(icc_ap1r(n))).collect::<Result<_>>()?,
            igrpen0: self.held.value(cpu, ICC_IGRPEN0, read(ICC_IGRPEN0)?),
            igrpen1: self.held.value(cpu, ICC_IGRPEN1, read(ICC_IGRPEN1)?),
        })
    }

    fn restore_interface(&self, cpu: u32, state: &CpuInterfaceState) -> Result<()> {
        let write = |register, value| self.set_icc(cpu, register, value);
        write(ICC_SRE, state.sre)?;
        // First of all, since it tells how many bits priorities have in the others.
        if state.ctlr != 0 {
            write(ICC_CTLR, state.ctlr)?;
        }
        write(ICC_PMR, state.pmr)?;
        write(ICC_BPR0, state.bpr0)?;
        write(ICC_BPR1, state.bpr1)?;
        (0..).zip(&state.ap0r).try_for_each(|(n, value)| write(icc_ap0r(n), *value))?;
        (0..).zip(&state.ap1r).try_for_each(|(n, value)| write(icc_ap1r(n), *value))?;
        write(ICC_IGRPEN0, state.igrpen0)?;
        write(ICC_IGRPEN1, state.igrpen1)
    }

    /// The interface keeps what the guest had set when its CPU is reset: an interrupt that was being handled would hold back
    /// others of its priority for good.
    fn reset_interface(&self, cpu: u32) -> Result<()> {
        /// EOImode and CBPR; the rest tells what there is.
        const SETTINGS: u64 = 3;
        let ctlr = self.icc(cpu, ICC_CTLR)? & !SETTINGS;
        let none = vec![0; active_priority_registers(ctlr) as usize];
        let (ap0r, ap1r) = (none.clone(), none);
        self.restore_interface(cpu, &CpuInterfaceState { ctlr, ap0r, ap1r, ..Default::default() })
    }

    fn save_cpu(&self, cpu: u32) -> Result<GicCpuState> {
        let registers = self.redistributor(cpu);
        Ok(GicCpuState {
            gicr_ctlr: registers.read(GICR_CTLR)?,
            gicr_propbaser: registers.read64(GICR_PROPBASER)?,
            gicr_pendbaser: registers.read64(GICR_PENDBASER)?,
            private: registers.read_interrupts()?,
            interface: self.save_interface(cpu)?,
        })
    }

    fn restore_cpu(&self, cpu: u32, state: &GicCpuState) -> Result<()> {
        let registers = self.redistributor(cpu);
        // Message-signalled interrupts are enabled after it is known where they are: it cannot be set later.
        registers.write64(GICR_PROPBASER, state.gicr_propbaser)?;
        registers.write64(GICR_PENDBASER, state.gicr_pendbaser)?;
        registers.write(GICR_CTLR, state.gicr_ctlr)?;
        registers.write_interrupts(&state.private)?;
        self.restore_interface(cpu, &state.interface)
    }

    pub(super) fn save_all(&self) -> Result<GicState> {
        let distributor = self.distributor();
        let routers = (distributor.first..distributor.end).map(router);
        let state = GicState {
            gicd_iidr: distributor.read(GICD_IIDR)?,
            gicd_ctlr: distributor.read(GICD_CTLR)?,
            shared: distributor.read_interrupts()?,
            gicd_irouter: routers.map(|offset| distributor.read64(offset)).collect::<Result<_>>()?,
            cpus: (0..self.config.cpus).map(|cpu| self.save_cpu(cpu)).collect::<Result<_>>()?,
            its: self.its.iter().map(save_its).collect::<Result<_>>()?,
        };
        control(
            &self.gic,
            KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES,
            "write the guest's tables of pending interrupts",
        )?;
        Ok(state)
    }

    pub(super) fn restore_all(&self, state: &GicState) -> Result<()> {
        state.check(self.config.spis, self.config.cpus, self.config.its_count)?;
        self.reset_all()?;
        let distributor = self.distributor();
        // Before all else: it decides what the others mean.
        if state.gicd_iidr != 0 {
            distributor.write(GICD_IIDR, state.gicd_iidr)?;
        }
        for (number, route) in (distributor.first..).zip(&state.gicd_irouter) {
            distributor.write64(router(number), *route)?;
        }
        // Before what is pending: KVM passes on to CPUs only what becomes pending while the distributor is enabled.
        distributor.write(GICD_CTLR, state.gicd_ctlr)?;
        distributor.write_interrupts(&state.shared)?;
        (0..).zip(&state.cpus).try_for_each(|(cpu, state)| self.restore_cpu(cpu, state))?;
        self.its.iter().zip(&state.its).try_for_each(|(its, state)| restore_its(its, state))
    }

    pub(super) fn reset_all(&self) -> Result<()> {
        self.held.forget();
        for its in &self.its {
            control(its, KVM_DEV_ARM_ITS_CTRL_RESET, "reset an interrupt translation service")?;
        }
        let distributor = self.distributor();
        distributor.write(GICD_CTLR, 0)?;
        distributor.reset_interrupts()?;
        for cpu in 0..self.config.cpus {
            let registers = self.redistributor(cpu);
            registers.write(GICR_CTLR, 0)?;
            registers.reset_interrupts()?;
            self.reset_interface(cpu)?;
        }
        Ok(())
    }
}

/// The attribute of a CPU's register: its number's lower half has the fields of the instruction.
fn icc_attribute(cpu: u32, register: RegisterId) -> u64 {
    affinity(cpu) << 32 | register.0 & 0xffff
}

fn its_register(its: &DeviceFd, offset: u64) -> Result<u64> {
    let value = attributes::get(its, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, offset);
    access("read translation service register", offset, value)
}

fn set_its_register(its: &DeviceFd, offset: u64, value: u64) -> Result<()> {
    let set = attributes::set(its, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, offset, value);
    access("write translation service register", offset, set)
}

/// Has a device do something.
fn control(device: &DeviceFd, attr: u32, what: &'static str) -> Result<()> {
    attributes::set(device, KVM_DEV_ARM_VGIC_GRP_CTRL, attr.into(), 0)
        .map_err(|errno| Error::Vm { what, source: errno.into() })
}

/// Where the shared interrupt's route is.
fn router(number: u32) -> u64 {
    GICD_IROUTER.saturating_add(u64::from(number) << 3)
}

fn basers() -> impl Iterator<Item = u64> {
    (GITS_BASER..).step_by(8).take(GITS_BASERS)
}

fn save_its(its: &DeviceFd) -> Result<ItsState> {
    let read = |offset| its_register(its, offset);
    let state = ItsState {
        iidr: read(GITS_IIDR)? as u32,
        ctlr: read(GITS_CTLR)? as u32,
        cbaser: read(GITS_CBASER)?,
        cwriter: read(GITS_CWRITER)?,
        creadr: read(GITS_CREADR)?,
        baser: basers().map(read).collect::<Result<_>>()?,
    };
    control(its, KVM_DEV_ARM_ITS_SAVE_TABLES, "write the tables of an interrupt translation service")?;
    Ok(state)
}

/// Sets a translation service that was reset, in the order that KVM documents.
fn restore_its(its: &DeviceFd, state: &ItsState) -> Result<()> {
    let write = |offset, value| set_its_register(its, offset, value);
    // Setting it sets the other two of the command queue back.
    write(GITS_CBASER, state.cbaser)?;
    write(GITS_CREADR, state.creadr)?;
    write(GITS_CWRITER, state.cwriter)?;
    basers().zip(&state.baser).try_for_each(|(offset, value)| write(offset, *value))?;
    if state.iidr != 0 {
        write(GITS_IIDR, state.iidr.into())?;
    }
    control(its, KVM_DEV_ARM_ITS_RESTORE_TABLES, "read the tables of an interrupt translation service")?;
    write(GITS_CTLR, state.ctlr.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_have_the_fields_of_the_instruction_and_the_cpu() {
        // op0 3, op1 0, CRn 12, CRm 12, op2 7: ICC_IGRPEN1_EL1.
        assert_eq!(icc_attribute(17, ICC_IGRPEN1), 0x101 << 32 | 0xc667);
        assert_eq!([5, 6, 7].map(|bits: u64| active_priority_registers((bits - 1) << 8)), [1, 2, 4]);
        assert_eq!(icc_ap0r(3).0 & 7, 7);
    }
}
