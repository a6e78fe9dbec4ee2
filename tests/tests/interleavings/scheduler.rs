//! The scheduler, and what it knows of the machine.

use super::threads::Threads;
use crate::calls::{Counts, Images, label, may_refuse};
use crate::control::instructions::reset;
use crate::control::{Random, release_all};
use hypervisor::sim::Sim;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use vmm::api::request::VmState;
use vmm::api::{Answer, Call, ErrorKind, Interest, Reply, Request};
use vmm::config::{DeviceConfig, VmConfig};
use vmm::message::{Event, Message, Source};

// Interrupts by which the guest is told to do something.
const GO_ON: u8 = 0x50;
const RESTART: u8 = 0x51;

/// A limit that does not pass.
const EVER_MS: Option<u64> = Some(3_600_000);

/// Most calls that are under way at the same time.
const TOGETHER: usize = 5;

/// A guest that lets go of what it is asked for, and accesses the machine only when told to: so not while the machine thread does
/// something.
pub fn guest(sim: &Sim) {
    sim.program(0, |cpu| {
        loop {
            release_all(cpu, |cpu| {
                loop {
                    match cpu.wait_interrupt() {
                        GO_ON => return,
                        RESTART => reset(cpu),
                        _ => {}
                    }
                }
            });
        }
    });
}

/// Accesses by which the guest has let go of all that it is asked for.
const ACCESSES: u32 = 40;

/// The one who told all that CPUs tell.
const CPUS: &str = "CPUs";

/// Who told something, and what. What one of them tells stays in its order.
fn described(event: &Event) -> (String, String) {
    let one = |what: &str| (what.to_owned(), what.to_owned());
    match event {
        Event::Boot { .. } => one("a boot went on"),
        Event::Gone { .. } => one("a machine is gone"),
        Event::Machine { message, .. } => match message {
            Message::Effect { cpu, effect, .. } => (CPUS.into(), format!("CPU {cpu}: {effect:?}")),
            Message::CpuParked => (CPUS.into(), "a CPU is parked".into()),
            Message::CpuFailed { failure, .. } => panic!("{failure}"),
            Message::Opened { addition, .. } => one(&format!("addition {addition} is open")),
            Message::TasksStopped { function, .. } => one(&format!("{function:?} is at rest")),
            Message::Loaded(_) => one("the kernel is loaded"),
            Message::Populated(_) => one("memory is there"),
            Message::MemoryReleased => one("memory is given back"),
            _ => one("another message"),
        },
        _ => one("another thing"),
    }
}

/// A call that is not answered yet.
struct Outstanding {
    label: &'static str,
    /// Why it may be refused.
    refusals: Vec<ErrorKind>,
    /// What is so once it is done.
    done: Done,
}

/// What a call that is done leads to.
enum Done {
    State(Option<VmState>),
    Comes(String),
    Goes(String),
    Asks,
    Nothing,
}

impl Done {
    fn of(request: &Request) -> Self {
        match request {
            Request::Create(_) | Request::Shutdown => Self::State(Some(VmState::Created)),
            Request::Boot | Request::Resume | Request::Reboot => Self::State(Some(VmState::Running)),
            Request::Pause => Self::State(Some(VmState::Paused)),
            Request::Delete => Self::State(None),
            Request::Add(add) => match &add.device {
                DeviceConfig::Disk(disk) => Self::Comes(disk.id.clone().unwrap()),
                DeviceConfig::Pmem(pmem) => Self::Comes(pmem.id.clone().unwrap()),
                _ => Self::Nothing,
            },
            Request::RemoveDevice(remove) => Self::Goes(remove.id.clone()),
            Request::Info => Self::Asks,
            _ => Self::Nothing,
        }
    }
}

/// Answers in the order in which they came, by the number of the call.
#[derive(Default)]
struct Answers {
    /// By the machine thread.
    inline: Vec<(u64, Answer)>,
    /// By others.
    elsewhere: BTreeMap<u64, Answer>,
}

/// What a seed is tried with.
pub struct Trial {
    pub sim: Arc<Sim>,
    pub random: Random,
    /// How many things are picked.
    pub steps: u32,
    /// What is created.
    pub machine: Box<VmConfig>,
    pub images: Images,
    pub counts: Arc<Mutex<Counts>>,
    pub trace: Arc<Mutex<Vec<String>>>,
}

