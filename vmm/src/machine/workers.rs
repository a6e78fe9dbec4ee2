//! The worker threads of one virtio function.

use crate::message::{Mailbox, Message};
use anyhow::{Context, Result};
use machine::effect::{DeviceChange, FunctionAddress};
use machine::inspect::Value;
use virtio::device::QueueTask;
use virtio::worker::{self, Worker};

/// How a function's workers run.
#[derive(Clone, Default)]
pub struct Options {
    /// Longest busy poll in nanoseconds; 0 for none.
    pub poll_ns: u64,
    /// The host CPUs of a queue's worker, by queue.
    pub affinity: Vec<(u16, Vec<usize>)>,
    /// Called on each worker's thread before it runs anything.
    pub confine: Option<fn()>,
}

/// The worker threads of one function, one for each queue task.
pub struct FunctionWorkers {
    id: String,
    address: FunctionAddress,
    options: Options,
    mailbox: Mailbox,
    running: Vec<Worker>,
    stopping: Option<Stopping>,
}

/// A stop that has begun.
struct Stopping {
    change: DeviceChange,
    workers: usize,
    tasks: Vec<QueueTask>,
}

impl FunctionWorkers {
    /// No workers yet.
    pub fn new(id: &str, address: FunctionAddress, options: Options, mailbox: Mailbox) -> Self {
        Self { id: id.to_owned(), address, options, mailbox, running: Vec::new(), stopping: None }
    }
}
