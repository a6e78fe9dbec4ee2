//! What a worker's thread does.

use super::polling::Polling;
use super::{Message, Shared, Stopped, TaskId, affinity};
use crate::device::{Progress, QueueTask};
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::inspect::{Inspect, Value, json};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

/// What epoll tells of: messages, the timer, or from here on the task of this number.
const MESSAGES: u64 = 0;
const TIMER: u64 = 1;
pub(super) const FIRST_TASK: u64 = 2;
/// Set beside a task's number if it is not one of its doorbells, but another of its event sources.
const SOURCE: u64 = 1 << 63;

/// Events taken by one system call.
const EVENTS: usize = 32;
/// Looks for work between two looks at the clock.
const LOOKS: u32 = 16;
/// Looks at the clock, or turns of busy tasks, between two looks at event sources.
const TURNS: u32 = 16;
/// How often a handler that is to stop is asked whether it is at rest, if nothing wakes it.
const STOP_INTERVAL_MS: i32 = 1;

struct Task {
    id: TaskId,
    task: QueueTask,
    doorbells: Vec<Doorbell>,
    sources: Vec<RawFd>,
    /// Run it at the next turn.
    runnable: bool,
    /// It waits for this time.
    deadline: Option<u64>,
    stopping: Option<Stopped>,
    runs: u64,
}

impl Task {
    fn is_due(&self, now: u64) -> bool {
        self.runnable
            || match self.deadline {
                None => self.task.handler.has_work(),
                Some(time) => time <= now,
            }
    }
}

