//! Time from the processor's counter: the time-stamp counter, or on Arm the virtual counter.
//!
//! Its frequency comes from `tsc_khz=` on the command line, or from what the processor or the hypervisor says of it. Without
//! any of them, times are reported as if it were 1 GHz and `clock source=none` says so.

use crate::cpu;
use crate::native::frequency;
use core::sync::atomic::{AtomicU64, Ordering};

static KHZ: AtomicU64 = AtomicU64::new(0);
static GIVEN_KHZ: AtomicU64 = AtomicU64::new(0);
static SOURCE: AtomicU64 = AtomicU64::new(0);
/// What [`source`] answers for a given frequency and for none; others are those of [`frequency::SOURCES`].
const OWN_SOURCES: [&str; 2] = ["none", "command-line"];

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
    let index = SOURCE.load(Ordering::Relaxed) as usize;
    OWN_SOURCES.iter().chain(frequency::SOURCES).nth(index).copied().unwrap_or("none")
}

fn measure() -> u64 {
    let given = GIVEN_KHZ.load(Ordering::Relaxed);
    let (source, khz) = match given {
        0 => match frequency::khz() {
            Some((source, khz)) => (source + OWN_SOURCES.len() as u64, khz),
            None => (0, 1_000_000),
        },
        given => (1, given),
    };
    SOURCE.store(source, Ordering::Relaxed);
    KHZ.store(khz, Ordering::Relaxed);
    khz
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
