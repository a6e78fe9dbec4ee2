//! Runs the request queue.

use super::request::{ANSWER, Request};
use super::shared::Shared;
use machine::inspect::{Inspect, Value, json};
use std::sync::Arc;
use virtio::chain::Chain;
use virtio::device::{Progress, QueueHandler};
use virtio::queue::{Queue, QueueError};

/// How many requests one run handles at most.
const BUDGET: u32 = 16;

pub(super) struct Handler {
    queue: Queue,
    shared: Arc<Shared>,
    chain: Chain,
}

impl Handler {
    pub(super) fn new(queue: Queue, shared: Arc<Shared>) -> Self {
        Self { queue, shared, chain: Chain::new() }
    }
}

impl QueueHandler for Handler {
    fn run(&mut self) -> Progress {
        self.queue.disable_notifications();
        let mut progress = Progress::More;
        for _ in 0..BUDGET {
            // A broken queue has told the driver already.
            let Ok(true) = self.queue.pop(&mut self.chain) else {
                progress = Progress::Idle;
                break;
            };
            if self.chain.writable_len() < ANSWER as u64 {
                self.queue.fail(QueueError::Request("for memory has no room for the answer"));
                progress = Progress::Idle;
                break;
            }
            let answer = self.shared.answer(Request::read(&self.chain));
            let written = self.chain.write_at(0, &answer.bytes());
            self.queue.push(self.chain.token(), u32::try_from(written).unwrap_or(0));
        }
        self.queue.notify();
        progress
    }

    fn arm(&mut self) -> bool {
        self.queue.enable_notifications()
    }

    fn has_work(&self) -> bool {
        self.queue.has_available()
    }

    fn quiesce(&mut self) -> bool {
        true
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        vec![self.queue]
    }
}

impl Inspect for Handler {
    fn inspect(&self) -> Value {
        json!({ "queue": self.queue.inspect() })
    }
}
