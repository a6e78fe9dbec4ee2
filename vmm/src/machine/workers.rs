//! The worker threads of one virtio function.

use crate::message::{Mailbox, Message};
use anyhow::{Context, Result};
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::effect::FunctionAddress;
use std::sync::Arc;
use std::time::Duration;
use virtio::device::QueueTask;
use virtio::worker::{Worker, WorkerOptions};

/// How a function's workers run.
#[derive(Clone)]
pub struct Options {
    /// Longest busy poll; zero for none.
    pub poll: Duration,
    /// The host CPUs of a queue's worker, by queue. Others run on any.
    pub affinity: Vec<(u16, Vec<usize>)>,
    /// Called on each worker's thread before it runs anything.
    pub confine: fn(),
}

/// The worker threads of one function, one for each queue task.
pub struct FunctionWorkers {
    id: String,
    address: FunctionAddress,
    options: Options,
    clock: Arc<dyn Clock>,
    mailbox: Mailbox,
    running: Vec<Worker>,
    /// The queues of each of those.
    queues: Vec<Vec<u16>>,
    stopping: Option<Stopping>,
}

/// What a function's workers are stopped for. A later one includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The driver asks for it, or the machine is paused.
    Rest,
    /// The function is reset.
    Reset,
    /// The function is taken out of the machine.
    Remove,
}

/// A stop that has begun.
struct Stopping {
    purpose: Purpose,
    /// Workers that have not given back what they ran.
    workers: usize,
    tasks: Vec<QueueTask>,
}

impl FunctionWorkers {
    /// No workers yet.
    pub fn new(
        id: &str,
        address: FunctionAddress,
        options: Options,
        clock: Arc<dyn Clock>,
        mailbox: Mailbox,
    ) -> Self {
        // Threads are named as cloud-hypervisor's are: libvirt takes those that begin with _disk, _net and _rng for I/O threads.
        let id = id.strip_prefix('_').filter(|id| id.starts_with('_')).unwrap_or(id).to_owned();
        Self { id, address, options, clock, mailbox, running: Vec::new(), queues: Vec::new(), stopping: None }
    }

    /// Runs tasks, each on a worker of its own, woken by its doorbells. Takes all of `tasks`.
    ///
    /// # Errors
    /// When the host gives no thread. Nothing runs then, and `tasks` is as it was.
    pub fn run(&mut self, tasks: &mut Vec<(QueueTask, Vec<Doorbell>)>) -> Result<()> {
        let workers = tasks.iter().map(|(task, _)| self.worker(task)).collect::<Result<Vec<_>>>()?;
        for (worker, (task, doorbells)) in workers.iter().zip(tasks.drain(..)) {
            self.queues.push(task.queues.clone());
            worker.add(task, doorbells);
        }
        self.running.extend(workers);
        Ok(())
    }

    /// A worker for this task.
    fn worker(&self, task: &QueueTask) -> Result<Worker> {
        let cpus = self.options.affinity.iter().find(|(queue, _)| task.queues.contains(queue));
        let options = WorkerOptions {
            name: format!("{}-{}", self.id, task.name),
            cpus: cpus.map(|(_, cpus)| cpus.clone()).unwrap_or_default(),
            poll: self.options.poll,
        };
        Worker::spawn(options, Arc::clone(&self.clock), self.options.confine)
            .with_context(|| format!("starting the worker of queue {} of {}", task.name, self.id))
    }

    /// Begins to stop all workers. `false`: none runs, so there is nothing to wait for.
    pub fn stop(&mut self, purpose: Purpose) -> bool {
        if let Some(stopping) = &mut self.stopping {
            stopping.purpose = stopping.purpose.max(purpose);
            return true;
        }
        if self.running.is_empty() {
            return false;
        }
        self.stopping = Some(Stopping { purpose, workers: self.running.len(), tasks: Vec::new() });
        for worker in &self.running {
            let (mailbox, function) = (self.mailbox.clone(), self.address);
            worker.stop_all(move |tasks| mailbox.post(Message::TasksStopped { function, tasks }));
        }
        true
    }

    /// Whether a stop is under way.
    pub fn stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// A worker gave back `tasks`. When it was the last one: all that was given back, and what for.
    pub fn returned(&mut self, tasks: Vec<QueueTask>) -> Option<(Purpose, Vec<QueueTask>)> {
        let mut stopping = self.stopping.take()?;
        stopping.workers = stopping.workers.saturating_sub(1);
        stopping.tasks.extend(tasks);
        if stopping.workers > 0 {
            self.stopping = Some(stopping);
            return None;
        }
        // The threads have nothing left to run, so their ends are not waited for long.
        self.running.clear();
        self.queues.clear();
        Some((stopping.purpose, stopping.tasks))
    }

    /// Moves the worker of `queue` to other host CPUs, and those that run it after it.
    pub fn set_affinity(&mut self, queue: u16, host_cpus: &[usize]) {
        self.options.affinity.retain(|(present, _)| *present != queue);
        self.options.affinity.push((queue, host_cpus.to_vec()));
        for (worker, queues) in self.running.iter().zip(&self.queues) {
            if queues.contains(&queue) {
                worker.set_affinity(host_cpus.to_vec());
            }
        }
    }

    /// The workers.
    pub fn running(&self) -> &[Worker] {
        &self.running
    }
}
