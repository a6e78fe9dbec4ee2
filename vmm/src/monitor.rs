//! The machine thread: owns the configuration and the machine, and does what it is told, one thing after the other.
//!
//! What is told arrives as an [`Event`]. Queries are answered at once, whatever is under way. A call that changes the machine
//! waits its turn while a start, a pause, a restart or an end is being completed; one that ends the machine does not.

mod booting;
mod created;
mod deadlines;
mod ending;
mod figures;

pub use booting::Progress;
pub use deadlines::Limits;

use crate::api::{Answer, ApiError, Call, ErrorKind, Reply, Request, Respond};
use crate::config::VmConfig;
use crate::console_thread::ConsoleThread;
use crate::event::Events;
use crate::machine::{Ended, Machine};
use crate::message::{Event, Inbox, Message, Source, Work};
use crate::seccomp::{self, ThreadKind};
use crate::settle::settle;
use crate::{guest_faults, metrics};
use anyhow::{Context, Result};
use booting::Booting;
use created::{change_created, with_files};
use deadlines::Outstanding;
use ending::{AfterEnd, Leaving};
use figures::{all_samples, part, ping};
use hypervisor::Hypervisor;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// How long after the last call the process gives back what answering it took.
const REST: Duration = Duration::from_secs(3);

/// What there is to run.
enum Vm {
    /// Nothing.
    Absent,
    /// A configuration.
    Created(Box<VmConfig>),
    /// A machine that is being built.
    Booting(Box<Booting>),
    /// A machine.
    Booted(Box<Machine>),
    /// A machine that has ended, and is being taken apart.
    Leaving(Box<Leaving>),
}

/// The machine thread's state.
pub struct Monitor {
    hypervisor: Arc<dyn Hypervisor>,
    inbox: Inbox,
    source: Box<dyn Source>,
    consoles: Arc<ConsoleThread>,
    events: Events,
    vm: Vm,
    /// Counts machines.
    machines: u64,
    /// What threads do for machines, also for one that is gone.
    work: Work,
    /// Calls that are not answered yet.
    outstanding: Outstanding,
    limits: Limits,
    after_end: Option<AfterEnd>,
    /// When what calls took is given back.
    rest: Option<Instant>,
    /// When the process was told to end.
    quitting: Option<Instant>,
    /// Machines wait for a debugger before their first instruction.
    held: bool,
    /// Sockets of the process itself, which it takes away at its end.
    own_sockets: Vec<PathBuf>,
    /// Descriptors that came with devices, as long as the configuration names them: it may be booted again. A machine has those that came
    /// while it ran.
    files: Vec<OwnedFd>,
}

fn not_created() -> ApiError {
    ApiError::new(ErrorKind::NotFound, "there is no machine; create one with vm.create")
}

fn not_booted() -> ApiError {
    ApiError::new(ErrorKind::State, "the machine is not running; start it with vm.boot")
}

impl Monitor {
    /// A machine thread without a machine. It is the thread that calls [`Monitor::run`].
    ///
    /// # Errors
    /// When the host is out of resources.
    pub fn new(hypervisor: Arc<dyn Hypervisor>) -> Result<Self> {
        let (inbox, received) = Inbox::new();
        let faults =
            guest_faults::install().context("dealing with guest memory that the host cannot give")?;
        let consoles = ConsoleThread::start(inbox.clone(), faults, || seccomp::confine(ThreadKind::Console))?;
        Ok(Self {
            hypervisor,
            inbox,
            source: Box::new(received),
            consoles: Arc::new(consoles),
            events: Events::default(),
            vm: Vm::Absent,
            machines: 0,
            work: Work::default(),
            outstanding: Outstanding::default(),
            limits: Limits::default(),
            after_end: None,
            rest: None,
            quitting: None,
            held: false,
            own_sockets: Vec::new(),
            files: Vec::new(),
        })
    }

    /// Where the thread is told things.
    pub fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// Has another source decide when the thread gets what it is told: one that takes it from the one there is.
    pub fn schedule(&mut self, by: impl FnOnce(Box<dyn Source>) -> Box<dyn Source>) {
        let (_, none) = Inbox::new();
        let plain = std::mem::replace(&mut self.source, Box::new(none));
        self.source = by(plain);
    }

