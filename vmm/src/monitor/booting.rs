//! Building a machine, which is done by a thread of its own: it opens images and reads a kernel, for as long as their file
//! systems take, and gives the guest its memory, which may be much. Meanwhile the machine thread answers what it is asked, and
//! gives the machine up when it is told to.

use super::{Monitor, Vm, answer};
use crate::api::{ApiError, ErrorKind, Reply, Respond};
use crate::config::VmConfig;
use crate::landlock::{self, Rules};
use crate::machine::{Ended, Machine, Place};
use crate::message::{Event, Inquiry, Work};
use crate::settle::settle;
use anyhow::{Context, Result};
use devices::host_console::restore_terminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of the building thread's stack: more than the C library keeps of ended threads' stacks (40 MiB), so that what was
/// used of it goes back to the host with the thread. The rest is only address space.
const BUILD_STACK: usize = 64 << 20;

/// A machine that is being built.
pub(super) struct Booting {
    config: Box<VmConfig>,
    /// Takes the answer, if the API asked for it; else the process ends when the machine cannot be built.
    respond: Option<Respond>,
    /// It is no longer wanted, and this is when nobody waits for it any more.
    give_up: Option<Instant>,
    abandoned: Arc<AtomicBool>,
    made: Arc<NewFiles>,
    /// What is to confine the machine does not yet.
    confining: bool,
    /// What debuggers asked, who came early.
    inquiries: Vec<Inquiry>,
    /// The thread that builds it.
    thread: Option<JoinHandle<()>>,
}

/// How far building a machine has come.
pub enum Progress {
    /// What the machine may reach is known.
    Rules(Result<Rules>),
    /// It is complete, or cannot be had.
    Built(Result<Box<Machine>>),
}

/// The files for the guest's output that are not there yet: a machine that cannot be had leaves none behind.
#[derive(Default)]
struct NewFiles(Mutex<Vec<PathBuf>>);

impl NewFiles {
    fn note(&self, config: &VmConfig) {
        let files = [&config.serial.file, &config.debug_console.file].into_iter();
        let files = files.chain(config.console.iter().map(|console| &console.file));
        let absent = files.flatten().filter(|path| !path.exists()).cloned().collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = absent;
    }

    fn remove(&self) {
        for path in std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)) {
            // It may not have come to be made.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Booting {
    pub(super) fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Whether it is no longer wanted.
    pub(super) fn ending(&self) -> bool {
        self.give_up.is_some()
    }

    /// When nobody waits for it any more.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.give_up
    }

    /// It is no longer wanted, and nobody waits for it for longer than `last_chance`.
    pub(super) fn end(&mut self, last_chance: Duration) {
        self.give_up = Some(Instant::now() + last_chance);
    }

    /// Keeps what a debugger asks until there is a machine.
    pub(super) fn ask_later(&mut self, inquiry: Inquiry) {
        self.inquiries.push(inquiry);
    }

    /// Gives it up, built or not.
    pub(super) fn abandon(self) -> Box<VmConfig> {
        self.abandoned.store(true, Ordering::SeqCst);
        self.made.remove();
        // It may be a while until its console does.
        restore_terminal();
        answer(
            self.respond,
            Err(ApiError::new(ErrorKind::Conflict, "the machine was ended while it was being built")),
        );
        self.config
    }
}

impl Monitor {
    /// Begins to build the machine of `config`, which then runs; [`Monitor::run`] or [`Monitor::await_boot`] completes it. That it
    /// cannot be had is then their error.
    ///
    /// # Errors
    /// When the host is out of resources.
    pub fn boot(&mut self, config: VmConfig) -> Result<()> {
        self.begin_boot(Box::new(config), None).map_err(|(error, _)| error)
    }

    /// Does what the thread is told until no machine is being built any more; once what confines the machine does so, at most for
    /// `patience`. `Some`: the process is to end.
    ///
    /// # Errors
    /// When the machine of the command line cannot be had, naming the option at fault.
    pub fn await_boot(&mut self, patience: Option<Duration>) -> Result<Option<Ended>> {
        let mut limit = None;
        while let Vm::Booting(booting) = &self.vm {
            if !booting.confining && limit.is_none() {
                limit = patience.map(|patience| Instant::now() + patience);
            }
            if limit.is_some_and(|limit| Instant::now() >= limit) {
                break;
            }
            if let Some(ended) = self.next(limit)? {
                self.events.emit("vmm", "shutdown");
                return Ok(Some(ended));
            }
        }
        Ok(None)
    }

