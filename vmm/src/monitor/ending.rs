//! How a machine comes to its end. Its CPUs and workers are asked to end, then a thread of its own takes it apart: its consoles carry
//! their last output, its files are closed and its memory is given back, for as long as the host takes. Nobody waits for ever: what
//! hangs is left behind, and there is no other machine before it is gone.

use super::{Monitor, Vm, answer};
use crate::api::{Reply, Respond};
use crate::config::VmConfig;
use crate::log;
use crate::machine::{Ended, Machine};
use crate::message::Event;
use anyhow::Result;
use devices::host_console::restore_terminal;
use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Being told to end twice in this time is being told once: programs such as timeout(1) tell a process, and then its group.
const PATIENCE: Duration = Duration::from_secs(1);

/// What to do when the machine has ended.
pub(super) enum AfterEnd {
    /// Keep its configuration.
    Keep(Respond),
    /// Forget it.
    Forget(Respond),
    /// End the process.
    Quit(Option<Respond>),
}

/// A machine that has ended, and is being taken apart.
pub(super) struct Leaving {
    config: Box<VmConfig>,
    ended: Ended,
    deadline: Instant,
    /// Nobody waits for it any more.
    overdue: bool,
    /// The thread that takes it apart.
    thread: Option<JoinHandle<()>>,
}

impl Leaving {
    pub(super) fn config(&self) -> &VmConfig {
        &self.config
    }

    /// When nobody waits for it any more.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Gives it up if its time is over. `Some`: it is.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<Ended> {
        self.overdue = self.deadline <= now;
        self.overdue.then_some(Ended::Terminated)
    }
}

impl Monitor {
    /// Begins to end the process.
    pub(super) fn terminate(&mut self, respond: Option<Respond>) -> Option<Ended> {
        if self.ending() {
            if matches!(self.after_end, Some(AfterEnd::Quit(_))) {
                if self.quitting.is_some_and(|since| since.elapsed() < PATIENCE) {
                    answer(respond, Ok(Reply::Done));
                    return None;
                }
                abandon();
            }
            // It ends already; now the process does with it.
            self.quitting = Some(Instant::now());
            match self.after_end.replace(AfterEnd::Quit(respond)) {
                Some(AfterEnd::Keep(respond) | AfterEnd::Forget(respond)) => respond(Ok(Reply::Done)),
                Some(AfterEnd::Quit(respond)) => answer(respond, Ok(Reply::Done)),
                None => {}
            }
            return None;
        }
        self.quitting = Some(Instant::now());
        self.end(AfterEnd::Quit(respond))
    }

    /// Begins to end what there is. `Some`: it has ended.
    pub(super) fn end(&mut self, after: AfterEnd) -> Option<Ended> {
        self.after_end = Some(after);
        match &mut self.vm {
            Vm::Booted(machine) => machine.end(Ended::Terminated),
            Vm::Booting(booting) => {
                booting.end(self.limits.last_chance);
                None
            }
            Vm::Leaving(_) => None,
            Vm::Absent | Vm::Created(_) => Some(Ended::Terminated),
        }
    }

    /// The machine has ended, if there is an `ended`: `Some` if the process is to end with it.
    ///
    /// # Errors
    /// When the process is to end while the host still works for the machine.
    pub(super) fn machine_ended(&mut self, ended: Option<Ended>) -> Result<Option<Ended>> {
        let Some(ended) = ended else { return Ok(None) };
        match std::mem::replace(&mut self.vm, Vm::Absent) {
            Vm::Booted(machine) => {
                self.take_apart(machine, ended);
                Ok(None)
            }
            Vm::Leaving(leaving) if leaving.overdue => self.leave_behind(*leaving),
            Vm::Leaving(leaving) => Ok(self.after_end(leaving.config, leaving.ended)),
            Vm::Booting(booting) => {
                let config = booting.abandon();
                Ok(self.after_end(config, ended))
            }
            // There was none, and the process was asked to end.
            Vm::Absent | Vm::Created(_) => {
                if let Some(AfterEnd::Quit(respond)) = self.after_end.take() {
                    answer(respond, Ok(Reply::Done));
                }
                Ok(Some(ended))
            }
        }
    }

    /// Has a thread take a machine apart.
    fn take_apart(&mut self, mut machine: Box<Machine>, ended: Ended) {
        self.files.extend(machine.take_passed_files());
        let mut config = Box::new(machine.config().clone());
        config.set_terminals(&BTreeMap::new(), &BTreeMap::new());
        let limit = if machine.stopping() {
            self.limits.leave.min(self.limits.last_chance)
        } else {
            self.limits.leave
        };
        let deadline = Instant::now() + limit;
        let (inbox, number, work) = (self.inbox.clone(), self.machines, self.work.clone());
        let leave = move || {
            // In this order: another machine may be built from then on.
            drop(machine);
            drop(work);
            inbox.tell(Event::Gone { machine: number });
        };
        let thread = std::thread::Builder::new().name("leave".into()).stack_size(512 << 10);
        let thread = thread.spawn(leave);
        if let Err(error) = &thread {
            // What could not be moved there is gone with it, and nobody tells.
            tracing::warn!("starting a thread: {error}; the machine was taken apart without");
            self.inbox.tell(Event::Gone { machine: number });
        }
        self.vm =
            Vm::Leaving(Box::new(Leaving { config, ended, deadline, overdue: false, thread: thread.ok() }));
    }

    /// Nothing is left of a machine. `Some`: it is the one that has ended.
    pub(super) fn gone(&mut self, machine: u64) -> Option<Ended> {
        let Vm::Leaving(leaving) = &mut self.vm else { return None };
        if machine != self.machines {
            return None;
        }
        // It told of the machine with its last breath.
        if let Some(thread) = leaving.thread.take() {
            let _ = thread.join();
        }
        Some(Ended::Terminated)
    }

    /// A machine was not taken apart in its time: goes on without.
    fn leave_behind(&mut self, leaving: Leaving) -> Result<Option<Ended>> {
        // It may be a while until its console does.
        restore_terminal();
        let reason = "the host has not completed what it does for the machine that has ended; look after the file systems that its \
                      images and memory are on";
        tracing::error!("{reason}");
        self.events.emit_with("vm", "left-behind", [("reason", reason.into())]);
        match self.after_end(leaving.config, leaving.ended) {
            Some(_) => anyhow::bail!("{reason}"),
            None => Ok(None),
        }
    }

    /// What to do after the end. `Some`: the process is to end.
    fn after_end(&mut self, config: Box<VmConfig>, ended: Ended) -> Option<Ended> {
        self.events.emit("vm", "shutdown");
        match self.after_end.take() {
            Some(AfterEnd::Keep(respond)) => {
                self.vm = Vm::Created(config);
                respond(Ok(Reply::Done));
                None
            }
            Some(AfterEnd::Forget(respond)) => {
                self.events.emit("vm", "deleted");
                respond(Ok(Reply::Done));
                None
            }
            Some(AfterEnd::Quit(respond)) => {
                answer(respond, Ok(Reply::Done));
                Some(ended)
            }
            None => Some(ended),
        }
    }
}

/// Ends the process while requests are in flight, which a disk that hangs may never complete. The guest was not told that
/// any of them is.
fn abandon() -> ! {
    restore_terminal();
    log::last_words("told to end again: not waiting for requests that disks have not completed");
    std::process::exit(1)
}