    /// Where it tells what happens.
    pub fn events(&self) -> Events {
        self.events.clone()
    }

    /// Has what is to be done take no longer than `limits`.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
        self.outstanding = Outstanding::new(limits);
    }

    /// The API does something: what that takes is given back when it has done nothing for a while.
    pub fn settle_later(&mut self) {
        self.rest = Instant::now().checked_add(REST);
    }

    /// Has machines wait for a debugger before their first instruction.
    pub fn hold_for_debugger(&mut self) {
        self.held = true;
    }

    /// Keeps the right to take away a socket of the process itself, whatever confines the machine.
    pub fn keep_removable(&mut self, socket: &Path) {
        self.own_sockets.push(socket.to_owned());
    }

    /// Does what the thread is told until the process is to end. The machine's own end is one, unless the API asked for it.
    ///
    /// # Errors
    /// When the machine of the command line cannot be had, naming the option at fault, or the host fails the machine in a way it
    /// cannot go on after.
    pub fn run(mut self) -> Result<Ended> {
        if matches!(self.vm, Vm::Absent) {
            settle();
        }
        loop {
            if let Some(ended) = self.next(None)? {
                self.events.emit("vmm", "shutdown");
                return Ok(ended);
            }
        }
    }

    /// Does the next thing the thread is told, if it is before `limit`. `Some`: the process is to end.
    fn next(&mut self, limit: Option<Instant>) -> Result<Option<Ended>> {
        let deadline = self.deadline();
        let mut ended = match self.source.next(deadline.into_iter().chain(limit).min()) {
            Ok(event) => self.handle(event)?,
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("every thread of the machine has ended"),
        };
        let now = Instant::now();
        if ended.is_none() && deadline.is_some_and(|at| at <= now) {
            ended = self.overdue(now)?;
        }
        if let Some(quit) = self.machine_ended(ended)? {
            return Ok(Some(quit));
        }
        self.close_files();
        while !self.busy()
            && let Some(call) = self.outstanding.next_turn()
        {
            let ended = self.call(call)?;
            if let Some(quit) = self.machine_ended(ended)? {
                return Ok(Some(quit));
            }
        }
        Ok(None)
    }

    /// When [`Monitor::overdue`] is to be called, if nothing happens before.
    fn deadline(&mut self) -> Option<Instant> {
        let of_machine = match &self.vm {
            Vm::Booted(machine) => machine.deadline(),
            Vm::Booting(booting) => booting.deadline(),
            Vm::Leaving(leaving) => Some(leaving.deadline()),
            Vm::Absent | Vm::Created(_) => None,
        };
        of_machine.into_iter().chain(self.outstanding.deadline()).chain(self.rest).min()
    }

    /// Gives up what was not done in its time. `Some`: the machine has ended.
    fn overdue(&mut self, now: Instant) -> Result<Option<Ended>> {
        self.outstanding.give_up(now);
        if self.rest.is_some_and(|at| at <= now) {
            self.rest = None;
            settle();
        }
        match &mut self.vm {
            Vm::Booted(machine) => Ok(machine.overdue(now)),
            Vm::Booting(booting) if booting.deadline().is_some_and(|at| at <= now) => {
                Ok(Some(Ended::Terminated))
            }
            Vm::Leaving(leaving) => Ok(leaving.overdue(now)),
            _ => Ok(None),
        }
    }

    /// Closes descriptors that no network interface has any more.
    fn close_files(&mut self) {
        if self.work.is_shared() && !matches!(self.vm, Vm::Booted(_)) {
            // A machine that is still being built duplicates them by their numbers, also one that was given up.
            return;
        }
        let config = match &self.vm {
            Vm::Absent => None,
            Vm::Created(config) => Some(&**config),
            Vm::Booting(booting) => Some(booting.config()),
            Vm::Booted(machine) => Some(machine.config()),
            Vm::Leaving(leaving) => Some(leaving.config()),
        };
        let named = |file: &OwnedFd| {
            let mut fds =
                config.iter().flat_map(|config| &config.net).flat_map(|net| net.fds.iter().flatten());
            fds.any(|fd| *fd == file.as_raw_fd())
        };
        self.files.retain(named);
    }

    fn busy(&self) -> bool {
        match &self.vm {
            Vm::Absent | Vm::Created(_) => false,
            Vm::Booting(_) | Vm::Leaving(_) => true,
            Vm::Booted(machine) => machine.busy(),
        }
    }

    /// Whether what there is comes to its end.
    fn ending(&self) -> bool {
        match &self.vm {
            Vm::Absent | Vm::Created(_) => false,
            Vm::Booting(booting) => booting.ending(),
            Vm::Booted(machine) => machine.ending(),
            Vm::Leaving(_) => true,
        }
    }

    /// `Some`: the machine has ended.
    fn handle(&mut self, event: Event) -> Result<Option<Ended>> {
        match event {
            Event::Machine { machine: number, message } => match &mut self.vm {
                Vm::Booted(machine) if number == self.machines => machine.handle(message),
                _ => Ok(None),
            },
            Event::Call(call) => {
                self.settle_later();
                self.call(call)
            }
            Event::Boot { machine, progress, work } => self.boot_went_on(machine, progress, work),
            Event::Gone { machine } => Ok(self.gone(machine)),
            Event::Debugger(ask) => {
                match &mut self.vm {
                    Vm::Booted(machine) => ask(Some(machine)),
                    Vm::Booting(booting) => booting.ask_later(ask),
                    Vm::Absent | Vm::Created(_) | Vm::Leaving(_) => ask(None),
                }
                Ok(None)
            }
            Event::MemoryLost { address } => {
                let lost = Message::MemoryLost { address };
                match &mut self.vm {
                    Vm::Booted(machine) => return machine.handle(lost),
                    Vm::Booting(booting) => booting.ask_later(Box::new(move |machine| {
                        if let Some(machine) = machine {
                            machine.remind(lost);
                        }
                    })),
                    // It was of a machine that is gone.
                    Vm::Absent | Vm::Created(_) | Vm::Leaving(_) => {}
                }
                Ok(None)
            }
            Event::PowerButton => {
                if let Vm::Booted(machine) = &self.vm {
                    machine.press_power_button();
                }
                Ok(None)
            }
            Event::Terminate => Ok(self.terminate(None)),
        }
    }

    /// Does what a call asks, or has it wait its turn. `Some`: the machine has ended.
    fn call(&mut self, call: Call) -> Result<Option<Ended>> {
        let query = call.request.is_query();
        let at_once = match call.request {
            Request::VmmShutdown => true,
            Request::Shutdown | Request::Delete => !self.ending(),
            _ => query,
        };
        if self.busy() && !at_once {
            self.outstanding.wait(call);
            return Ok(None);
        }
        let call = if query { call } else { self.outstanding.begin(call) };
        let Call { request, files, respond, .. } = call;
        match request {
            Request::Ping => respond(ping()),
            Request::Info => respond(self.info()),
            Request::Metrics => respond(Ok(Reply::Text(self.metrics()))),
            Request::Unsupported(verb) => respond(Err(not_supported(verb))),
            Request::VmmShutdown => return Ok(self.terminate(Some(respond))),
            Request::Create(config) => respond(self.create(config)),
            Request::Delete => return Ok(self.delete(respond)),
            Request::Boot => self.boot_created(respond),
            request => return self.call_machine(request, files, respond),
        }
        Ok(None)
    }

    /// Does what is asked of the machine itself.
    fn call_machine(
        &mut self,
        request: Request,
        files: Vec<OwnedFd>,
        respond: Respond,
    ) -> Result<Option<Ended>> {
        let machine = match &mut self.vm {
            Vm::Booted(machine) => machine,
            Vm::Booting(_) if matches!(request, Request::Shutdown) => {
                return Ok(self.end(AfterEnd::Keep(respond)));
            }
            Vm::Booting(_) | Vm::Leaving(_) => {
                respond(Err(not_booted()));
                return Ok(None);
            }
            Vm::Created(config) => {
                let request = with_files(request, &files);
                self.files.extend(files);
                respond(change_created(config, &request));
                return Ok(None);
            }
            Vm::Absent => {
                respond(Err(not_created()));
                return Ok(None);
            }
        };
        match request {
            Request::Pause if machine.paused() => {
                respond(Err(ApiError::new(ErrorKind::State, "the machine is paused already")));
            }
            Request::Pause => machine.pause(respond),
            Request::Resume if !machine.paused() => {
                respond(Err(ApiError::new(ErrorKind::State, "the machine is not paused")));
            }
            Request::Resume => {
                machine.resume();
                respond(Ok(Reply::Done));
            }
            Request::Shutdown => return Ok(self.end(AfterEnd::Keep(respond))),
            Request::Reboot => machine.reset(Some(respond)),
            Request::PowerButton => {
                machine.press_power_button();
                respond(Ok(Reply::Done));
            }
            Request::Inspect(inspect) => machine.inspect_all(move |tree| respond(part(&tree, &inspect.path))),
            Request::Nmi => respond(machine.nmi()),
            Request::SetThrottle(throttle) => respond(machine.set_throttle(&throttle)),
            Request::SetAffinity(affinity) => respond(machine.set_affinity(&affinity)),
            Request::Coredump(coredump) => machine.dump(&coredump, respond),
            Request::Counters => respond(Ok(Reply::Json(metrics::counters(&all_samples(machine.samples()))))),
            Request::Add(device) => machine.add_device(device, files, respond),
            Request::AddPort(add) => respond(machine.add_port(*add)),
            Request::RemoveDevice(remove) => machine.remove_device(remove, respond)?,
            Request::Resize(sizes) => machine.resize(sizes, respond),
            Request::ResizeZone(size) => respond(machine.resize_zone(&size)),
            Request::ResizeDisk(resize) => machine.resize_disk(resize, respond),
            Request::SetRateLimit(limit) => respond(machine.set_rate_limit(&limit)),
            Request::SetLink(link) => respond(machine.set_link(&link)),
            other => respond(Err(not_supported(&format!("{other:?}")))),
        }
        Ok(None)
    }

    fn create(&mut self, mut config: Box<VmConfig>) -> Answer {
        if !matches!(self.vm, Vm::Absent) {
            return Err(ApiError::new(
                ErrorKind::Conflict,
                "there is a machine already; vm.delete it before another one is created",
            ));
        }
        config.name_devices();
        config.validate_start()?;
        self.vm = Vm::Created(config);
        self.events.emit("vm", "created");
        Ok(Reply::Done)
    }

    fn boot_created(&mut self, respond: Respond) {
        let config = match &self.vm {
            Vm::Created(config) => config.clone(),
            Vm::Booting(_) | Vm::Booted(_) | Vm::Leaving(_) => {
                return respond(Err(ApiError::new(ErrorKind::State, "the machine is running already")));
            }
            Vm::Absent => return respond(Err(not_created())),
        };
        if let Err(error) = self.check_no_work() {
            return respond(Err(error));
        }
        if let Err((error, respond)) = self.begin_boot(config, Some(respond)) {
            answer(respond, Err(ApiError::internal(format!("{error:#}"))));
        }
    }

    fn delete(&mut self, respond: Respond) -> Option<Ended> {
        match &mut self.vm {
            Vm::Absent => respond(Err(not_created())),
            Vm::Created(_) => {
                self.vm = Vm::Absent;
                self.events.emit("vm", "deleted");
                respond(Ok(Reply::Done));
            }
            Vm::Booting(_) | Vm::Booted(_) | Vm::Leaving(_) => return self.end(AfterEnd::Forget(respond)),
        }
        None
    }
}

fn not_supported(verb: &str) -> ApiError {
    ApiError::new(ErrorKind::NotSupported, format!("{verb} is not supported yet"))
}

fn answer(respond: Option<Respond>, answer: Answer) {
    if let Some(respond) = respond {
        respond(answer);
    }
}
