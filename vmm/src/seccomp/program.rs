//! A filter as a program of classic BPF over the number and the arguments of a call (seccomp(2), `SECCOMP_SET_MODE_FILTER`).
//!
//! The program finds a call by halving, not by a list. Calls are decided faster, and so is the filter's start: when one is
//! installed, the kernel runs it for every call there is, to know those that are always allowed.

use crate::machine::calls;
use seccompiler::sock_filter;
use std::collections::BTreeMap;

/// Calls that are allowed: by their number, the requests (second argument, of which the kernel takes 32 bits) that are; all
/// if none is listed.
pub type Rules = BTreeMap<u32, Vec<u32>>;

// `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const SECOND_ARGUMENT_LOW: u32 = 24;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The program that allows what `rules` list, and answers anything else with `refusal` (`SECCOMP_RET_*`). Calls of another
/// architecture's table end the process.
pub fn assemble(rules: &Rules, refusal: u32) -> Vec<sock_filter> {
    let mut program = vec![
        statement(LOAD, ARCHITECTURE),
        branch(IF_EQUAL, calls::ARCHITECTURE, 1, 0),
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, NUMBER),
    ];
    program.extend(search(&runs(rules.iter().map(|(&call, requests)| (call, requests.as_slice()))), refusal));
    program
}

/// What is done with the values from one up to the next run's.
#[derive(PartialEq)]
enum Verdict<'a> {
    Refuse,
    Allow,
    Requests(&'a [u32]),
}

/// Runs of values with one verdict, ascending and from 0 on, for ascending values that have requests of their own.
fn runs<'a>(listed: impl Iterator<Item = (u32, &'a [u32])>) -> Vec<(u32, Verdict<'a>)> {
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
    for (value, requests) in listed {
        add(value, if requests.is_empty() { Verdict::Allow } else { Verdict::Requests(requests) });
        add(value + 1, Verdict::Refuse);
    }
    runs
}

/// Decides on the loaded value.
fn search(runs: &[(u32, Verdict<'_>)], refusal: u32) -> Vec<sock_filter> {
    match runs {
        [] | [(_, Verdict::Refuse)] => vec![statement(RETURN, refusal)],
        [(_, Verdict::Allow)] => vec![statement(RETURN, libc::SECCOMP_RET_ALLOW)],
        [(_, Verdict::Requests(requests))] => {
            let mut requests = requests.to_vec();
            requests.sort_unstable();
            requests.dedup();
            let mut program = vec![statement(LOAD, SECOND_ARGUMENT_LOW)];
            program.extend(search(&self::runs(requests.into_iter().map(|one| (one, &[][..]))), refusal));
            program
        }
        _ => {
            let (low, high) = runs.split_at(runs.len() / 2);
            let (first_high, _) = high[0];
            let (low, high) = (search(low, refusal), search(high, refusal));
            // A branch reaches 255 instructions, a jump all.
            let mut program = match u8::try_from(low.len()) {
                Ok(distance) => vec![branch(IF_AT_LEAST, first_high, distance, 0)],
                Err(_) => vec![branch(IF_AT_LEAST, first_high, 0, 1), statement(JUMP, low.len() as u32)],
            };
            program.extend(low);
            program.extend(high);
            program
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
        let rules: Rules = BTreeMap::from([
            (0, vec![]),
            (1, vec![]),
            (3, vec![]),
            (16, vec![0xae80, 0x4008_ae6a, 0x5401, 0x5402]),
            (17, vec![7]),
            (18, vec![]),
            (435, vec![]),
        ]);
        let program = assemble(&rules, REFUSAL);
        for number in (0..600).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            for request in [0, 7, 0x5400, 0x5401, 0x5402, 0x5403, 0xae80, 0xffff_ffff_0000_ae80, 0x4008_ae6a]
            {
                let allowed = rules
                    .get(&number)
                    .is_some_and(|requests| requests.is_empty() || requests.contains(&(request as u32)));
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
        let rules: Rules = (0..300).map(|call| (call * 3, vec![])).collect();
        let program = assemble(&rules, REFUSAL);
        for number in 0..1000 {
            let (answer, steps) = run(&program, calls::ARCHITECTURE, number, 0);
            assert_eq!(answer == libc::SECCOMP_RET_ALLOW, number % 3 == 0 && number < 900, "{number}");
            assert!(steps <= 20, "{steps}");
        }
    }
}
