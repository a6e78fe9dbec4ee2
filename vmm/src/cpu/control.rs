//! What passes between a CPU's thread and those who direct it: the machine thread, and threads of other CPUs whose guest code starts
//! this one.

use super::{PATIENCE, Task};
use crate::exits::ExitCounters;
use hypervisor::{CpuAnswer, CpuStart, Kick, Vcpu};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// What is asked of a CPU, and what it does.
#[derive(Default)]
pub(super) struct State {
    pub(super) paused: bool,
    /// A debugger holds the CPU.
    pub(super) held: bool,
    /// Held for its share of the time.
    pub(super) throttled: bool,
    pub(super) ending: bool,
    /// The guest has not started the CPU, or has stopped it ([`Vcpu::is_off`]).
    pub(super) off: bool,
    /// The guest starts it, which its thread has not done yet.
    pub(super) start: Option<CpuStart>,
    /// Effects that are not complete. An instruction that makes several accesses may have several.
    pub(super) effects: u32,
    /// Counts the machine's resets: what the CPU asked for before one is void after it.
    pub(super) generation: u64,
    pub(super) parked: bool,
    /// It was told that the CPU is parked for the pause.
    pub(super) told: bool,
    pub(super) ended: bool,
    /// What it is to do next, with a number of its own.
    pub(super) task: Option<(u64, Task)>,
    /// Tasks so far.
    pub(super) tasks: u64,
}

impl State {
    /// Whether the CPU is off, and stays so until it is started.
    pub(super) fn is_off(&self) -> bool {
        self.off && self.start.is_none()
    }
}

/// What a CPU is to do, once it was told what is asked of it.
pub(super) enum Attended {
    /// Run the guest.
    Run,
    /// Start as another CPU says, and then ask again.
    Start(CpuStart),
    /// End.
    End,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the machine thread directs a CPU with.
#[derive(Default)]
pub(super) struct Control {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    /// Set when the state asks something of the CPU, so that it looks.
    pub(super) attention: AtomicBool,
    pub(super) kick: OnceLock<Arc<dyn Kick>>,
    pub(super) exits: ExitCounters,
}

impl Control {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Changes what is asked of the CPU, and makes it look.
    pub(super) fn direct(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        self.attention.store(true, Ordering::Release);
        self.changed.notify_all();
        drop(state);
        if let Some(kick) = self.kick.get() {
            kick.kick();
        }
    }

    /// Waits until `state` is as it should be, at most for [`PATIENCE`]. `false`: it is not.
    pub(super) fn wait(&self, mut is_so: impl FnMut(&State) -> bool) -> bool {
        let waiting = self.changed.wait_timeout_while(self.lock(), PATIENCE, |state| !is_so(state));
        !waiting.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Another CPU of the guest's starts this one.
    pub(super) fn start(&self, start: CpuStart) -> CpuAnswer {
        let mut state = self.lock();
        if state.ending || state.ended {
            return CpuAnswer::Absent;
        }
        if !state.is_off() {
            return CpuAnswer::AlreadyOn;
        }
        state.start = Some(start);
        // Whoever waits for it to be parked waits until it has started, and is parked again.
        state.parked = false;
        // It is out of the guest, or on its way to ask what to do.
        self.changed.notify_all();
        CpuAnswer::Starts
    }

    /// Whether the guest has the CPU on.
    pub(super) fn is_on(&self) -> bool {
        !self.lock().is_off()
    }

    /// The CPU was started, or cannot be.
    pub(super) fn started(&self, off: bool) {
        let mut state = self.lock();
        state.start = None;
        state.off = off;
    }

    /// The guest stopped the CPU.
    pub(super) fn stopped(&self) {
        self.lock().off = true;
        self.attention.store(true, Ordering::Release);
    }

    /// Does what is asked, on the CPU's thread, and calls `parked` when it is parked for a pause, and `woken` when it is told of something
    /// while it waits.
    pub(super) fn attend(&self, vcpu: &mut dyn Vcpu, parked: impl Fn(), mut woken: impl FnMut()) -> Attended {
        let mut state = self.lock();
        loop {
            if state.ending && state.task.is_none() {
                return Attended::End;
            }
            // Also while it is paused: what the guest was told has happened is part of the CPU's state.
            if let Some(start) = state.start {
                return Attended::Start(start);
            }
            if let Some((_, task)) = state.task.take() {
                drop(state);
                let tell = task(vcpu);
                let off = vcpu.is_off();
                state = self.lock();
                state.off = off;
                self.changed.notify_all();
                tell();
                continue;
            }
            let waits = state.paused || state.held || state.throttled || state.effects != 0;
            if !waits && !state.off {
                state.parked = false;
                self.attention.store(false, Ordering::Release);
                return Attended::Run;
            }
            let newly = !std::mem::replace(&mut state.parked, true);
            if newly {
                self.changed.notify_all();
            }
            if state.paused && (newly || !state.told) {
                state.told = true;
                parked();
            }
            drop(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
            woken();
            state = self.lock();
        }
    }
}
