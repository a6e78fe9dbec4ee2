//! The worker: a thread that owns queue handlers by value and runs them.
//!
//! Handlers are run when their doorbell rings or an event source is ready, in turns, each up to its own budget. Before it
//! sleeps the worker looks for more work for a while (see `polling.rs`), and only then asks the drivers to ring again. Nothing
//! a caller asks of a worker waits for it: handlers come back through a function that is called when they are quiescent.
//!
//! [`run_until_idle`] does the same without a thread, for tests and fuzzing.

mod affinity;
mod inline;
mod polling;
mod thread;

pub use inline::{Rest, run_until_idle};

use crate::device::QueueTask;
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::inspect::{Inspect, Value};
use machine::metrics::{Counter, Histogram, Reading};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a worker looks for work before it sleeps, unless told otherwise.
pub const DEFAULT_POLL: Duration = Duration::from_micros(30);

/// How a worker is set up.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The thread's name; the kernel keeps the first 15 bytes.
    pub name: String,
    /// The host CPUs it may run on; any, if empty.
    pub cpus: Vec<usize>,
    /// The longest it looks for work before it sleeps; zero: not at all.
    pub poll: Duration,
}

impl WorkerOptions {
    /// A worker of this name on any CPU.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), cpus: Vec::new(), poll: DEFAULT_POLL }
    }
}

/// A handler on a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(u64);

/// Called with a handler that came to rest; with `None` if the worker does not have it.
type Stopped = Box<dyn FnOnce(Option<QueueTask>) + Send>;

enum Message {
    Add { id: TaskId, task: QueueTask, doorbells: Vec<Doorbell> },
    Stop { id: TaskId, done: Stopped },
    StopAll { done: Box<dyn FnOnce(Vec<QueueTask>) + Send> },
    Poll(Duration),
    Affinity(Vec<usize>),
    Inspect(Box<dyn FnOnce(Value) + Send>),
    End,
}

/// What the thread and its handle share.
struct Shared {
    /// There are messages. Looked at while polling, without a system call.
    pending: AtomicBool,
    /// Wakes the thread for messages.
    bell: Doorbell,
    counters: Counters,
}

/// What a worker counts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Times it slept and was woken.
    pub wakeups: Counter,
    /// Doorbells that woke it or that it heard while busy.
    pub kicks: Counter,
    /// Turns of handlers.
    pub runs: Counter,
    /// Times that it found work by looking for it.
    pub polls_won: Counter,
    /// Times that it did not.
    pub polls_lost: Counter,
    /// Time spent looking for work.
    pub poll_ns: Counter,
    /// How long it ran handlers between two times that all were idle, which bounds how long a request waited here.
    pub busy: Histogram,
    /// How long it looks for work before it sleeps.
    pub poll_window_ns: AtomicU64,
    /// What the host refused.
    pub failures: Counter,
}

machine::inspect!(Counters {
    wakeups,
    kicks,
    runs,
    polls_won,
    polls_lost,
    poll_ns,
    busy,
    poll_window_ns,
    failures
});

impl Counters {
    /// For the metrics.
    pub fn readings(&self) -> Vec<Reading> {
        vec![
            Reading::total("wakeups", self.wakeups.get()),
            Reading::total("kicks", self.kicks.get()),
            Reading::total("runs", self.runs.get()),
            Reading::total("polls_won", self.polls_won.get()),
            Reading::total("polls_lost", self.polls_lost.get()),
            Reading::total("poll_ns", self.poll_ns.get()),
            Reading::latency("busy", [&self.busy]),
        ]
    }
}

/// A thread that runs queue handlers. When dropped, it brings its handlers to rest, drops them and ends.
pub struct Worker {
    name: String,
    shared: Arc<Shared>,
    messages: Mutex<Sender<Message>>,
    next_id: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker. Its thread calls `prepare` before all else (to confine itself). If the host refuses its CPUs, it runs on
    /// any, and that is counted among its failures.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn spawn(
        options: WorkerOptions,
        clock: Arc<dyn Clock>,
        prepare: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let shared = Arc::new(Shared {
            pending: AtomicBool::new(false),
            bell: Doorbell::new()?,
            counters: Counters::default(),
        });
        let thread = thread::Thread::new(Arc::clone(&shared), receiver, clock, options.poll)?;
        let name = options.name.clone();
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(options.name).spawn(move || {
            if !options.cpus.is_empty()
                && let Err(error) = affinity::pin(&options.cpus)
            {
                // The guest's device works wherever its worker runs.
                own.counters.failures.add_shared(1);
                tracing::warn!(cpus = ?options.cpus, "a worker runs on any host CPU: {error}");
            }
            prepare();
            thread.serve();
        })?;
        Ok(Self {
            name,
            shared,
            messages: Mutex::new(sender),
            next_id: AtomicU64::new(thread::FIRST_TASK),
            thread: Some(thread),
        })
    }

    fn send(&self, message: Message) {
        let sender = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        // The thread only ends when told to by `drop`.
        let _ = sender.send(message);
        drop(sender);
        self.shared.pending.store(true, Ordering::SeqCst);
        self.shared.bell.ring();
    }

    /// Gives the worker a handler to run, and the bells that wake it for it.
    pub fn add(&self, task: QueueTask, doorbells: Vec<Doorbell>) -> TaskId {
        let id = TaskId(self.next_id.fetch_add(1, Ordering::Relaxed));
        self.send(Message::Add { id, task, doorbells });
        id
    }

    /// Brings a handler to rest and gives it to `done`, on the worker's thread.
    pub fn stop(&self, id: TaskId, done: impl FnOnce(Option<QueueTask>) + Send + 'static) {
        self.send(Message::Stop { id, done: Box::new(done) });
    }

    /// Brings all handlers to rest and gives them to `done`, on the worker's thread. Those that are being stopped already go where
    /// they were to go.
    pub fn stop_all(&self, done: impl FnOnce(Vec<QueueTask>) + Send + 'static) {
        self.send(Message::StopAll { done: Box::new(done) });
    }

    /// Sets the longest the worker looks for work before it sleeps; zero: not at all.
    pub fn set_poll(&self, limit: Duration) {
        self.send(Message::Poll(limit));
    }

    /// Sets the host CPUs the thread may run on. If the host refuses, it stays where it was, and that is counted.
    pub fn set_affinity(&self, cpus: Vec<usize>) {
        self.send(Message::Affinity(cpus));
    }

    /// Gives `done`, on the worker's thread, what [`Inspect`] shows and each handler's own tree.
    pub fn inspect_tasks(&self, done: impl FnOnce(Value) + Send + 'static) {
        self.send(Message::Inspect(Box::new(done)));
    }

    /// Its thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it counted.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Whether the calling thread is the worker's.
    fn is_own_thread(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == std::thread::current().id())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.send(Message::End);
        if !self.is_own_thread()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

impl Inspect for Worker {
    fn inspect(&self) -> Value {
        self.shared.counters.inspect()
    }
}

#[cfg(test)]
mod tests;
