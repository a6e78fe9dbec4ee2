//! What stands in for a device that was taken away from a driver that has not let go of it.
//!
//! A driver does not get over a device that is simply gone: Linux's waits for a reset that nothing answers, and for requests
//! that nobody ends. So the function stays until the driver lets go of it. It offers what the device offered, refuses
//! requests in the device's own words ([`VirtioDevice::refusal`]), and can be reset.

use crate::chain::Chain;
use crate::device::{
    ActivateError, Activation, Progress, QueueHandler, QueueTask, VirtioDevice, read_fields,
};
use crate::queue::Queue;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much of a device's configuration space is kept, in bytes: more than any device has.
const CONFIG_SIZE: usize = 256;
/// Chains that are refused before others have their turn.
const BUDGET: u32 = 64;

/// A request to a device that is gone.
pub struct Request<'a> {
    /// Its queue.
    pub queue: u16,
    /// How many queues the device has.
    pub queues: u16,
    /// The features agreed upon.
    pub features: u64,
    /// The request.
    pub chain: &'a Chain,
}

/// Writes into a request that it failed. Returns how many bytes were written, or `None` for one that is not answered, which then
/// stays in its queue with those behind it.
pub type Refusal = fn(&Request<'_>) -> Option<u32>;

/// A device that refuses.
pub struct StandIn {
    device_type: u16,
    features: u64,
    queue_sizes: Vec<u16>,
    config: Vec<u8>,
    ring_reset: bool,
    refusal: Refusal,
    refused: Arc<AtomicU64>,
}

impl StandIn {
    /// One for this device.
    pub fn of(device: &dyn VirtioDevice) -> Self {
        let mut config = vec![0; CONFIG_SIZE];
        for (part, offset) in config.chunks_mut(4).zip((0..).step_by(4)) {
            device.config_read(offset, part);
        }
        Self {
            device_type: device.device_type(),
            features: device.features(),
            queue_sizes: device.queue_sizes(),
            config,
            ring_reset: device.ring_reset(),
            refusal: device.refusal(),
            refused: Arc::default(),
        }
    }
}

impl VirtioDevice for StandIn {
    fn device_type(&self) -> u16 {
        self.device_type
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.queue_sizes.clone()
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.config.iter().copied(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let queues: Vec<u16> = activation.queues.iter().map(|(queue, _)| *queue).collect();
        let handler = Refuser {
            queues: activation.queues,
            // A function has far fewer queues than this can count.
            count: self.queue_sizes.len() as u16,
            features: activation.features,
            refusal: self.refusal,
            chain: Chain::new(),
            refused: Arc::clone(&self.refused),
        };
        Ok(vec![QueueTask { name: "gone".to_owned(), queues, handler: Box::new(handler) }])
    }

    fn ring_reset(&self) -> bool {
        self.ring_reset
    }

    fn refusal(&self) -> Refusal {
        self.refusal
    }

    fn reset(&mut self) {}
}

machine::inspect!(StandIn, this => {
    kind: StandInState::KIND,
    refused: this.refused.load(Ordering::Relaxed),
});

/// Saved state: what the driver knows of the device.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct StandInState {
    config: Vec<u8>,
}

impl SavedFields for StandInState {
    const KIND: &'static str = "virtio-stand-in";
    const VERSION: u32 = 1;
}

impl Saved for StandIn {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&StandInState { config: self.config.clone() })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let mut config = state.read::<StandInState>()?.config;
        config.resize(CONFIG_SIZE, 0);
        self.config = config;
        Ok(())
    }
}

/// Refuses what is asked in all queues.
struct Refuser {
    queues: Vec<(u16, Queue)>,
    count: u16,
    features: u64,
    refusal: Refusal,
    chain: Chain,
    refused: Arc<AtomicU64>,
}

