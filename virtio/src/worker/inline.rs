//! Running handlers in the calling thread.

use crate::device::{Progress, QueueTask};
use machine::clock::Clock;

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing to do until a doorbell rings or an event source is ready.
    Idle,
    /// As `Idle`, or until this monotonic time in nanoseconds.
    Until(u64),
}

/// Far more turns than any ring's contents can make work for.
const MOST_TURNS: u32 = 1 << 20;

/// Runs handlers in turns until all have nothing to do, as a worker does before it sleeps. Does not wait for event sources.
pub fn run_until_idle(tasks: &mut [QueueTask], clock: &dyn Clock) -> Rest {
    let mut rest = Rest::Idle;
    for _ in 0..MOST_TURNS {
        let mut more = false;
        rest = Rest::Idle;
        for task in tasks.iter_mut() {
            match task.handler.run(clock.interval_ns()) {
                Progress::More => more = true,
                Progress::Idle => more |= task.handler.arm(),
                Progress::Until(time) => {
                    more |= task.handler.arm();
                    rest = match rest {
                        Rest::Until(earlier) => Rest::Until(earlier.min(time)),
                        Rest::Idle => Rest::Until(time),
                    };
                }
            }
        }
        if !more {
            break;
        }
    }
    rest
}