pub struct Scheduler {
    trial: Trial,
    plain: Box<dyn Source>,
    threads: Threads,
    /// What arrived and is not told yet.
    arrived: BTreeMap<String, VecDeque<(Event, String)>>,
    calls: u64,
    outstanding: BTreeMap<u64, Outstanding>,
    answers: Arc<Mutex<Answers>>,
    state: Option<VmState>,
    /// Disks and persistent memory.
    devices: BTreeSet<String>,
    /// What was tried to have the last calls answered.
    urged: u32,
}

impl Scheduler {
    /// Of what `plain` tells.
    pub fn new(trial: Trial, plain: Box<dyn Source>) -> Self {
        Self {
            trial,
            plain,
            threads: Threads::new(),
            arrived: BTreeMap::new(),
            calls: 0,
            outstanding: BTreeMap::new(),
            answers: Arc::default(),
            state: None,
            devices: BTreeSet::new(),
            urged: 0,
        }
    }

    fn note(&self, line: String) {
        self.trial.trace.lock().unwrap().push(line);
    }

    /// What led here, for a person.
    fn story(&self) -> String {
        self.trial.trace.lock().unwrap().join("\n")
    }

    /// Takes what the other threads told until they all sleep.
    fn settle(&mut self) {
        self.threads.settle();
        let events = std::iter::from_fn(|| self.plain.next(Some(Instant::now())).ok());
        let mut events: Vec<_> = events.map(|event| (described(&event), event)).collect();
        // Which of several threads was first is the host's doing.
        events.sort_by_key(|(_, event)| match event {
            Event::Machine { message: Message::Effect { cpu, .. }, .. } => *cpu,
            // After what CPUs asked for before they were parked.
            _ => u32::MAX,
        });
        for ((teller, description), event) in events {
            self.arrived.entry(teller).or_default().push_back((event, description));
        }
    }

    /// Follows what was answered.
    fn follow(&mut self) {
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        for (number, answer) in answers.inline.into_iter().chain(answers.elsewhere) {
            let Some(call) = self.outstanding.remove(&number) else {
                panic!("call {number} was answered twice: {answer:?}\n{}", self.story())
            };
            match &answer {
                Ok(_) => self.note(format!("  {} is done", number)),
                Err(error) => {
                    self.note(format!("  {} is refused: {error}", number));
                    let allowed = match error.kind {
                        ErrorKind::NotFound if self.state.is_none() => true,
                        kind => call.refusals.contains(&kind),
                    };
                    assert!(allowed, "{error:?}\n{}", self.story());
                    continue;
                }
            }
            self.trial.counts.lock().unwrap().note(call.label, &answer);
            match call.done {
                Done::State(state) => {
                    self.state = state;
                    if state.is_none() {
                        self.devices.clear();
                    }
                }
                Done::Comes(id) => _ = self.devices.insert(id),
                Done::Goes(id) => _ = self.devices.remove(&id),
                Done::Asks => self.compare(&answer),
                Done::Nothing => {}
            }
        }
    }

    /// What the machine says of itself when nothing is under way.
    fn compare(&self, answer: &Answer) {
        let Ok(Reply::Json(info)) = answer else { panic!("{answer:?}") };
        let state: VmState = serde_json::from_value(info["state"].clone()).unwrap();
        assert_eq!(Some(state), self.state, "{}", self.story());
        let ids = |kind: &str| {
            let devices = info["config"][kind].as_array().cloned().unwrap_or_default();
            devices.into_iter().map(|device| device["id"].as_str().unwrap().to_owned())
        };
        let devices: BTreeSet<_> = ids("disks").chain(ids("pmem")).collect();
        assert_eq!(devices, self.devices, "{}", self.story());
        if state == VmState::Created {
            return;
        }
        for id in &self.devices {
            assert!(info["device_tree"].get(id).is_some(), "{id} is not there\n{}", self.story());
        }
    }

    /// Makes a call.
    fn call(&mut self, request: Request) -> Event {
        self.calls += 1;
        let number = self.calls;
        let kinds = [
            ErrorKind::BadRequest,
            ErrorKind::NotFound,
            ErrorKind::State,
            ErrorKind::Conflict,
            ErrorKind::Internal,
            ErrorKind::NotSupported,
        ];
        let ends = !request.is_query();
        let refusals = kinds.into_iter().filter(|kind| may_refuse(&request, *kind, ends)).collect();
        let name = match &request {
            Request::Create(_) => "create".into(),
            other => format!("{other:?}"),
        };
        self.note(format!("{number}: {name}"));
        let label = label(&request);
        let done = Done::of(&request);
        self.outstanding.insert(number, Outstanding { label, refusals, done });
        let answers = Arc::clone(&self.answers);
        let machine_thread = std::thread::current().id();
        let respond = Box::new(move |answer| {
            let mut answers = answers.lock().unwrap();
            if std::thread::current().id() == machine_thread {
                answers.inline.push((number, answer));
            } else {
                answers.elsewhere.insert(number, answer);
            }
        });
        Event::Call(Call { request, files: Vec::new(), respond, interest: Interest::default() })
    }

