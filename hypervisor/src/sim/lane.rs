//! What passes between the thread that runs a simulated CPU, the thread of its program, and whoever
//! interrupts or kicks it.

use super::lock;
use crate::{CpuAnswer, CpuStart, Kick, SystemEvent};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a program asks its CPU to do.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Port input of 1, 2 or 4 bytes.
    PortRead { port: u16, size: u8 },
    /// Port output.
    PortWrite { port: u16, data: Vec<u8> },
    /// A load.
    Load { address: u64, length: usize },
    /// A store.
    Store { address: u64, data: Vec<u8> },
    /// Wait until an interrupt is pending.
    Halt,
    /// Take the highest pending interrupt.
    TakeInterrupt,
    /// The current interrupt has been handled.
    EndOfInterrupt { vector: u8 },
    /// Send an interrupt to a CPU.
    SendInterrupt { cpu: u32, vector: u8 },
    /// Start a CPU.
    StartCpu { cpu: u32, start: CpuStart },
    /// Tell whether any of these CPUs is on.
    CpuState { cpus: Range<u32> },
    /// Stop until another CPU starts it.
    StopCpu,
    /// Shut down.
    TripleFault,
    /// Ask the firmware for something.
    System(SystemEvent),
    /// Move the clock.
    Advance { ns: u64 },
    /// The program returned, or panicked with a message.
    Ended { panic: Option<String> },
}

/// Everything there is to know about a CPU from outside it.
#[derive(Default)]
pub(super) struct State {
    /// The program's next step, until it is done.
    pub(super) step: Option<Step>,
    /// What the last step came to, until the program takes it.
    pub(super) result: Option<Vec<u8>>,
    /// What the firmware answered last, until the program takes it.
    pub(super) answer: Option<CpuAnswer>,
    /// The program is to end.
    pub(super) stopped: bool,
    /// The CPU was kicked.
    pub(super) kicked: bool,
    /// The CPU executes instructions (and does not wait to be started).
    pub(super) started: bool,
    /// Pending interrupts by vector, with whether they are level-triggered.
    pub(super) pending: std::collections::BTreeMap<u8, bool>,
    /// Interrupts taken and not yet ended, which are level-triggered.
    pub(super) in_service_level: std::collections::BTreeSet<u8>,
}

/// The state of a CPU and the means to wait for it to change.
#[derive(Default)]
pub(super) struct Lane {
    state: Mutex<State>,
    changed: Condvar,
}

impl Lane {
    /// The state, to look at.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state and wakes whoever waits for it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }

    /// Waits until `ready` makes something of the state.
    pub(super) fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut state = self.state();
        loop {
            if let Some(result) = ready(&mut state) {
                drop(state);
                self.changed.notify_all();
                return result;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Kick for Lane {
    fn kick(&self) {
        self.change(|state| state.kicked = true);
    }
}
