//! A filter as a program of classic BPF over the number and the arguments of a call (seccomp(2), `SECCOMP_SET_MODE_FILTER`).
//!
//! The program finds a call by halving, not by a list. Calls are decided faster, and so is the filter's start: when one is
//! installed, the kernel runs it for every call there is, to know those that are always allowed.

use crate::machine::calls;
use seccompiler::sock_filter;

/// A call that is allowed, by its number: with any arguments, or with one request (second argument, of which the kernel takes
/// 32 bits).
pub type Rule = (u32, Option<u32>);

// `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const SECOND_ARGUMENT_LOW: u32 = 24;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The program that allows what `rules` list, in any order, and answers anything else with `refusal` (`SECCOMP_RET_*`). A call
/// that is allowed once with any arguments is, whatever its other rules say. Calls of another architecture's table end the
/// process.
pub fn assemble(mut rules: Vec<Rule>, refusal: u32) -> Vec<sock_filter> {
    rules.sort_unstable();
    rules.dedup();
    let calls = rules.chunk_by(|one, next| one.0 == next.0).map(|rules| match rules[0] {
        (call, None) => (call, Verdict::Allow),
        (call, Some(_)) => (call, Verdict::Requests(rules)),
    });
    // Written from its end to its start: how far a branch goes is known once what it leaps over is there.
    let mut program = Vec::with_capacity(8 * (rules.len() + 1));
    search(&mut program, &runs(calls), refusal);
    program.extend([
        statement(LOAD, NUMBER),
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        branch(IF_EQUAL, calls::ARCHITECTURE, 1, 0),
        statement(LOAD, ARCHITECTURE),
    ]);
    program.reverse();
    program.shrink_to_fit();
    program
}

/// What is done with the values from one up to the next run's.
#[derive(PartialEq)]
enum Verdict<'a> {
    Refuse,
    Allow,
    Requests(&'a [Rule]),
}

/// Runs of values with one verdict, ascending and from 0 on, for ascending values that have verdicts of their own.
fn runs<'a>(listed: impl Iterator<Item = (u32, Verdict<'a>)>) -> Vec<(u32, Verdict<'a>)> {
    let mut runs = vec![(0, Verdict::Refuse)];
    let mut add = |first, verdict| match runs.last() {
        Some((_, last)) if *last == verdict => {}
        // Nothing lies between the run before and this one.
        Some((start, _)) if *start == first => {
            runs.pop();
            if runs.last().is_none_or(|(_, last)| *last != verdict) {
                runs.push((first, verdict));
            }
        }
        _ => runs.push((first, verdict)),
    };
    for (value, verdict) in listed {
        add(value, verdict);
        add(value + 1, Verdict::Refuse);
    }
    runs
}

/// Adds, last instruction first, what decides on the loaded value.
fn search(program: &mut Vec<sock_filter>, runs: &[(u32, Verdict<'_>)], refusal: u32) {
    match runs {
        [] | [(_, Verdict::Refuse)] => program.push(statement(RETURN, refusal)),
        [(_, Verdict::Allow)] => program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW)),
        [(_, Verdict::Requests(rules))] => {
            let requests = rules.iter().filter_map(|(_, request)| *request);
            search(program, &self::runs(requests.map(|request| (request, Verdict::Allow))), refusal);
            program.push(statement(LOAD, SECOND_ARGUMENT_LOW));
        }
        _ => {
            let (low, high) = runs.split_at(runs.len() / 2);
            let (first_high, _) = high[0];
            search(program, high, refusal);
            let after_low = program.len();
            search(program, low, refusal);
            let distance = program.len() - after_low;
            // A branch reaches 255 instructions, a jump all.
            match u8::try_from(distance) {
                Ok(distance) => program.push(branch(IF_AT_LEAST, first_high, distance, 0)),
                Err(_) => {
                    program.push(statement(JUMP, distance as u32));
                    program.push(branch(IF_AT_LEAST, first_high, 0, 1));
                }
            }
        }
    }
}

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program answers, and in how many steps.
    fn run(program: &[sock_filter], architecture: u32, number: u32, request: u64) -> (u32, u32) {
        let (mut at, mut value) = (0, 0);
        for steps in 1.. {
            let one = &program[at];
            at += 1;
            match (one.code, one.k) {
                (LOAD, NUMBER) => value = number,
                (LOAD, ARCHITECTURE) => value = architecture,
                (LOAD, SECOND_ARGUMENT_LOW) => value = request as u32,
                (IF_EQUAL, k) => at += usize::from(if value == k { one.jt } else { one.jf }),
                (IF_AT_LEAST, k) => at += usize::from(if value >= k { one.jt } else { one.jf }),
                (JUMP, k) => at += k as usize,
                (RETURN, k) => return (k, steps),
                other => panic!("no instruction of ours: {other:?}"),
            }
        }
        unreachable!()
    }

    const REFUSAL: u32 = libc::SECCOMP_RET_TRAP;

    #[test]
    fn what_is_listed_is_allowed_and_nothing_else() {
        let rules = [
            (18, None),
            (16, Some(0xae80)),
            (16, Some(0x5402)),
            (16, Some(0x4008_ae6a)),
            (16, Some(0x5401)),
            (16, Some(0xae80)),
            (0, None),
            (1, None),
            (3, Some(7)),
            (3, None),
            (17, Some(7)),
            (435, None),
        ];
        let program = assemble(rules.to_vec(), REFUSAL);
        for number in (0..600).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            for request in [0, 7, 0x5400, 0x5401, 0x5402, 0x5403, 0xae80, 0xffff_ffff_0000_ae80, 0x4008_ae6a]
            {
                let allowed =
                    rules.contains(&(number, None)) || rules.contains(&(number, Some(request as u32)));
                let expected = if allowed { libc::SECCOMP_RET_ALLOW } else { REFUSAL };
                assert_eq!(
                    run(&program, calls::ARCHITECTURE, number, request).0,
                    expected,
                    "{number} {request:#x}"
                );
            }
        }
        assert_eq!(run(&program, 0x4000_0003, 3, 0).0, libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn hundreds_of_calls_are_told_apart_in_few_steps() {
        // Further apart than a branch reaches.
        let program = assemble((0..300).map(|call| (call * 3, None)).collect(), REFUSAL);
        for number in 0..1000 {
            let (answer, steps) = run(&program, calls::ARCHITECTURE, number, 0);
            assert_eq!(answer == libc::SECCOMP_RET_ALLOW, number % 3 == 0 && number < 900, "{number}");
            assert!(steps <= 20, "{steps}");
        }
    }
}
