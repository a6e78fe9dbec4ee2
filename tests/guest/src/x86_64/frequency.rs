//! The frequency of the time-stamp counter: what KVM's paravirtual clock says (which states the scale exactly), else CPUID leaf
//! 0x15 or 0x40000010.

use crate::{cpu, memory};

/// Where it may be known from.
pub const SOURCES: &[&str] = &["kvm-clock", "cpuid-15", "cpuid-40000010"];
const SYSTEM_TIME_MSR: u32 = 0x4b56_4d01;

/// The index in [`SOURCES`] and the frequency in kHz.
pub fn khz() -> Option<(u64, u64)> {
    let known = [paravirtual_khz, leaf_15_khz, leaf_40000010_khz];
    (0..).zip(known).map(|(source, khz)| (source, khz())).find(|&(_, khz)| khz != 0)
}

/// KVM fills a `pvclock_vcpu_time_info`: nanoseconds = (cycles << shift) * multiplier >> 32.
fn paravirtual_khz() -> u64 {
    let signature = cpu::cpuid(0x4000_0000, 0);
    if [signature.ebx, signature.ecx, signature.edx] != [0x4b4d_564b, 0x564b_4d56, 0x4d] {
        return 0;
    }
    if cpu::cpuid(0x4000_0001, 0).eax & 1 << 3 == 0 {
        return 0;
    }
    let area = memory::permanent(64);
    cpu::write_msr(SYSTEM_TIME_MSR, area | 1);
    let multiplier = u64::from(cpu::read32(area + 24));
    let shift = cpu::read8(area + 28) as i8;
    cpu::write_msr(SYSTEM_TIME_MSR, 0);
    if multiplier == 0 {
        return 0;
    }
    let per_million = (1_000_000u128 << 32) / u128::from(multiplier);
    let khz = if shift < 0 { per_million << -shift } else { per_million >> shift };
    khz as u64
}

fn leaf_15_khz() -> u64 {
    if cpu::cpuid(0, 0).eax < 0x15 {
        return 0;
    }
    let leaf = cpu::cpuid(0x15, 0);
    match leaf.eax {
        0 => 0,
        denominator => u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(denominator) / 1000,
    }
}

fn leaf_40000010_khz() -> u64 {
    if cpu::cpuid(0x4000_0000, 0).eax < 0x4000_0010 {
        return 0;
    }
    u64::from(cpu::cpuid(0x4000_0010, 0).eax)
}
