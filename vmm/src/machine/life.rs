//! A machine's life: it runs, is paused, goes on, is reset in place, and ends.
//!
//! What has to wait for workers (their requests in flight) is a phase: it is begun here, and completed by the message of the
//! last worker that came to rest. A call that waits for it is answered then.

use super::pci_bus::Completion;
use super::{Ended, Machine};
use crate::api::{ApiError, ErrorKind, Reply, Respond};
use crate::cpu::CpuThread;
use crate::message::{Failure, Message};
use anyhow::Result;
use devices::pvpanic::PANICKED;
use machine::effect::{DeviceChange, Effect, HotplugPart};
use std::time::Instant;

/// What a machine is doing.
pub enum Phase {
    /// The CPUs run.
    Running,
    /// The CPUs park, then workers come to rest.
    Pausing {
        /// Takes the answer.
        respond: Respond,
        /// When to give up.
        deadline: Instant,
        /// The CPUs are parked.
        parked: bool,
    },
    /// Nothing runs.
    Paused,
    /// The CPUs park, then workers come to rest, then all is as at power-on.
    Resetting {
        /// Takes the answer, if the API asked for it.
        respond: Option<Respond>,
        /// The CPUs are parked.
        parked: bool,
    },
    /// All is as at power-on; the kernel is being read.
    Loading {
        /// Takes the answer, if the API asked for it.
        respond: Option<Respond>,
    },
    /// The CPUs end; workers come to rest.
    Ending {
        /// How it came to that.
        ended: Ended,
        /// When nobody waits for the workers any more.
        deadline: Instant,
    },
}

impl Machine {
    /// Lets a machine that was just built run.
    pub fn start(&mut self) {
        self.phase = Phase::Running;
        for cpu in &self.cpus {
            cpu.resume();
        }
    }

    /// Whether something is under way that changes of the machine have to wait for.
    pub fn busy(&self) -> bool {
        !self.at_ease() || self.growing() || self.releasing_memory()
    }

