//! The tasks: what a command line can ask for, and how it is run and reported.

mod abuse;
mod abuse_cases;
mod abuse_registers;
mod basic;
mod block;
mod block_verify;
mod fuzz;
mod irq;
mod list;
mod net;
pub mod power;
mod pvpanic;
mod race;
mod rtc;
mod simple;
pub mod smp;
mod wide;

use crate::boot_info::BootInfo;
use crate::command_line::{CommandLine, Task};
use crate::{memory, report};
use core::fmt;

/// Why a task did not do what it should.
pub enum Failure {
    /// A key's value is no number, or not one that fits.
    BadValue(&'static str),
    /// No device of this kind at the index asked for.
    NoDevice(&'static str),
    /// The machine or the device lacks what the task needs.
    Unsupported(&'static str),
    /// The device did something that it may not.
    Device(&'static str),
    /// Nothing happened for far longer than it may take.
    Timeout(&'static str),
    /// Data is not what it must be, first at this byte offset.
    Mismatch(u64),
    /// So many of the task's own checks failed; each has its own line.
    Checks(u64),
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Failure::BadValue(key) => write!(to, "bad-value key={key}"),
            Failure::NoDevice(kind) => write!(to, "no-device kind={kind}"),
            Failure::Unsupported(what) => write!(to, "unsupported what=\"{what}\""),
            Failure::Device(what) => write!(to, "device what=\"{what}\""),
            Failure::Timeout(what) => write!(to, "timeout waiting=\"{what}\""),
            Failure::Mismatch(offset) => write!(to, "mismatch offset={offset}"),
            Failure::Checks(count) => write!(to, "checks failed={count}"),
        }
    }
}

/// What a task returns: it has printed its own report line if it succeeded.
pub type Outcome = Result<(), Failure>;

/// What every task is given.
pub struct Context<'a> {
    /// The whole command line.
    pub line: &'a CommandLine<'a>,
    /// What the monitor passed.
    pub boot: &'a BootInfo,
    /// The time-stamp counter when the guest came to ring 3.
    pub entered: u64,
}

type Run = fn(&Context, &Task) -> Outcome;

/// Every task by its name. Adding one is a line here.
const TASKS: &[(&str, Run)] = &[
    ("hello", basic::hello),
    ("entered", basic::entered),
    ("boot", basic::boot_task),
    ("clock", basic::clock_task),
    ("exits", basic::exits),
    ("memory", basic::memory_task),
    ("pci", list::pci),
    ("virtio", list::virtio),
    ("pci-watch", list::watch),
    ("irq", irq::run),
    ("smp", smp::run),
    ("blk-randread", block::run),
    ("blk-randwrite", block::run),
    ("blk-seqread", block::run),
    ("blk-seqwrite", block::run),
    ("blk-checksum", block_verify::checksum),
    ("blk-verify", block_verify::verify),
    ("net-tx", net::transmit),
    ("net-rx", net::receive),
    ("net-echo", net::echo),
    ("console", simple::console),
    ("rtc", rtc::run),
    ("rng", simple::rng),
    ("watchdog", simple::watchdog),
    ("ring-abuse", abuse::run),
    ("pio-fuzz", fuzz::ports),
    ("mmio-fuzz", fuzz::device_memory),
    ("config-fuzz", fuzz::configuration),
    ("race-fuzz", race::run),
    ("power-fuzz", power::run),
    ("pvpanic", pvpanic::run),
    ("wide-access", wide::run),
];

/// Runs the tasks of `line` one after the other; returns how many failed.
pub fn run_all(line: &CommandLine, boot: &BootInfo, entered: u64) -> u64 {
    let context = Context { line, boot, entered };
    let mut failures = 0;
    for task in line.tasks() {
        let mark = memory::mark();
        let outcome = match TASKS.iter().find(|(name, _)| *name == task.name) {
            Some((_, run)) => run(&context, &task),
            None => {
                report!("{} error=unknown-task", task.name);
                failures += 1;
                continue;
            }
        };
        if let Err(failure) = outcome {
            report!("{} error={failure}", task.name);
            failures += 1;
        }
        memory::release(mark);
    }
    failures
}