pub(super) struct Thread {
    shared: Arc<Shared>,
    messages: Receiver<Message>,
    clock: Arc<dyn Clock>,
    epoll: Epoll,
    timer: TimerFd,
    polling: Polling,
    tasks: Vec<Task>,
    ending: bool,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Thread {
    pub(super) fn new(
        shared: Arc<Shared>,
        messages: Receiver<Message>,
        clock: Arc<dyn Clock>,
        poll: Duration,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        epoll.ctl(ControlOperation::Add, shared.bell.as_raw_fd(), EpollEvent::new(edge, MESSAGES))?;
        epoll.ctl(ControlOperation::Add, timer.as_raw_fd(), EpollEvent::new(edge, TIMER))?;
        let polling = Polling::new(nanoseconds(poll));
        Ok(Self { shared, messages, clock, epoll, timer, polling, tasks: Vec::new(), ending: false })
    }

    /// Runs tasks until told to end and all of them are at rest.
    pub(super) fn serve(mut self) {
        // When the turn began; when the worker was idle before it.
        let mut now = self.clock.interval_ns();
        let mut since = now;
        let mut turns = 0_u32;
        loop {
            self.take_messages();
            let more = self.run_due(now);
            if self.ending && self.tasks.is_empty() {
                return;
            }
            if more {
                // Busy tasks must not keep the others' events from being seen, nor for long their own.
                turns = turns.wrapping_add(1);
                if self.tasks.len() > 1 || turns & TURNS.wrapping_sub(1) == 0 {
                    self.wait(0);
                }
                now = self.clock.interval_ns();
                continue;
            }
            let idle_since = self.clock.interval_ns();
            self.shared.counters.busy.record(idle_since.saturating_sub(since));
            let found = self.poll(idle_since);
            now = match found.or_else(|| self.arm().then(|| self.clock.interval_ns())) {
                Some(found) => {
                    if self.tasks.len() > 1 {
                        // What is found again and again must not hide the others' events either.
                        turns = turns.wrapping_add(1);
                        if turns & TURNS.wrapping_sub(1) == 0 {
                            self.wait(0);
                        }
                    }
                    found
                }
                None => self.sleep(idle_since),
            };
            since = now;
        }
    }

    fn take_messages(&mut self) {
        if !self.shared.pending.swap(false, Ordering::SeqCst) {
            return;
        }
        while let Ok(message) = self.messages.try_recv() {
            match message {
                Message::Add { id, task, doorbells } => self.add(id, task, doorbells),
                Message::Stop { id, done } => match self.tasks.iter_mut().find(|task| task.id == id) {
                    Some(task) if task.stopping.is_none() => task.stopping = Some(done),
                    _ => done(None),
                },
                Message::StopAll { done } => self.stop_all(done),
                Message::Poll(limit) => self.polling = Polling::new(nanoseconds(limit)),
                Message::Affinity(cpus) => {
                    if let Err(error) = affinity::pin(&cpus) {
                        self.failed(&format!("moving a worker to host CPUs {cpus:?}"), &error);
                    }
                }
                Message::Inspect(done) => done(self.inspect()),
                Message::End => {
                    self.ending = true;
                    self.stop_all(Box::new(drop));
                }
            }
        }
    }

    fn failed(&self, what: &str, error: &io::Error) {
        tracing::warn!(%error, "{what} failed");
        self.shared.counters.failures.add(1);
    }

    fn add(&mut self, id: TaskId, task: QueueTask, doorbells: Vec<Doorbell>) {
        let sources = task.handler.event_sources();
        // A rung bell is never read: each ring is a new edge.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let bells = doorbells.iter().map(|bell| (bell.as_raw_fd(), edge, id.0));
        for (fd, events, data) in bells.chain(sources.iter().map(|fd| (*fd, EventSet::IN, id.0 | SOURCE))) {
            if let Err(error) = self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data)) {
                self.failed(&format!("waiting for an event of queue handler {}", task.name), &error);
            }
        }
        self.tasks.push(Task {
            id,
            task,
            doorbells,
            sources,
            runnable: true,
            deadline: None,
            stopping: None,
            runs: 0,
        });
    }

    /// Stops all tasks, and calls `done` when the last one is at rest.
    fn stop_all(&mut self, done: Box<dyn FnOnce(Vec<QueueTask>) + Send>) {
        let running: Vec<_> = self.tasks.iter_mut().filter(|task| task.stopping.is_none()).collect();
        if running.is_empty() {
            done(Vec::new());
            return;
        }
        let count = running.len();
        let collected = Arc::new(Mutex::new((Vec::with_capacity(count), Some(done))));
        for task in running {
            let collected = Arc::clone(&collected);
            task.stopping = Some(Box::new(move |task| {
                let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
                collected.0.extend(task);
                if collected.0.len() == count
                    && let Some(done) = collected.1.take()
                {
                    done(std::mem::take(&mut collected.0));
                }
            }));
        }
    }

    /// Gives back the tasks that are to stop and are at rest.
    fn finish_stopped(&mut self) {
        let mut index = 0;
        while let Some(task) = self.tasks.get_mut(index) {
            if task.stopping.is_some() && task.task.handler.quiesce() {
                let mut task = self.tasks.remove(index);
                let bells = task.doorbells.iter().map(AsRawFd::as_raw_fd);
                for fd in bells.chain(task.sources.iter().copied()) {
                    // It may never have been added.
                    let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
                }
                if let Some(done) = task.stopping.take() {
                    done(Some(task.task));
                }
            } else {
                index = index.saturating_add(1);
            }
        }
    }

    /// Gives each task that has work its turn, from `now` on. `true`: one of them has more.
    fn run_due(&mut self, mut now: u64) -> bool {
        let mut more = false;
        let mut stopping = false;
        let mut ran = false;
        let timed = self.tasks.iter().any(|task| task.deadline.is_some());
        let time = if timed { self.clock.monotonic_ns() } else { 0 };
        for task in &mut self.tasks {
            if task.stopping.is_some() {
                stopping = true;
                continue;
            }
            if !task.is_due(time) {
                continue;
            }
            if std::mem::replace(&mut ran, true) {
                now = self.clock.interval_ns();
            }
            let progress = task.task.handler.run(now);
            task.runs = task.runs.wrapping_add(1);
            self.shared.counters.runs.add(1);
            task.runnable = progress == Progress::More;
            more |= task.runnable;
            task.deadline = match progress {
                Progress::Until(until) => Some(until),
                Progress::More | Progress::Idle => None,
            };
        }
        if stopping {
            self.finish_stopped();
        }
        more
    }

    /// Looks for work from `start` on (of the clock's intervals) for as long as the window says. Returns when there was some; `None`: there is none.
    fn poll(&mut self, start: u64) -> Option<u64> {
        let mut window = self.polling.window_ns();
        if window == 0 || self.tasks.is_empty() {
            return None;
        }
        let shared = Arc::clone(&self.shared);
        let counters = &shared.counters;
        let has_sources = self.tasks.iter().any(|task| !task.sources.is_empty());
        // A task that waits for a time ends the window.
        let left = self.next_deadline().map(|time| time.saturating_sub(self.clock.monotonic_ns()));
        let due = left.is_some_and(|left| left <= window);
        window = window.min(left.unwrap_or(window));
        let mut turns = 0_u32;
        loop {
            for _ in 0..LOOKS {
                if self.shared.pending.load(Ordering::Relaxed) {
                    return Some(self.clock.interval_ns());
                }
                let waits = |task: &Task| task.deadline.is_none() && task.stopping.is_none();
                if self.tasks.iter().any(|task| waits(task) && task.task.handler.has_work()) {
                    counters.polls_won.add(1);
                    let now = self.clock.interval_ns();
                    counters.poll_ns.add(now.saturating_sub(start));
                    return Some(now);
                }
                std::hint::spin_loop();
            }
            // A clock that leapt back ends the window too.
            let now = self.clock.interval_ns();
            let passed = now.wrapping_sub(start);
            if passed >= window {
                if due {
                    return Some(now);
                }
                counters.polls_lost.add(1);
                counters.poll_ns.add(passed.min(window));
                return None;
            }
            turns = turns.wrapping_add(1);
            if has_sources && turns & TURNS.wrapping_sub(1) == 0 && self.wait(0) {
                return Some(now);
            }
        }
    }

    /// Asks for doorbells and events. `true`: there is work already.
    fn arm(&mut self) -> bool {
        let mut work = false;
        for task in &mut self.tasks {
            // Whether the task waits for a time or not: no event need come for what was found.
            if task.task.handler.arm() && task.stopping.is_none() {
                task.runnable = true;
                work = true;
            }
        }
        work
    }

    fn next_deadline(&self) -> Option<u64> {
        let going = self.tasks.iter().filter(|task| task.stopping.is_none());
        going.filter_map(|task| task.deadline).min()
    }

    /// Sleeps until something happens. Returns when that was.
    fn sleep(&mut self, idle_since: u64) -> u64 {
        let mut timeout = -1;
        if self.tasks.iter().any(|task| task.stopping.is_some()) {
            timeout = STOP_INTERVAL_MS;
        } else if let Some(deadline) = self.next_deadline() {
            let left = deadline.saturating_sub(self.clock.monotonic_ns());
            if let Err(error) = self.timer.reset(Duration::from_nanos(left.max(1)), None) {
                self.failed("setting a worker's timer", &error.into());
                timeout = STOP_INTERVAL_MS;
            }
        }
        self.wait(timeout);
        self.shared.counters.wakeups.add(1);
        let now = self.clock.interval_ns();
        self.polling.slept(now.saturating_sub(idle_since));
        self.shared.counters.poll_window_ns.store(self.polling.window_ns(), Ordering::Relaxed);
        now
    }

    /// Takes events, waiting for `timeout` milliseconds at most (-1: without limit). Returns whether there were any.
    fn wait(&mut self, timeout: i32) -> bool {
        let mut events = [EpollEvent::default(); EVENTS];
        // The only error that can occur is an interruption, after which the loop comes here again.
        let count = self.epoll.wait(timeout, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            // Messages and the timer are edges too, and looked at in each turn of the loop.
            let data = event.data();
            if let Some(task) = self.tasks.iter_mut().find(|task| task.id.0 == data & !SOURCE) {
                task.runnable = true;
                if data & SOURCE == 0 {
                    self.shared.counters.kicks.add(1);
                }
            }
        }
        count > 0
    }

    fn inspect(&self) -> Value {
        let task = |task: &Task| {
            json!({
                "name": task.task.name,
                "queues": task.task.queues,
                "runs": task.runs,
                "waits_until_ns": task.deadline,
                "stopping": task.stopping.is_some(),
                "handler": task.task.handler.inspect(),
            })
        };
        json!({
            "counters": self.shared.counters.inspect(),
            "tasks": self.tasks.iter().map(task).collect::<Vec<_>>(),
        })
    }
}