    /// Begins to build a machine. Gives `respond` back with an error.
    pub(super) fn begin_boot(
        &mut self,
        config: Box<VmConfig>,
        respond: Option<Respond>,
    ) -> Result<(), (anyhow::Error, Option<Respond>)> {
        self.machines += 1;
        let mut booting = Booting {
            confining: config.landlock_enable && !landlock::enforced(),
            config,
            respond,
            give_up: None,
            abandoned: Arc::default(),
            made: Arc::default(),
            inquiries: Vec::new(),
            thread: None,
        };
        let begun = if booting.confining {
            let (config, own_sockets) = (booting.config.clone(), self.own_sockets.clone());
            self.on_a_thread(&booting, move || Progress::Rules(landlock::rules(&config, &own_sockets)))
        } else {
            self.build(&booting)
        };
        match begun {
            Ok(thread) => booting.thread = Some(thread),
            Err(error) => return Err((error, booting.respond)),
        }
        self.events.emit("vm", "booting");
        self.vm = Vm::Booting(Box::new(booting));
        Ok(())
    }

    /// A machine that was given up has its images, its console and its memory until the host has done what its thread waits for: there
    /// is no other before.
    pub(super) fn check_no_work(&self) -> Result<(), ApiError> {
        if self.work.is_shared() {
            return Err(ApiError::new(
                ErrorKind::Conflict,
                "the host still works on the files of a machine that was given up; look after the file system they are on and \
                 try again, or end this process",
            ));
        }
        Ok(())
    }

    /// Has a thread build the machine.
    fn build(&self, booting: &Booting) -> Result<JoinHandle<()>> {
        let (config, made) = (VmConfig::clone(&booting.config), Arc::clone(&booting.made));
        let (hypervisor, consoles) = (Arc::clone(&self.hypervisor), Arc::clone(&self.consoles));
        let limits = self.limits;
        let (mailbox, events, work) =
            (self.inbox.mailbox(self.machines), self.events.clone(), self.work.clone());
        self.on_a_thread(booting, move || {
            made.note(&config);
            let place =
                Place { hypervisor: &*hypervisor, mailbox, consoles: &consoles, events, work, limits };
            let built = Machine::new(config, place);
            Progress::Built(built.map(Box::new).map_err(|error| {
                let hint = landlock::hint(&error);
                anyhow::anyhow!("{}{hint}", crate::cli::failure(&error))
            }))
        })
    }

    fn on_a_thread(
        &self,
        booting: &Booting,
        build: impl FnOnce() -> Progress + Send + 'static,
    ) -> Result<JoinHandle<()>> {
        let (inbox, machine, work) = (self.inbox.clone(), self.machines, self.work.clone());
        let (abandoned, made) = (Arc::clone(&booting.abandoned), Arc::clone(&booting.made));
        let thread = std::thread::Builder::new().name("build".into()).stack_size(BUILD_STACK);
        let spawned = thread.spawn(move || {
            let progress = build();
            if abandoned.load(Ordering::SeqCst) {
                // In this order: another machine may be built from then on.
                drop(progress);
                made.remove();
                drop(work);
            } else {
                inbox.tell(Event::Boot { machine, progress, work });
            }
        });
        spawned.context("starting a thread")
    }

    /// Building a machine has gone on. `Some`: it has ended.
    ///
    /// # Errors
    /// When it was the command line's, and cannot be had.
    pub(super) fn boot_went_on(
        &mut self,
        machine: u64,
        progress: Progress,
        work: Work,
    ) -> Result<Option<Ended>> {
        let mut booting = match std::mem::replace(&mut self.vm, Vm::Absent) {
            Vm::Booting(booting) if machine == self.machines => booting,
            // It was given up, and what has come of it is dropped before the work is.
            vm => {
                self.vm = vm;
                drop(progress);
                drop(work);
                return Ok(None);
            }
        };
        if booting.ending() {
            // Its files and locks are given back before anybody is told.
            drop(progress);
            drop(work);
            self.vm = Vm::Booting(booting);
            return Ok(Some(Ended::Terminated));
        }
        booting.confining = false;
        let failed = match progress {
            Progress::Rules(rules) => {
                match rules.and_then(Rules::enforce).and_then(|()| self.build(&booting)) {
                    Ok(thread) => {
                        booting.thread = Some(thread);
                        self.vm = Vm::Booting(booting);
                        return Ok(None);
                    }
                    Err(error) => error,
                }
            }
            Progress::Built(Ok(machine)) => {
                self.booted(*booting, machine);
                return Ok(None);
            }
            Progress::Built(Err(error)) => error,
        };
        booting.made.remove();
        let reason = crate::cli::failure(&failed);
        self.events.emit_with("vm", "boot-failed", [("reason", reason.clone().into())]);
        let Booting { config, respond, .. } = *booting;
        let Some(respond) = respond else { return Err(failed) };
        self.vm = Vm::Created(config);
        respond(Err(ApiError::bad(reason)));
        Ok(None)
    }

    fn booted(&mut self, booting: Booting, mut machine: Box<Machine>) {
        if self.held {
            machine.hold_for_debugger();
        }
        machine.start();
        for inquiry in booting.inquiries {
            inquiry(Some(&mut *machine));
        }
        self.vm = Vm::Booted(machine);
        self.events.emit("vm", "booted");
        answer(booting.respond, Ok(Reply::Done));
        // It told of the machine with its last breath, and what it leaves behind is to go as well.
        if let Some(thread) = booting.thread {
            let _ = thread.join();
        }
        settle();
    }
}