    /// A call that a seed picks.
    fn any(&mut self) -> Request {
        match self.trial.random.below(24) {
            0 | 1 => Request::Boot,
            2 => Request::Create(self.trial.machine.clone()),
            3..=5 => Request::Pause,
            6..=9 => Request::Resume,
            10 => Request::Reboot,
            11 if self.trial.random.below(2) == 0 => Request::Shutdown,
            12 if self.trial.random.below(4) == 0 => Request::Delete,
            _ => loop {
                let mut request = self.trial.images.any(&mut self.trial.random, true);
                match &mut request {
                    // What real time ends or a disk takes, and what needs much of the host.
                    Request::SetThrottle(_) | Request::Coredump(_) | Request::Info => continue,
                    Request::Add(add) if matches!(add.device, DeviceConfig::Net(_)) => continue,
                    // No guest here knows of ports: it is not asked.
                    Request::RemoveDevice(remove) => {
                        remove.force |= remove.timeout_ms == Some(1);
                        remove.timeout_ms = EVER_MS;
                    }
                    Request::Add(add) => add.opening.timeout_ms = EVER_MS,
                    _ => {}
                }
                break request;
            },
        }
    }

    /// The guest makes some accesses.
    fn guest_goes_on(&mut self, accesses: u32) {
        self.note(format!("the guest makes {accesses} accesses"));
        (0..accesses).for_each(|_| self.interrupt(GO_ON));
    }

    /// The guest does something, if it runs.
    fn interrupt(&mut self, interrupt: u8) {
        self.trial.sim.interrupt(0, interrupt);
        self.settle();
        self.trial.sim.withdraw_interrupt(0, interrupt);
    }

    /// Tells what arrived from one of the tellers.
    fn tell(&mut self) -> Option<Event> {
        let mut tellers: Vec<_> = self.arrived.values_mut().filter(|all| !all.is_empty()).collect();
        let picked = self.trial.random.below(tellers.len().max(1) as u64) as usize;
        let (event, description) = tellers.get_mut(picked)?.pop_front()?;
        self.note(description);
        Some(event)
    }

    /// When nothing more is picked: brings what is under way to its end, and the machine thread to its.
    fn finish(&mut self) -> Event {
        if let Some(event) = self.tell() {
            self.urged = 0;
            return event;
        }
        if self.outstanding.is_empty() {
            return self.call(Request::VmmShutdown);
        }
        // What waits for the guest goes on when it runs and obeys.
        self.urged += 1;
        match self.urged {
            1 => self.call(Request::Resume),
            2 => {
                self.guest_goes_on(ACCESSES);
                self.finish()
            }
            _ => {
                let forgotten: Vec<_> = self.outstanding.keys().collect();
                panic!("nothing is left that could answer {forgotten:?}\n{}", self.story());
            }
        }
    }
}

impl Source for Scheduler {
    fn next(&mut self, _: Option<Instant>) -> Result<Event, RecvTimeoutError> {
        self.settle();
        self.follow();
        while self.trial.steps > 0 {
            self.trial.steps -= 1;
            let quiet = self.outstanding.is_empty() && self.arrived.values().all(VecDeque::is_empty);
            if quiet && self.trial.random.below(6) == 0 {
                return Ok(self.call(Request::Info));
            }
            match self.trial.random.below(16) {
                0..=5 if self.outstanding.len() < TOGETHER => {
                    let request = self.any();
                    return Ok(self.call(request));
                }
                6 | 7 => {
                    let accesses = self.trial.random.below(12) as u32;
                    self.guest_goes_on(1 + accesses);
                }
                8 if self.trial.random.below(4) == 0 => {
                    self.note("the guest restarts".into());
                    self.interrupt(RESTART);
                }
                _ => {
                    if let Some(event) = self.tell() {
                        return Ok(event);
                    }
                }
            }
        }
        Ok(self.finish())
    }
}
