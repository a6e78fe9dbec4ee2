//! The host's clock, whose short intervals are told by the processor's own counter.

use machine::clock::{Clock, SystemClock};
use std::time::Duration;

/// Bits behind the point of [`HostClock::ns_per_tick`].
const FRACTION: u32 = 32;

/// The host's clock. To read the processor's counter takes a third of the time of asking the kernel's clock.
#[derive(Debug)]
pub struct HostClock {
    system: SystemClock,
    /// Nanoseconds of a tick of the counter, with [`FRACTION`] bits behind the point; 0 when intervals are the kernel's.
    ns_per_tick: u64,
}

impl HostClock {
    /// A clock whose monotonic time starts at zero now. `counter_hz`: ticks in a second of the processor's counter, if it runs
    /// evenly and alike on all processors.
    pub fn new(counter_hz: Option<u64>) -> Self {
        let ns_per_tick =
            counter_hz.and_then(|hz| (1_000_000_000_u64 << FRACTION).checked_div(hz)).unwrap_or(0);
        Self { system: SystemClock::new(), ns_per_tick }
    }

    /// What a count of ticks is. Wraps after five centuries.
    fn nanoseconds(&self, ticks: u64) -> u64 {
        (u128::from(ticks).wrapping_mul(u128::from(self.ns_per_tick)) >> FRACTION) as u64
    }
}

impl Clock for HostClock {
    fn monotonic_ns(&self) -> u64 {
        self.system.monotonic_ns()
    }

    fn interval_ns(&self) -> u64 {
        if self.ns_per_tick == 0 {
            return self.system.monotonic_ns();
        }
        self.nanoseconds(counter())
    }

    fn wall(&self) -> Duration {
        self.system.wall()
    }
}

/// The time-stamp counter (RDTSC). It may be read a few instructions early or late.
#[cfg(target_arch = "x86_64")]
fn counter() -> u64 {
    // SAFETY: every x86_64 processor has the instruction, and Linux lets programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The virtual counter (CNTVCT_EL0). It may be read a few instructions early or late.
#[cfg(target_arch = "aarch64")]
fn counter() -> u64 {
    let ticks: u64;
    // SAFETY: reads a register, which Linux lets programs do.
    unsafe {
        std::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags))
    };
    ticks
}

/// Ticks in a second of the processor's counter, which is the TSC that KVM gives to CPUs at `tsc_khz`; `None` if it need not run
/// evenly (AMD APM volume 3, CPUID Fn8000_0007_EDX, bit 8; Intel SDM volume 3, "Invariant TSC").
#[cfg(target_arch = "x86_64")]
pub fn counter_hz(tsc_khz: Option<u32>) -> Option<u64> {
    const POWER_MANAGEMENT: u32 = 0x8000_0007;
    const INVARIANT_TSC: u32 = 1 << 8;
    use std::arch::x86_64::__cpuid;
    let even =
        __cpuid(0x8000_0000).eax >= POWER_MANAGEMENT && __cpuid(POWER_MANAGEMENT).edx & INVARIANT_TSC != 0;
    tsc_khz.filter(|khz| even && *khz > 0).map(|khz| u64::from(khz).saturating_mul(1000))
}

/// Ticks in a second of the processor's counter, as firmware told it (CNTFRQ_EL0).
#[cfg(target_arch = "aarch64")]
pub fn counter_hz() -> Option<u64> {
    let hz: u64;
    // SAFETY: reads a register, which Linux lets programs do.
    unsafe { std::arch::asm!("mrs {}, cntfrq_el0", out(reg) hz, options(nomem, nostack, preserves_flags)) };
    Some(hz).filter(|hz| *hz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_nanoseconds() {
        let hour = |hz: u64| HostClock::new(Some(hz)).nanoseconds(3600 * hz);
        for hz in [1_000_000, 24_000_000, 1_000_000_000, 2_596_123_000, 5_000_000_000] {
            let off = hour(hz).abs_diff(3_600_000_000_000);
            assert!(off < 36_000, "{off} ns of an hour, a hundred millionth at most, at {hz} Hz");
        }
    }

    #[test]
    fn intervals_go_forward() {
        let clock = HostClock::new(Some(1_000_000_000));
        let before = clock.interval_ns();
        let kernel = SystemClock::new();
        while kernel.monotonic_ns() < 100_000 {
            std::hint::spin_loop();
        }
        assert!(clock.interval_ns() > before);
    }

    #[test]
    fn without_an_even_counter_intervals_are_the_kernels() {
        let clock = HostClock::new(None);
        let before = clock.monotonic_ns();
        let interval = clock.interval_ns();
        assert!(before <= interval && interval <= clock.monotonic_ns());
        assert_eq!(HostClock::new(Some(0)).ns_per_tick, 0);
    }
}
