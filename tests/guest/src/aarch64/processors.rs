//! The other processors: started by the firmware (PSCI).

use super::cpu::firmware;
use crate::memory;
use crate::tasks::power::Power;

const STACK: u64 = 16 * 1024;
/// CPU_ON, CPU_OFF and AFFINITY_INFO (Arm DEN0022).
const CPU_ON: u64 = 0xc400_0003;
const CPU_OFF: u64 = 0x8400_0002;
const AFFINITY_INFO: u64 = 0xc400_0004;

unsafe extern "C" {
    safe static ap_entry: u8;
}

/// Nothing has to be.
pub fn prepare() {}

/// Gives the processor its stack and starts it. 16 are in a group.
pub fn start(id: u8) {
    let affinity = u64::from(id & 0xf) | u64::from(id >> 4) << 8;
    let result = start_at(affinity, entry(), stack());
    if result != 0 {
        crate::report!("smp cpu={id} psci={result}");
    }
}

fn start_at(affinity: u64, entry: u64, stack: u64) -> i64 {
    firmware(CPU_ON, affinity, entry, stack)
}

fn entry() -> u64 {
    &raw const ap_entry as u64
}

fn stack() -> u64 {
    memory::permanent(STACK) + STACK
}

/// How processors stop, and start each other again.
pub const POWER: Option<Power> = Some(Power {
    entry,
    stack,
    start: start_at,
    state: |affinity| firmware(AFFINITY_INFO, affinity, 0, 0),
    stop: || firmware(CPU_OFF, 0, 0, 0),
});
