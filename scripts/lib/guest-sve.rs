//! `sve [SEED]`: computes with scalable vectors on the CPU that it was started on, and prints the vectors' length in bytes. Started
//! twice on one CPU, each often has its vectors taken from the CPU and given back. Status 1: a result is wrong.

use std::arch::asm;

/// The longest vectors there can be, in words.
const MOST: usize = 256 / 4;
const ROUNDS: u32 = 2000;

/// Bytes in a vector.
fn length() -> usize {
    let bytes: usize;
    // SAFETY: it only writes the register.
    unsafe { asm!(".arch_extension sve", "rdvl {}, #1", out(reg) bytes, options(nomem, nostack)) };
    bytes
}

/// Stores `first`, `first + step` and so on, which were in a vector for a while. There is no system call meanwhile, since one may
/// lose them.
fn series(first: u32, step: u32) -> [u32; MOST] {
    let mut words = [0; MOST];
    // SAFETY: no vector is longer than the array, and what is changed is said.
    unsafe {
        asm!(
            ".arch_extension sve",
            "ptrue p0.s",
            "index z8.s, {first:w}, {step:w}",
            "2:",
            "subs {turns:w}, {turns:w}, #1",
            "b.ne 2b",
            "st1w {{z8.s}}, p0, [{words}]",
            first = in(reg) first,
            step = in(reg) step,
            words = in(reg) words.as_mut_ptr(),
            turns = inout(reg) 5000 => _,
            out("v8") _,
            out("p0") _,
            options(nostack),
        );
    }
    words
}

fn main() {
    let seed: u32 = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(1);
    let words = length() / 4;
    for round in 0..ROUNDS {
        let (first, step) = (round.wrapping_mul(seed), round | 1);
        let expected = (0..words as u32).map(|at| first.wrapping_add(at.wrapping_mul(step)));
        let found = series(first, step);
        if !found[..words].iter().copied().eq(expected) {
            println!("round {round}: {found:x?}");
            std::process::exit(1);
        }
    }
    println!("vectors of {} bytes", words * 4);
}
