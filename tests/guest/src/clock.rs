//! Time from the time-stamp counter.
//!
//! Its frequency comes from, in this order: `tsc_khz=` on the command line, KVM's paravirtual clock (which states the
//! scale exactly), CPUID leaves 0x15 and 0x40000010. Without any of them, times are reported as if it were 1 GHz and
//! `clock source=none` says so.

use crate::{cpu, memory};
use core::sync::atomic::{AtomicU64, Ordering};

const SYSTEM_TIME_MSR: u32 = 0x4b56_4d01;
static KHZ: AtomicU64 = AtomicU64::new(0);
static GIVEN_KHZ: AtomicU64 = AtomicU64::new(0);
static SOURCE: AtomicU64 = AtomicU64::new(0);
const SOURCES: [&str; 5] = ["none", "command-line", "kvm-clock", "cpuid-15", "cpuid-40000010"];

/// Notes the frequency given on the command line, if any. The rest waits until a task needs the clock: the boot
/// figure is not to pay for it.
pub fn install(given_khz: Option<u64>) {
    GIVEN_KHZ.store(given_khz.unwrap_or(0), Ordering::Relaxed);
}

/// The counter's frequency in kHz.
pub fn khz() -> u64 {
    match KHZ.load(Ordering::Relaxed) {
        0 => measure(),
        khz => khz,
    }
}

/// Where the frequency comes from.
pub fn source() -> &'static str {
    khz();
    SOURCES[SOURCE.load(Ordering::Relaxed) as usize]
}

fn measure() -> u64 {
    let given = GIVEN_KHZ.load(Ordering::Relaxed);
    let candidates =
        [(1, given), (2, paravirtual_khz()), (3, leaf_15_khz()), (4, leaf_40000010_khz()), (0, 1_000_000)];
    let (source, khz) = candidates.into_iter().find(|&(_, khz)| khz != 0).unwrap_or((0, 1_000_000));
    SOURCE.store(source, Ordering::Relaxed);
    KHZ.store(khz, Ordering::Relaxed);
    khz
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

/// Cycles in `milliseconds`.
pub fn cycles(milliseconds: u64) -> u64 {
    milliseconds.saturating_mul(khz())
}

/// Nanoseconds in `cycles`.
pub fn nanoseconds(cycles: u64) -> u64 {
    (u128::from(cycles) * 1_000_000 / u128::from(khz())) as u64
}

/// A point in time that a bounded wait ends at.
pub struct Deadline(u64);

impl Deadline {
    /// `milliseconds` from now.
    pub fn after(milliseconds: u64) -> Deadline {
        Deadline(cpu::tsc().saturating_add(cycles(milliseconds)))
    }

    /// Whether it has come.
    pub fn passed(&self) -> bool {
        cpu::tsc() >= self.0
    }

    /// Waits until `condition` holds; `false` if the time came first.
    pub fn wait(&self, mut condition: impl FnMut() -> bool) -> bool {
        while !condition() {
            if self.passed() {
                return condition();
            }
            core::hint::spin_loop();
        }
        true
    }
}
