//! The debug registers of a CPU (Arm ARM, D2): what they are to hold for a debugger, and which of them made the CPU stop.

use crate::{DebugCause, HardwareBreakpoint, WatchedAccess};

/// The most registers of each kind that a CPU can have.
pub(crate) const MOST: usize = 16;

/// Control and value registers of breakpoints (DBGBCR, DBGBVR) and of watchpoints (DBGWCR, DBGWVR).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DebugRegisters {
    pub breakpoint_control: [u64; MOST],
    pub breakpoint_value: [u64; MOST],
    pub watchpoint_control: [u64; MOST],
    pub watchpoint_value: [u64; MOST],
}

impl DebugRegisters {
    /// Those that watch these, at EL0 and EL1. What there are no registers for is left out.
    pub fn watching(watched: &[HardwareBreakpoint]) -> Self {
        /// E, and PMC or PAC: both exception levels.
        const ENABLED: u64 = 1 | 0b11 << 1;
        /// BAS of a breakpoint: all four bytes of an instruction.
        const INSTRUCTION: u64 = 0xf << 5;
        let mut registers = Self::default();
        let executed = watched.iter().filter(|watched| watched.access == WatchedAccess::Execute);
        let places = registers.breakpoint_control.iter_mut().zip(&mut registers.breakpoint_value);
        for ((control, value), breakpoint) in places.zip(executed) {
            *control = ENABLED | INSTRUCTION;
            *value = breakpoint.address & !3;
        }
        let accessed = watched.iter().filter(|watched| watched.access != WatchedAccess::Execute);
        let places = registers.watchpoint_control.iter_mut().zip(&mut registers.watchpoint_value);
        for ((control, value), watchpoint) in places.zip(accessed) {
            // LSC: loads, stores or both.
            let access: u64 = match watchpoint.access {
                WatchedAccess::Read => 0b01,
                WatchedAccess::Write => 0b10,
                WatchedAccess::ReadWrite | WatchedAccess::Execute => 0b11,
            };
            // BAS: which of the eight bytes from the aligned address on.
            let all = !(u64::MAX << watchpoint.length.min(8));
            let bytes = all << (watchpoint.address & 7) & 0xff;
            *control = ENABLED | access << 3 | bytes << 5;
            *value = watchpoint.address & !7;
        }
        registers
    }
}

/// Why a CPU stopped, by the syndrome of its exception (ESR_ELx), the address that was accessed (FAR_ELx) and its PC. `None`: for
/// nothing that a debugger asked for.
pub(crate) fn cause(
    syndrome: u64,
    accessed: u64,
    pc: u64,
    watched: &[HardwareBreakpoint],
) -> Option<DebugCause> {
    const BREAKPOINT: u64 = 0x30;
    const STEP: u64 = 0x32;
    const WATCHPOINT: u64 = 0x34;
    const BRK: u64 = 0x3c;
    // Of the two classes of each exception the even one is for lower exception levels; whose makes no difference.
    let cause = match syndrome >> 26 & 0x3e {
        BREAKPOINT => watched
            .iter()
            .position(|watched| watched.access == WatchedAccess::Execute && watched.address & !3 == pc & !3),
        // The address may be anywhere in what the instruction accesses: it is that watchpoint to which it is nearest.
        WATCHPOINT => watched
            .iter()
            .enumerate()
            .filter(|(_, watched)| watched.access != WatchedAccess::Execute)
            .min_by_key(|(_, watched)| {
                let last = watched.address.saturating_add(u64::from(watched.length.saturating_sub(1)));
                accessed.abs_diff(accessed.clamp(watched.address, last))
            })
            .map(|(index, _)| index),
        STEP => return Some(DebugCause::Step),
        BRK => return Some(DebugCause::Software),
        _ => None,
    };
    cause.and_then(|index| u8::try_from(index).ok()).map(DebugCause::Hardware)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(address: u64, length: u8, access: WatchedAccess) -> HardwareBreakpoint {
        HardwareBreakpoint { address, length, access }
    }

    fn examples() -> [HardwareBreakpoint; 5] {
        [
            watched(0xffff_8000_1000, 8, WatchedAccess::Write),
            watched(0xffff_8000_2004, 1, WatchedAccess::Execute),
            watched(0x2006, 2, WatchedAccess::Read),
            watched(0x3004, 4, WatchedAccess::ReadWrite),
            watched(0x4000, 1, WatchedAccess::Execute),
        ]
    }

    #[test]
    fn breakpoints_and_watchpoints_have_registers_of_their_own() {
        let registers = DebugRegisters::watching(&examples());
        assert_eq!(registers.breakpoint_value[..3], [0xffff_8000_2004, 0x4000, 0]);
        assert_eq!(registers.breakpoint_control[..3], [0x1e7, 0x1e7, 0]);
        assert_eq!(registers.watchpoint_value[..4], [0xffff_8000_1000, 0x2000, 0x3000, 0]);
        assert_eq!(
            registers.watchpoint_control[..4],
            [0xff << 5 | 0b10 << 3 | 7, 0xc0 << 5 | 0b01 << 3 | 7, 0xf0 << 5 | 0b11 << 3 | 7, 0]
        );
        // More than there can be.
        let many = [watched(8, 8, WatchedAccess::Write); 20];
        assert_eq!(DebugRegisters::watching(&many).watchpoint_value, [8; MOST]);
    }

    #[test]
    fn the_syndrome_tells_what_made_a_cpu_stop() {
        let examples = examples();
        let cause = |class: u64, accessed, pc| cause(class << 26 | 1 << 25, accessed, pc, &examples);
        for from_the_same_level in 0..2 {
            assert_eq!(cause(0x30 + from_the_same_level, 0, 0x4000), Some(DebugCause::Hardware(4)));
            assert_eq!(cause(0x30 + from_the_same_level, 0, 0x4004), None, "none is there");
            assert_eq!(cause(0x32 + from_the_same_level, 0, 0), Some(DebugCause::Step));
            assert_eq!(cause(0x34 + from_the_same_level, 0x3005, 0), Some(DebugCause::Hardware(3)));
        }
        // An instruction that stores a pair, from before what is watched on.
        assert_eq!(cause(0x35, 0x2ff8, 0), Some(DebugCause::Hardware(3)));
        assert_eq!(cause(0x35, u64::MAX, 0), Some(DebugCause::Hardware(0)));
        assert_eq!(cause(0x3c, 0, 0), Some(DebugCause::Software));
        assert_eq!(cause(0x38, 0, 0), None, "a 32-bit program's own");
        assert_eq!(super::cause(0x34 << 26, 0, 0, &[]), None);
    }
}