impl Refuser {
    /// Refuses the requests of a queue, up to one that is not answered.
    fn refuse(&mut self, index: usize) -> Progress {
        let Some((number, queue)) = self.queues.get_mut(index) else { return Progress::Idle };
        for _ in 0..BUDGET {
            // A broken queue has told the driver already.
            if !matches!(queue.pop(&mut self.chain), Ok(true)) {
                return Progress::Idle;
            }
            let request =
                Request { queue: *number, queues: self.count, features: self.features, chain: &self.chain };
            let Some(written) = (self.refusal)(&request) else {
                queue.unpop(self.chain.token());
                return Progress::Idle;
            };
            queue.push(self.chain.token(), written);
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        Progress::More
    }

    /// Refuses what there is in each queue.
    fn refuse_all(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        for index in 0..self.queues.len() {
            if self.refuse(index) == Progress::More {
                progress = Progress::More;
            }
            if let Some((_, queue)) = self.queues.get_mut(index) {
                queue.notify();
            }
        }
        progress
    }
}

impl QueueHandler for Refuser {
    fn run(&mut self, _now: u64) -> Progress {
        self.refuse_all()
    }

    /// Requests that are not answered stay available, so whether there are more is found by running once the driver rings.
    fn arm(&mut self) -> bool {
        for (_, queue) in &mut self.queues {
            queue.enable_notifications();
        }
        // What came before notifications were on has no bell. Where the driver goes by the index that it was told to ring at
        // (virtio 1.2, 2.7.10), it is past that once something was answered, and has to be told anew.
        let before = self.refused.load(Ordering::Relaxed);
        self.refuse_all() == Progress::More || self.refused.load(Ordering::Relaxed) != before
    }

    fn has_work(&self) -> bool {
        false
    }

    fn queues(&self) -> Vec<&Queue> {
        self.queues.iter().map(|(_, queue)| queue).collect()
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        self.queues.into_iter().map(|(_, queue)| queue).collect()
    }
}

machine::inspect!(Refuser, this => {
    refused,
    queues: this.queues.iter().map(|(_, queue)| queue.inspect()).collect::<Vec<_>>(),
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Driver, Echo, Layout};

    crate::conformance!(conformance, || Box::new(StandIn::of(&Echo::new())));

    #[test]
    fn what_was_asked_before_and_is_asked_after_is_refused_and_the_driver_can_let_go() {
        for layout in Layout::all() {
            let mut driver = Driver::new(Box::new(Echo::new()), layout);
            driver.write_config(0, &[3]);
            assert_eq!(driver.call(0, &[b"abc"], &[3]).written, 3);
            driver.request(0, &[b"abc"], &[3]).unwrap();
            driver.request(1, &[b"abc"], &[3]).unwrap();
            driver.stop();
            drop(driver.function.withdraw_device());
            driver.start();
            driver.run();
            let refused = driver.completion(0).unwrap();
            assert_eq!((refused.written, refused.data[0]), (1, 0xee), "{layout:?}");
            assert_eq!(driver.completion(1), None, "it is not answered");
            assert_eq!(driver.call(0, &[b"x"], &[1]).data, [0xee]);
            let mut config = [0];
            driver.read_config(0, &mut config);
            assert_eq!(config, [3], "the driver finds what it knows");
            driver.reset();
            assert_eq!(driver.status(), 0);
            driver.initialize(layout, u64::MAX);
            assert_eq!(driver.call(0, &[b"x"], &[1]).data, [0xee], "another driver is refused too");
        }
    }

    #[test]
    fn the_driver_rings_again_after_a_request_that_came_while_the_bell_was_being_listened_for() {
        for layout in Layout::all() {
            let mut driver = Driver::new(Box::new(Echo::new()), layout);
            driver.stop();
            drop(driver.function.withdraw_device());
            driver.start();
            driver.request(0, &[b"a"], &[1]).unwrap();
            driver.kick(0);
            // As a worker does before it waits: it must not wait before the bell is where the next request is.
            while driver.tasks.iter_mut().any(|task| task.handler.arm()) {
                for task in &mut driver.tasks {
                    let _ = task.handler.run(0);
                }
            }
            assert!(driver.completion(0).is_some(), "{layout:?}");
            driver.request(0, &[b"b"], &[1]).unwrap();
            assert!(driver.kick(0), "{layout:?}: nobody would hear of the request");
        }
    }
}
