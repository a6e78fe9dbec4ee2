//! The other processors: started by the firmware (PSCI).

use super::cpu::firmware;
use crate::memory;

const STACK: u64 = 16 * 1024;
/// CPU_ON (Arm DEN0022).
const CPU_ON: u64 = 0xc400_0003;

unsafe extern "C" {
    safe static ap_entry: u8;
}

/// Nothing has to be.
pub fn prepare() {}

/// Gives the processor its stack and starts it. 16 are in a group.
pub fn start(id: u8) {
    let affinity = u64::from(id & 0xf) | u64::from(id >> 4) << 8;
    let stack = memory::permanent(STACK) + STACK;
    let result = firmware(CPU_ON, affinity, &raw const ap_entry as u64, stack);
    if result != 0 {
        crate::report!("smp cpu={id} psci={result}");
    }
}
