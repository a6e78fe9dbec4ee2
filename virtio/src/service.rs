//! Requests that are answered one by one, each at once: the queue's handler is the same for all of them, and what is particular
//! to a device is its [`Service`].

use crate::chain::Chain;
use crate::device::{Progress, QueueHandler, QueueTask};
use crate::queue::{Queue, QueueError};
use machine::inspect::{Inspect, Value};

/// Requests answered before others have their turn.
const BUDGET: u32 = 16;

/// Answers the requests of one queue.
pub trait Service: Send + Inspect {
    /// Answers a request: reads it from the chain, and writes the answer there. Returns how many bytes were written.
    ///
    /// # Errors
    /// When it makes no sense to such a degree that it cannot be answered: the queue is then broken until it is reset.
    fn answer(&mut self, request: &Chain) -> Result<u32, QueueError>;

    /// What to wait for besides the next request. Called after each turn.
    fn rest(&mut self) -> Progress {
        Progress::Idle
    }
}

/// The handler of queue `number`, for a worker.
pub fn task(name: &str, number: u16, queue: Queue, service: impl Service + 'static) -> QueueTask {
    QueueTask::single(name, number, Served { queue, chain: Chain::new(), service })
}

/// A queue and who answers what is in it.
struct Served<S> {
    queue: Queue,
    chain: Chain,
    service: S,
}

impl<S: Service> Served<S> {
    /// Answers requests. `true`: there may be more.
    fn answer(&mut self) -> bool {
        for _ in 0..BUDGET {
            // A broken queue has told the driver already.
            let Ok(true) = self.queue.pop(&mut self.chain) else { return false };
            match self.service.answer(&self.chain) {
                Ok(written) => self.queue.push(self.chain.token(), written),
                Err(error) => {
                    self.queue.fail(error);
                    return false;
                }
            }
        }
        true
    }
}

impl<S: Service> QueueHandler for Served<S> {
    fn run(&mut self, now: u64) -> Progress {
        self.queue.disable_notifications();
        self.queue.begin_batch(now);
        let more = self.answer();
        self.queue.notify();
        let rest = self.service.rest();
        if more { Progress::More } else { rest }
    }

    fn arm(&mut self) -> bool {
        self.queue.enable_notifications()
    }

    fn has_work(&self) -> bool {
        self.queue.has_available()
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        vec![self.queue]
    }
}

/// The service's fields, and the queue.
impl<S: Service> Inspect for Served<S> {
    fn inspect(&self) -> Value {
        let mut tree = self.service.inspect();
        if let Some(fields) = tree.as_object_mut() {
            fields.insert("queue".to_owned(), self.queue.inspect());
        }
        tree
    }
}
