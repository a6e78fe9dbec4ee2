//! The calls of PSCI by which CPUs start and stop each other (Arm DEN0022, 5.5 to 5.7).

use super::cpu_id;
use crate::{CpuAnswer, CpuCall, CpuStart};
use std::ops::Range;

/// `CPU_OFF`, which has no 64-bit form.
const CPU_OFF: u32 = 0x8400_0002;
/// `CPU_ON`.
const CPU_ON: u32 = 0x8400_0003;
/// `AFFINITY_INFO`.
const AFFINITY_INFO: u32 = 0x8400_0004;
/// A function whose arguments have 64 bits.
const SMC64: u32 = 1 << 30;
const CPU_ON_64: u32 = CPU_ON | SMC64;
const AFFINITY_INFO_64: u32 = AFFINITY_INFO | SMC64;

/// The calls, as runs of function ids: the first and how many.
pub const FUNCTIONS: [(u32, u32); 2] = [(CPU_OFF, 3), (CPU_ON_64, 2)];

/// The fields of MPIDR_EL1 that are the affinity.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// A call.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// The CPU that makes it is to stop.
    Stop,
    /// About CPUs.
    Call(CpuCall),
}

impl Request {
    /// The call `function` with these arguments (`X1` to `X3`), made by a CPU whose data are `big_endian` or not. `None`: it is not one of
    /// [`FUNCTIONS`].
    pub fn new(function: u32, arguments: [u64; 3], big_endian: bool) -> Option<Self> {
        let width = if function & SMC64 == 0 { u64::from(u32::MAX) } else { u64::MAX };
        let [target, second, third] = arguments.map(|argument| argument & width);
        match function {
            CPU_OFF => Some(Self::Stop),
            CPU_ON | CPU_ON_64 => {
                let start = CpuStart { entry: second, argument: third, big_endian };
                Some(Self::Call(CpuCall::Start { cpu: cpu_id(target), start }))
            }
            AFFINITY_INFO | AFFINITY_INFO_64 => {
                Some(Self::Call(CpuCall::State { cpus: group(target, second) }))
            }
            _ => None,
        }
    }
}

/// The ids of the CPUs that have the affinity `target` from level `level` on. None, if there is no such level.
fn group(target: u64, level: u64) -> Range<u32> {
    // How many bits of an affinity and of an id are below the level.
    let (affinity_bits, id_bits) = match level {
        0 => (0, 0),
        1 => (8, 4),
        2 => (16, 12),
        3 => (32, 20),
        _ => return 0..0,
    };
    let above = target >> affinity_bits << affinity_bits;
    match cpu_id(above) {
        Some(first) if target & !AFFINITY == 0 => first..first.saturating_add(1 << id_bits),
        _ => 0..0,
    }
}

/// What is answered, as the register has it.
pub fn code(answer: CpuAnswer) -> u64 {
    let code: i64 = match answer {
        // SUCCESS, and the states ON and OFF.
        CpuAnswer::Starts | CpuAnswer::On => 0,
        CpuAnswer::Off => 1,
        // INVALID_PARAMETERS, DENIED and ALREADY_ON.
        CpuAnswer::NoSuchCpu => -2,
        CpuAnswer::Absent => -3,
        CpuAnswer::AlreadyOn => -4,
    };
    code.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(function: u32, arguments: [u64; 3]) -> (Option<u32>, CpuStart) {
        match Request::new(function, arguments, false) {
            Some(Request::Call(CpuCall::Start { cpu, start })) => (cpu, start),
            other => panic!("{other:?}"),
        }
    }

    fn state(target: u64, level: u64) -> Range<u32> {
        match Request::new(0xc400_0004, [target, level, 0], false) {
            Some(Request::Call(CpuCall::State { cpus })) => cpus,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_call_of_32_bits_has_arguments_of_32_bits() {
        let arguments = [0xffff_ffff_0000_0102, 0xffff_ffff_8000_0001, u64::MAX];
        let expected = CpuStart { entry: 0x8000_0001, argument: 0xffff_ffff, big_endian: false };
        assert_eq!(start(0x8400_0003, arguments), (Some(18), expected));
        let expected = CpuStart { entry: 0xffff_ffff_8000_0001, argument: u64::MAX, big_endian: false };
        assert_eq!(start(0xc400_0003, arguments), (None, expected));
    }

    #[test]
    fn an_affinity_that_no_cpu_can_have_is_no_cpu() {
        // More than 16 CPUs in a group; bit 31, and others that are no affinity; the highest level; what is beyond it.
        for target in [0x10, 0xff, 1 << 31, 1 << 24, 1 << 30, 1 << 32, 1 << 40, 1 << 63, u64::MAX] {
            assert_eq!(start(0xc400_0003, [target, 0, 0]).0, None, "{target:#x}");
            assert_eq!(state(target, 0), 0..0, "{target:#x}");
        }
        assert_eq!(start(0xc400_0003, [0xff_ff0f, 0, 0]).0, Some(0xf_ffff));
    }

    #[test]
    fn a_group_is_of_16_cpus_or_256_groups_or_256_of_those() {
        assert_eq!(state(0x0203, 0), 35..36);
        // What is below the level does not count.
        assert_eq!(state(0x02ff, 1), 32..48);
        assert_eq!(state(0x1_02ff, 2), 0x1000..0x2000);
        assert_eq!(state(0x1_02ff, 3), 0..0x10_0000);
        for (target, level) in [(1 << 32, 3), (1 << 31, 3), (1 << 40, 3), (0, 4), (0, u64::MAX)] {
            assert_eq!(state(target, level), 0..0, "{target:#x} from level {level}");
        }
    }

    #[test]
    fn only_these_functions_are_taken() {
        let taken: Vec<_> = FUNCTIONS.iter().flat_map(|&(first, count)| first..first + count).collect();
        assert_eq!(taken, [0x8400_0002, 0x8400_0003, 0x8400_0004, 0xc400_0003, 0xc400_0004]);
        for function in (0x8400_0000..0x8400_0020).chain(0xc400_0000..0xc400_0020) {
            let request = Request::new(function, [0; 3], false);
            assert_eq!(request.is_some(), taken.contains(&function), "{function:#x}");
        }
        assert_eq!(Request::new(0x8400_0002, [1; 3], false), Some(Request::Stop));
    }

    #[test]
    fn answers_have_the_standards_numbers() {
        let answers = [CpuAnswer::Starts, CpuAnswer::NoSuchCpu, CpuAnswer::Absent, CpuAnswer::AlreadyOn];
        assert_eq!(answers.map(|answer| code(answer).cast_signed()), [0, -2, -3, -4]);
        assert_eq!([CpuAnswer::On, CpuAnswer::Off].map(code), [0, 1]);
    }
}
