//! Calls and what they wait for, in every order that a seed picks, on the simulated backend.
//!
//! The machine thread does one thing after the other, and all that it is told comes by one source. Here that source is a
//! scheduler: it has the next thing told only when every other thread sleeps, and lets a seed pick it from what has arrived (the
//! openings, stops, restarts and effects that are complete), a new call, or something that the guest does. So a seed is one
//! interleaving, which its next run repeats, and a call that nothing is left to answer is found without waiting for it.

mod calls;
mod control;
mod interleavings;

use calls::{Counts, Images};
use control::Random;
use hypervisor::sim::{Resources, Sim};
use interleavings::scheduler::{Scheduler, Trial, guest};
use interleavings::threads::Threads;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vivarium_tests::host::Folder;
use vivarium_tests::native;
use vmm::monitor::{Limits, Monitor};

/// Things picked from a seed.
const STEPS: u32 = 250;

/// As many seeds do everything at least once.
const ENOUGH: u64 = 100;

/// Seeds that are run twice, to see that they are orders.
const REPEATED: u64 = 15;

/// No call is given up for the time that it takes.
const EVER: Duration = Duration::from_secs(3600);
const PATIENT: Limits = Limits {
    turn: EVER,
    call: EVER,
    long_call: EVER,
    pause: EVER,
    end: EVER,
    leave: EVER,
    last_chance: EVER,
};

/// What was told, asked and answered, line by line.
fn run(seed: u64, counts: &Arc<Mutex<Counts>>) -> Vec<String> {
    let folder = Folder::new();
    let images = Images::new(&folder);
    folder.sparse("plugged", 1 << 20);
    let sim = Arc::new(Sim::new());
    guest(&sim);
    let mut monitor = Monitor::new(Arc::clone(&sim) as _).unwrap();
    monitor.limit(PATIENT);
    let trace = Arc::new(Mutex::new(vec![format!("seed {seed}")]));
    let trial = Trial {
        sim: Arc::clone(&sim),
        random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        steps: STEPS,
        machine: calls::machine(control::config(&folder), seed.is_multiple_of(2)),
        images,
        counts: Arc::clone(counts),
        trace: Arc::clone(&trace),
    };
    monitor.schedule(|plain| Box::new(Scheduler::new(trial, plain)));
    let ended = monitor.run();
    let trace = std::mem::take(&mut *trace.lock().unwrap());
    assert!(ended.is_ok(), "seed {seed}: {ended:?}\n{}", trace.join("\n"));
    assert_eq!(sim.resources(), Resources::default(), "seed {seed}");
    trace
}

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn whatever_the_order_each_call_is_answered_and_nothing_is_left_behind() {
    let counts = Arc::default();
    let begun = Instant::now();
    let mut things = 0;
    let mut before = None;
    for seed in 1..=native().interleavings() {
        let trace = run(seed, &counts);
        things += trace.len();
        if seed == 7 {
            eprintln!("{}", trace.join("\n"));
        }
        if seed <= REPEATED {
            let again = run(seed, &counts);
            things += again.len();
            let at = trace.iter().zip(&again).position(|(first, second)| first != second);
            let at = at.unwrap_or(trace.len().min(again.len()));
            let (first, second) = (trace.get(at), again.get(at));
            assert!(
                trace == again,
                "seed {seed} is not repeated from {at}: {first:?}, {second:?}\n{}",
                trace[..at].join("\n")
            );
        }
        // Of what ended with the machine thread, the kernel has done with all.
        Threads::new().settle();
        let left = (count("/proc/self/fd"), count("/proc/self/task"));
        assert_eq!(*before.get_or_insert(left), left, "seed {seed}: descriptors and threads");
    }
    if native().interleavings() >= ENOUGH {
        interleavings::assert_each_was_done(&counts.lock().unwrap());
    }
    let rate = things as f64 / begun.elapsed().as_secs_f64();
    println!("{things} things told, asked and answered, {rate:.0} in a second");
}
