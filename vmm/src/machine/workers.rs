//! The worker threads of one virtio function, and which of them runs which queue.

use crate::message::{Mailbox, Message};
use anyhow::{Context, Result};
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::effect::FunctionAddress;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use virtio::device::QueueTask;
use virtio::worker::{Worker, WorkerOptions};

/// How a function's workers run.
#[derive(Clone)]
pub struct Options {
    /// Longest busy poll; zero for none.
    pub poll: Duration,
    /// The host CPUs of a queue's worker, by queue. A worker of several queues may run on those of all of them, others on any.
    pub affinity: Vec<(u16, Vec<usize>)>,
    /// How queues are shared out; each task has a worker of its own if not given.
    pub sharing: Option<Sharing>,
    /// Called on each worker's thread before it runs anything.
    pub confine: fn(),
}

/// So many workers run all queues of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// The most workers.
    pub workers: u16,
    /// Queues that belong together and have the same worker: 2 where they come in pairs.
    pub together: u16,
}

impl Sharing {
    /// The number of the worker of a task that runs `queues`: each group of queues has the next worker in turn.
    fn worker_of(self, queues: &[u16]) -> usize {
        let first = queues.first().copied().unwrap_or_default();
        let group = first.checked_div(self.together).unwrap_or(first);
        group.checked_rem(self.workers).unwrap_or_default().into()
    }
}

/// The worker threads of one function.
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

/// What one worker runs.
#[derive(Default)]
struct Share {
    /// Its name after the function's.
    name: String,
    queues: Vec<u16>,
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

    /// Runs tasks on their workers, woken by their doorbells. Takes all of `tasks`.
    ///
    /// # Errors
    /// When the host gives no thread. Nothing runs then, and `tasks` is as it was.
    pub fn run(&mut self, tasks: &mut Vec<(QueueTask, Vec<Doorbell>)>) -> Result<()> {
        let number = |at: usize, task: &QueueTask| {
            self.options.sharing.map_or(at, |sharing| sharing.worker_of(&task.queues))
        };
        let mut shares: BTreeMap<usize, Share> = BTreeMap::new();
        for (at, (task, _)) in tasks.iter().enumerate() {
            let share = shares.entry(number(at, task)).or_default();
            share.queues.extend(&task.queues);
            share.name.clone_from(&task.name);
        }
        if self.options.sharing.is_some() {
            shares.iter_mut().for_each(|(number, share)| share.name = format!("w{number}"));
        }
        let workers = shares.values().map(|share| self.worker(share)).collect::<Result<Vec<_>>>()?;
        for (at, (task, doorbells)) in tasks.drain(..).enumerate() {
            let number = number(at, &task);
            let worker = shares.keys().zip(&workers).find(|(present, _)| **present == number);
            if let Some((_, worker)) = worker {
                worker.add(task, doorbells);
            }
        }
        self.running.extend(workers);
        self.queues.extend(shares.into_values().map(|share| share.queues));
        Ok(())
    }

    /// A worker for these queues.
    fn worker(&self, share: &Share) -> Result<Worker> {
        let affinity = self.options.affinity.iter().filter(|(queue, _)| share.queues.contains(queue));
        let cpus: BTreeSet<_> = affinity.flat_map(|(_, cpus)| cpus).copied().collect();
        let options = WorkerOptions {
            name: format!("{}-{}", self.id, share.name),
            cpus: cpus.into_iter().collect(),
            poll: self.options.poll,
        };
        Worker::spawn(options, Arc::clone(&self.clock), self.options.confine)
            .with_context(|| format!("starting worker {} of {}", share.name, self.id))
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

    /// Moves the worker of `queue` to other host CPUs, with all other queues that it runs; so do those that run them after it.
    pub fn set_affinity(&mut self, queue: u16, host_cpus: &[usize]) {
        let share = self.running.iter().zip(&self.queues).find(|(_, queues)| queues.contains(&queue));
        if let Some((worker, _)) = share {
            worker.set_affinity(host_cpus.to_vec());
        }
        let moved = share.map_or_else(|| vec![queue], |(_, queues)| queues.clone());
        self.options.affinity.retain(|(present, _)| !moved.contains(present));
        self.options.affinity.extend(moved.into_iter().map(|queue| (queue, host_cpus.to_vec())));
    }

    /// The workers.
    pub fn running(&self) -> &[Worker] {
        &self.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_shared_out_in_turn_and_pairs_stay_together() {
        let numbers = |workers, together| {
            let sharing = Sharing { workers, together };
            (0..9).map(|queue| sharing.worker_of(&[queue])).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1, 1), [0; 9]);
        assert_eq!(numbers(3, 1), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        // Of four pairs the control queue is the ninth.
        assert_eq!(numbers(2, 2), [0, 0, 1, 1, 0, 0, 1, 1, 0]);
        assert_eq!(Sharing { workers: 2, together: 1 }.worker_of(&[]), 0);
    }
}