    /// Whether it runs or is paused, and nothing is under way by which that changes.
    pub(super) fn at_ease(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Paused) && self.dump.is_none() && self.crash.is_none()
    }

    /// Whether the guest runs, and goes on to.
    pub(super) fn runs(&self) -> bool {
        self.at_ease() && !self.paused()
    }

    /// Whether it begins anew.
    pub(super) fn resetting(&self) -> bool {
        matches!(self.phase, Phase::Resetting { .. } | Phase::Loading { .. })
    }

    /// Whether the CPUs are stopped by a pause.
    pub fn paused(&self) -> bool {
        matches!(self.phase, Phase::Paused)
    }

    /// Whether workers have not come to rest.
    pub fn stopping(&self) -> bool {
        self.pci.stopping()
    }

    /// Whether the machine is coming to its end.
    pub fn ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. })
    }

    /// Acts upon what a thread of the machine tells.
    ///
    /// # Errors
    /// When the host fails the machine in a way it cannot go on after.
    pub fn handle(&mut self, message: Message) -> Result<Option<Ended>> {
        let ended = self.act_upon(message)?;
        // What waited for the machine to be idle.
        self.seat_opened_if_idle();
        Ok(ended)
    }

    fn act_upon(&mut self, message: Message) -> Result<Option<Ended>> {
        match message {
            Message::Effect { cpu, generation, effect } => {
                if self.is_current(generation) {
                    return self.apply(cpu, effect);
                }
            }
            Message::TasksStopped { function, tasks } => {
                if self.pci.stopped(function, tasks)? == Completion::Done {
                    self.settled(function);
                    self.note_stopped(function);
                    for address in std::iter::once(function).chain(self.pci.completed_resets(function)) {
                        self.slot_settled(address)?;
                        for cpu in self.waiting.remove(&address).unwrap_or_default() {
                            self.effect_done(cpu);
                        }
                    }
                }
                if !self.pci.stopping() {
                    return self.at_rest();
                }
            }
            Message::Loaded(reloaded) => self.loaded(*reloaded)?,
            Message::Populated(result) => self.populated(result),
            Message::MemoryReleased => self.memory_released(),
            Message::CpuParked => return self.when_parked(),
            Message::WatchdogExpired(id) => return Ok(self.watchdog_expired(&id)),
            Message::Opened { addition, result, files, work } => {
                self.opened(addition, result, files);
                drop(work);
            }
            Message::Dumped(result) => {
                self.dumped(result);
                return Ok(self.after_crash());
            }
            Message::CpuStopped { cpu, stop } => self.stopped_for_debugger(cpu, stop)?,
            Message::MemoryLost { address } => return Ok(self.crashed(Some(Failure::Memory { address }))),
            Message::CpuFailed { generation, failure } => {
                // A machine that restarts has its CPUs anew.
                if self.is_current(generation) && !self.resetting() {
                    return Ok(self.crashed(Some(failure)));
                }
            }
        }
        Ok(None)
    }

    /// Has the machine deal with `message` when it comes to that.
    pub fn remind(&self, message: Message) {
        self.mailbox.post(message);
    }

    /// Does what was made ready meanwhile, if nothing else is under way: puts devices in their places, and completes a change of sizes.
    fn seat_opened_if_idle(&mut self) {
        if self.at_ease() {
            self.seat_opened();
            self.complete_growth();
        }
    }

    /// All workers have come to rest: completes the phase that waited for it.
    pub(super) fn at_rest(&mut self) -> Result<Option<Ended>> {
        match std::mem::replace(&mut self.phase, Phase::Paused) {
            Phase::Pausing { respond, parked: true, .. } => {
                self.tell("paused");
                respond(Ok(Reply::Done));
                return Ok(self.dump_crash());
            }
            Phase::Resetting { respond, parked: true } => {
                self.phase = Phase::Loading { respond };
                if let Err(error) = self.power_on().and_then(|()| self.begin_loading()) {
                    self.answer_restart(Err(error))?;
                }
            }
            Phase::Ending { ended, .. } => return Ok(Some(ended)),
            other => self.phase = other,
        }
        Ok(None)
    }

    /// Whether what a CPU did in this generation still counts: the machine has not been reset since.
    fn is_current(&self, generation: u64) -> bool {
        generation == self.cpus.generation()
    }

    fn apply(&mut self, cpu: u32, effect: Effect) -> Result<Option<Ended>> {
        if self.ending() || self.resetting() {
            // Nothing comes of it any more.
            return Ok(None);
        }
        if matches!(self.phase, Phase::Pausing { .. } | Phase::Paused) {
            // The CPU made the access before it was stopped: it is part of what happens when the machine goes on.
            self.held.push((cpu, effect));
            return Ok(None);
        }
        match effect {
            Effect::PowerOff => return Ok(self.end(Ended::PoweredOff)),
            Effect::Reset => {
                self.reset(None);
                return Ok(None);
            }
            Effect::Panicked(events) | Effect::Function(_, DeviceChange::Panicked(events)) => {
                self.effect_done(cpu);
                return Ok(self.panicked(events));
            }
            // This thread asks before it waits again.
            Effect::Deadline => {}
            Effect::Eject { segment, devices } => {
                if self.eject(cpu, segment, devices)? == Completion::Later {
                    return Ok(None);
                }
            }
            Effect::DirectMemory(number) => self.flash.follow(&*self.vm, number)?,
            Effect::EjectCpu(number) => self.cpu_ejected(number),
            Effect::EjectMemory(slot) => self.memory_ejected(slot)?,
            Effect::ReleaseRefused { part: HotplugPart::Cpu, number, status } => {
                self.cpu_refused(number, status)
            }
            Effect::ReleaseRefused { part: HotplugPart::Memory, number, status } => {
                self.memory_refused(number, status);
            }
            Effect::Function(address, change) => {
                if self.pci.apply(address, change)? == Completion::Later {
                    self.waiting.entry(address).or_default().push(cpu);
                    return Ok(None);
                }
                if change == DeviceChange::ResetBelow {
                    self.slot_settled(address)?;
                }
            }
        }
        self.effect_done(cpu);
        Ok(None)
    }

    /// The guest reports panics, by event bits. A guest that has two devices for it reports to both; each event is told once. Nothing
    /// is heard of one on the mainboard when that on PCI was removed.
    fn panicked(&mut self, events: u8) -> Option<Ended> {
        if !self.config.hears_panics() {
            return None;
        }
        let new = events & !self.panics;
        self.panics |= events;
        if new != 0 {
            tracing::warn!(events = new, "the guest reports a panic");
            self.events.emit_for_guest("guest", "panic", [("events", new.into())]);
        }
        // Else the guest has a kernel that deals with it.
        if new & PANICKED != 0 { self.crashed(None) } else { None }
    }

    /// Tells what the machine does, which may be the guest's doing.
    pub(super) fn tell(&self, event: &'static str) {
        if self.crash.is_some() {
            self.events.emit_for_guest("vm", event, []);
        } else {
            self.events.emit("vm", event);
        }
    }

    pub(super) fn effect_done(&self, cpu: u32) {
        if let Some(cpu) = self.cpus.get(cpu) {
            cpu.effect_done();
        }
    }

    /// Goes on with a pause or a restart when all CPUs are parked, of which each tells.
    fn when_parked(&mut self) -> Result<Option<Ended>> {
        let (Phase::Pausing { parked, .. } | Phase::Resetting { parked, .. }) = &mut self.phase else {
            return Ok(None);
        };
        if *parked || !(&self.cpus).into_iter().all(CpuThread::is_parked) {
            return Ok(None);
        }
        *parked = true;
        let waits = match self.phase {
            Phase::Resetting { .. } => self.stop_for_reset(),
            _ => self.pci.pause(),
        };
        if waits || self.pci.stopping() { Ok(None) } else { self.at_rest() }
    }

    pub(super) fn park_cpus(&self) {
        for cpu in &self.cpus {
            cpu.pause();
        }
    }

    /// Stops the CPUs and the workers, and answers when they have.
    pub fn pause(&mut self, respond: Respond) {
        self.tell("pausing");
        self.park_cpus();
        self.hold_watchdog();
        self.phase = Phase::Pausing { respond, deadline: super::after(self.limits.pause), parked: false };
    }

    /// Goes on after a pause.
    pub fn resume(&mut self) {
        self.events.emit("vm", "resuming");
        self.pci.resume();
        self.start();
        self.release_watchdog();
        for (cpu, effect) in std::mem::take(&mut self.held) {
            let generation = self.cpus.generation();
            self.mailbox.post(Message::Effect { cpu, generation, effect });
        }
        self.events.emit("vm", "resumed");
    }

    /// Begins to end what runs, so that requests in flight are complete. `Some`: it has ended.
    pub fn end(&mut self, ended: Ended) -> Option<Ended> {
        if self.ending() {
            return None;
        }
        for cpu in &self.cpus {
            cpu.ask_to_end();
        }
        let refusal = || ApiError::new(ErrorKind::Conflict, "the machine ended");
        let refused = || Err(refusal());
        match std::mem::replace(&mut self.phase, Phase::Paused) {
            Phase::Pausing { respond, .. }
            | Phase::Resetting { respond: Some(respond), .. }
            | Phase::Loading { respond: Some(respond) } => respond(refused()),
            _ => {}
        }
        if let Some(respond) = self.dump.take() {
            respond(refused());
        }
        self.refuse_additions(refusal);
        self.refuse_growth(refusal);
        self.refuse_restarts(refusal);
        for removal in std::mem::take(&mut self.removals).into_values() {
            removal.answer(refused());
        }
        if self.pci.pause() || self.pci.stopping() {
            self.phase = Phase::Ending { ended, deadline: super::after(self.limits.end) };
            return None;
        }
        Some(ended)
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.platform.press_power_button();
    }

    /// When [`Machine::overdue`] is to be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Pausing { deadline, .. } | Phase::Ending { deadline, .. } => Some(*deadline),
            _ => None,
        };
        // While it comes to rest, or stands still for a debugger, watchdogs wait.
        let looked_at = self.at_ease() && !self.stopped_by_debugger();
        let watchdog = self.watchdog_deadline().filter(|_| looked_at);
        let calls = self.removal_deadline().into_iter().chain(self.addition_deadline());
        let devices = watchdog.into_iter().chain(self.clock_deadline()).chain(self.throttle.deadline());
        calls.chain(phase).chain(devices).chain(self.gathering_deadline()).min()
    }

    /// Gives up what was not done in its time, and looks at what wants to be. `Some`: the machine has ended.
    pub fn overdue(&mut self, now: Instant) -> Option<Ended> {
        let ended = self.give_up(now);
        self.seat_opened_if_idle();
        ended
    }

    fn give_up(&mut self, now: Instant) -> Option<Ended> {
        self.turn_throttle(now);
        self.give_up_removals(now);
        self.give_up_additions(now);
        self.give_up_gatherings(now);
        if matches!(&self.phase, Phase::Ending { deadline, .. } if *deadline <= now)
            && let Phase::Ending { ended, .. } = std::mem::replace(&mut self.phase, Phase::Paused)
        {
            return Some(ended);
        }
        if matches!(&self.phase, Phase::Pausing { deadline, .. } if *deadline <= now)
            && let Phase::Pausing { respond, parked, .. } = std::mem::replace(&mut self.phase, Phase::Paused)
        {
            if self.crash.is_some() && !parked {
                // There is nothing of a CPU to be dumped that the host keeps.
                tracing::error!("--on-crash: no core dump is written: a CPU does not leave the guest");
                self.pci.pause();
                respond(Err(ApiError::new(
                    ErrorKind::Timeout,
                    "the guest crashed, and the host keeps a CPU that did not leave it; devices rest",
                )));
                return self.after_crash();
            }
            if self.crash.is_some() {
                // Nothing of the guest runs, which is enough for a dump.
                respond(Ok(Reply::Done));
                return self.dump_crash();
            }
            self.resume();
            respond(Err(ApiError::new(
                ErrorKind::Timeout,
                format!(
                    "the machine is not paused and goes on: {} within {} seconds; look after the file systems that it uses",
                    if parked {
                        "devices have requests in flight that the host did not complete"
                    } else {
                        "the host keeps a CPU that did not leave the guest"
                    },
                    self.limits.pause.as_secs_f64()
                ),
            )));
        }
        self.look_at_clock();
        self.look_at_watchdog()
    }
}
