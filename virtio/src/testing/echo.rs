//! The plainest device: it writes back what it reads. For the tests of transport and worker.

use crate::chain::Chain;
use crate::device::{ActivateError, Activation, Progress, QueueHandler, QueueTask, VirtioDevice};
use crate::queue::Queue;
use crate::stand_in::Refusal;
use machine::inspect::{Inspect, Value, json};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};

/// How many chains a run handles.
const BUDGET: u32 = 16;

/// A device of two queues, each of which is answered with its own bytes, every one increased by the number in the
/// configuration space's first byte. Its one feature is bit 0.
#[derive(Debug)]
pub struct Echo {
    increment: u8,
    single_handler: bool,
}

impl Echo {
    /// A device that changes nothing until the driver configures it.
    pub fn new() -> Self {
        Self { increment: 0, single_handler: false }
    }

    /// A device with one handler for both queues, instead of one each.
    pub fn with_single_handler() -> Self {
        Self { single_handler: true, ..Self::new() }
    }
}

impl Default for Echo {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u16 {
        0x2f
    }

    fn features(&self) -> u64 {
        1
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64, 16]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        if offset == 0
            && let Some(byte) = data.first_mut()
        {
            *byte = self.increment;
        }
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 {
            self.increment = data[0];
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let task = |queues: Vec<(u16, Queue)>| {
            let (indices, queues): (Vec<_>, Vec<_>) = queues.into_iter().unzip();
            let handler = EchoQueue { queues, increment: self.increment, chain: Chain::new() };
            QueueTask { name: format!("echo{indices:?}"), queues: indices, handler: Box::new(handler) }
        };
        if self.single_handler {
            return Ok(vec![task(activation.queues)]);
        }
        Ok(activation.queues.into_iter().map(|queue| task(vec![queue])).collect())
    }

    /// Requests in queue 0 are refused; those in queue 1 are not answered.
    fn refusal(&self) -> Refusal {
        |asked| (asked.queue == 0).then(|| asked.chain.write_at(0, &[0xee]) as u32)
    }

    fn ring_reset(&self) -> bool {
        true
    }

    fn reset(&mut self) {
        self.increment = 0;
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct EchoState {
    increment: u8,
}

impl SavedFields for EchoState {
    const KIND: &'static str = "virtio-echo";
    const VERSION: u32 = 1;
}

impl Saved for Echo {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&EchoState { increment: self.increment })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        self.increment = state.read::<EchoState>()?.increment;
        Ok(())
    }
}

impl Inspect for Echo {
    fn inspect(&self) -> Value {
        json!({"increment": self.increment})
    }
}

struct EchoQueue {
    queues: Vec<Queue>,
    increment: u8,
    chain: Chain,
}

impl QueueHandler for EchoQueue {
    fn run(&mut self, _now: u64) -> Progress {
        let mut progress = Progress::Idle;
        for queue in &mut self.queues {
            queue.disable_notifications();
            let mut budget = BUDGET;
            while budget > 0 && queue.pop(&mut self.chain) == Ok(true) {
                let len = self.chain.readable_len().min(self.chain.writable_len()).min(4096);
                let mut data = vec![0; len as usize];
                let read = self.chain.read_at(0, &mut data);
                for byte in &mut data {
                    *byte = byte.wrapping_add(self.increment);
                }
                let written = self.chain.write_at(0, &data[..read]);
                queue.push(self.chain.token(), written as u32);
                budget -= 1;
            }
            queue.notify();
            if budget == 0 {
                progress = Progress::More;
            }
        }
        progress
    }

    fn arm(&mut self) -> bool {
        // All of them, whatever the first says.
        let mut work = false;
        for queue in &mut self.queues {
            work |= queue.enable_notifications();
        }
        work
    }

    fn has_work(&self) -> bool {
        self.queues.iter().any(Queue::has_available)
    }

    fn queues(&self) -> Vec<&Queue> {
        self.queues.iter().collect()
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        self.queues
    }
}

impl Inspect for EchoQueue {
    fn inspect(&self) -> Value {
        json!({"queues": self.queues.iter().map(Inspect::inspect).collect::<Vec<_>>()})
    }
}
