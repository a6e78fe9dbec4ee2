//! `power-fuzz`: processors start and stop each other by the firmware, all at once. Whatever the order, a processor runs once for each
//! time that somebody was told it starts, and what cannot be started is told apart.

use super::{Context, Failure, Outcome, smp};
use crate::clock::Deadline;
use crate::command_line::Task;
use crate::native::processors::POWER;
use crate::random::Random;
use crate::{interrupts, report};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the firmware is asked. Processors are known to it by their affinity, which is their number here.
pub struct Power {
    /// Where a processor starts.
    pub entry: fn() -> u64,
    /// A stack to start with.
    pub stack: fn() -> u64,
    /// Starts the processor with this affinity, at this entry, with this stack.
    pub start: fn(u64, u64, u64) -> i64,
    /// Whether the processor with this affinity is on.
    pub state: fn(u64) -> i64,
    /// Stops this processor. Returns only when it is refused.
    pub stop: fn() -> i64,
}

/// Answers (Arm DEN0022, 5.2.2), and the states.
const SUCCESS: i64 = 0;
const INVALID_PARAMETERS: i64 = -2;
const DENIED: i64 = -3;
const ALREADY_ON: i64 = -4;
const ON: i64 = 0;
const OFF: i64 = 1;

/// As many as have an affinity that is their number.
const MOST: usize = 16;
/// Affinities that no processor has.
const ODD: [u64; 8] = [16, 0xff, 1 << 24, 1 << 31, 1 << 32, 1 << 40, 1 << 63, u64::MAX];

static STACKS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
/// How often each was said to start, and ran.
static STARTS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
static RUNS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
/// Answers that are none.
static WRONG: AtomicU64 = AtomicU64::new(0);
static PRESENT: AtomicU64 = AtomicU64::new(0);
static MAX: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

fn get(value: &AtomicU64) -> u64 {
    value.load(Ordering::SeqCst)
}

fn sum(values: &[AtomicU64]) -> u64 {
    values.iter().map(get).sum()
}

/// `power-fuzz n=300 cpus=2 max=2 seed=1 lost=0`: all processors but this one are off, and are again at the end.
pub fn run(_: &Context, task: &Task) -> Outcome {
    let Some(power) = POWER else { return Err(Failure::Unsupported("a firmware that starts processors")) };
    let cpus = task.number("cpus", 2)?;
    let max = task.number("max", cpus)?;
    if !(2..=MOST as u64).contains(&cpus) || !(cpus..=MOST as u64).contains(&max) {
        return Err(Failure::BadValue("cpus"));
    }
    for counter in STARTS.iter().chain(&RUNS).chain([&WRONG]) {
        counter.store(0, Ordering::SeqCst);
    }
    for stack in STACKS.iter().take(cpus as usize).skip(1) {
        stack.store((power.stack)(), Ordering::SeqCst);
    }
    PRESENT.store(cpus, Ordering::SeqCst);
    MAX.store(max, Ordering::SeqCst);
    let seed = task.number("seed", 1)?;
    SEED.store(seed, Ordering::SeqCst);
    STOP.store(false, Ordering::SeqCst);
    smp::set_job(act_and_stop);
    let mut random = Random::new(seed);
    let actions = task.number("n", 300)?;
    (0..actions).for_each(|_| act(&power, &mut random));
    STOP.store(true, Ordering::SeqCst);
    if !Deadline::after(20_000).wait(|| all_are_off(&power, cpus)) {
        return Err(Failure::Timeout("processors that stop"));
    }
    let (starts, runs, wrong) = (sum(&STARTS), sum(&RUNS), get(&WRONG));
    let mut differ = 0;
    for (number, (starts, runs)) in STARTS.iter().zip(&RUNS).enumerate() {
        if get(starts) != get(runs) {
            report!("power-fuzz cpu={number} starts={} runs={}", get(starts), get(runs));
            differ += 1;
        }
    }
    if task.number("lost", 0)? != 0 {
        // Not aligned, and where there is no memory: it goes on in exceptions for good.
        check((power.start)(1, 3, 0), SUCCESS);
        check((power.start)(1, 3, 0), ALREADY_ON);
        check((power.state)(1), ON);
    }
    report!("power-fuzz actions={actions} cpus={cpus} starts={starts} runs={runs} wrong={wrong}");
    match differ + get(&WRONG) {
        0 => Ok(()),
        failed => Err(Failure::Checks(failed)),
    }
}

/// What a processor does that was started.
fn act_and_stop() {
    let Some(power) = POWER else { return };
    RUNS[usize::from(interrupts::apic_id()) % MOST].fetch_add(1, Ordering::SeqCst);
    let mut random = Random::new(SEED.fetch_add(1000, Ordering::SeqCst) + 500);
    let actions = if STOP.load(Ordering::SeqCst) { 0 } else { random.below(8) };
    (0..actions).for_each(|_| act(&power, &mut random));
    (power.stop)();
    WRONG.fetch_add(1, Ordering::SeqCst);
}

/// Asks the firmware something.
fn act(power: &Power, random: &mut Random) {
    let (present, max) = (get(&PRESENT), get(&MAX));
    let target = random.below(max);
    let at = target as usize;
    let start = |affinity, stack| (power.start)(affinity, (power.entry)(), stack);
    match random.below(8) {
        0..=4 if target >= present => check(start(target, 0), DENIED),
        // The first one never stops.
        0..=4 if target == 0 => check(start(target, 0), ALREADY_ON),
        0..=4 => match start(target, get(&STACKS[at])) {
            SUCCESS => _ = STARTS[at].fetch_add(1, Ordering::SeqCst),
            answer => check(answer, ALREADY_ON),
        },
        5 if target >= present => check((power.state)(target), OFF),
        5 if target == 0 || target == u64::from(interrupts::apic_id()) => check((power.state)(target), ON),
        5 => {
            let state = (power.state)(target);
            check(state, if state == OFF { OFF } else { ON });
        }
        6 => check(start(ODD[random.below(ODD.len() as u64) as usize], 0), INVALID_PARAMETERS),
        _ => check((power.state)(ODD[random.below(ODD.len() as u64) as usize]), INVALID_PARAMETERS),
    }
}

fn check(answer: i64, expected: i64) {
    if answer != expected {
        WRONG.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whether no other processor runs, nor will: none of those that were looked at was started meanwhile.
fn all_are_off(power: &Power, cpus: u64) -> bool {
    let before = sum(&STARTS);
    (1..cpus).all(|target| (power.state)(target) == OFF) && sum(&STARTS) == before
}
