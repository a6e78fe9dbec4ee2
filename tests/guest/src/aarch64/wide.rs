//! Accesses that a syndrome does not describe (Arm ARM, D24.2.40, ISV), and the exception that one of them makes.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Not 0: an exception is expected, and `boot.s` writes its syndrome here.
#[unsafe(no_mangle)]
pub static ABORT: AtomicU64 = AtomicU64::new(0);

const EXPECTED: u64 = 1;
/// A data abort of this exception level, and one that is an external abort and no walk's.
const DATA_ABORT: u64 = 0x25;
const EXTERNAL: u64 = 0x10;

/// What accesses the 64 bytes at an address, and where the address is after it.
pub type Access = fn(u64) -> u64;

macro_rules! access {
    ($instruction:literal) => {
        |address| {
            let mut base = address;
            // SAFETY: callers pass addresses of device registers or of memory that they own; what is changed is declared.
            unsafe {
                asm!($instruction, base = inout(reg) base, low = inout(reg) 0u64 => _, high = inout(reg) 0u64 => _,
                    out("v0") _, out("v1") _, options(nostack, preserves_flags))
            };
            base
        }
    };
}

/// The accesses by their names.
pub const ACCESSES: &[(&str, Access)] = &[
    ("ldp", access!("ldp {low}, {high}, [{base}]")),
    ("stp", access!("stp {low}, {high}, [{base}]")),
    ("ldr-post", access!("ldr {low:w}, [{base}], #4 // {high}")),
    ("str-pre", access!("str {low:w}, [{base}, #4]! // {high}")),
    ("ldr-vector", access!("ldr q0, [{base}] // {low} {high}")),
    ("stp-vector", access!("stp q0, q1, [{base}] // {low} {high}")),
];

/// Makes the access. Whether it was answered by the exception of a bus that does not answer, and changed nothing; `None`: by no
/// exception.
pub fn aborted(access: Access, address: u64) -> Option<bool> {
    ABORT.store(EXPECTED, Ordering::SeqCst);
    let base = access(address);
    let syndrome = ABORT.swap(0, Ordering::SeqCst);
    let right = syndrome >> 26 == DATA_ABORT && syndrome & 0x3f == EXTERNAL;
    (syndrome != EXPECTED).then_some(right && base == address)
}
