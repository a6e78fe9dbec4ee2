//! Real-time clock device (virtio 1.4, 5.23): the host's clocks, and alarms.
//!
//! The clocks are UTC as the host has it, a monotonic one, and TAI where the host knows it. The driver reads them by
//! requests on queue 0. On queue 1 it is told of alarms.

mod clocks;
mod request;

use clocks::{Clocks, MOST_CLOCKS, SavedClocks};
use machine::clock::Clock;
use machine::inspect::Inspect;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use request::{LONGEST, Terms};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio::chain::Chain;
use virtio::device::{ActivateError, Activation, Progress, QueueHandler, QueueTask, VirtioDevice};
use virtio::queue::{Queue, QueueError};

const DEVICE_TYPE: u16 = 17;
const QUEUE_SIZE: u16 = 64;
const REQUESTS: u16 = 0;
const ALARMS: u16 = 1;
/// Feature: clocks have alarms.
const FEATURE_ALARM: u64 = 1 << 0;
/// How many requests one run serves at most.
const BUDGET: u32 = 64;

/// How many seconds TAI is ahead of UTC, if the host was told (by an NTP daemon, mostly).
pub fn host_tai_offset() -> Option<u64> {
    let nanoseconds = |clock| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes to the structure, which lives during the call.
        let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
        (result == 0).then(|| {
            i128::from(time.tv_sec).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.into())
        })
    };
    let (utc, tai) = (nanoseconds(libc::CLOCK_REALTIME)?, nanoseconds(libc::CLOCK_TAI)?);
    // The time between the two calls is rounded away.
    let offset = tai.checked_sub(utc)?.checked_add(500_000_000)?.checked_div(1_000_000_000)?;
    u64::try_from(offset).ok().filter(|offset| *offset > 0)
}

/// The device.
pub struct Rtc {
    clocks: Arc<Mutex<Clocks>>,
}

impl Rtc {
    /// A device with the clocks of the host. `tai_offset` says how many seconds TAI is ahead of UTC, see
    /// [`host_tai_offset`]; it must not block.
    pub fn new(clock: Arc<dyn Clock>, tai_offset: fn() -> Option<u64>) -> Self {
        Self { clocks: Arc::new(Mutex::new(Clocks::new(clock, tai_offset))) }
    }
}

fn lock(clocks: &Mutex<Clocks>) -> MutexGuard<'_, Clocks> {
    clocks.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioDevice for Rtc {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        FEATURE_ALARM
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let (mut requests, mut alarms) = (None, None);
        for (index, queue) in activation.queues {
            match index {
                REQUESTS => requests = Some(queue),
                ALARMS => alarms = Some(queue),
                _ => {}
            }
        }
        let requests = requests.ok_or(ActivateError::QueueMissing(REQUESTS))?;
        let queues = [Some(REQUESTS), alarms.as_ref().map(|_| ALARMS)];
        let handler = Handler {
            requests,
            alarms,
            clocks: Arc::clone(&self.clocks),
            negotiated_alarms: activation.features & FEATURE_ALARM != 0,
            chain: Chain::new(),
            served: 0,
            notifications: 0,
        };
        let queues = queues.into_iter().flatten().collect();
        Ok(vec![QueueTask { name: "clock".to_owned(), queues, handler: Box::new(handler) }])
    }

    /// Alarms do not outlast the driver that set them.
    fn reset(&mut self) {
        lock(&self.clocks).reset();
    }
}

machine::inspect!(Rtc, this => {
    clock: lock(&this.clocks).inspect(),
});

impl SavedFields for SavedClocks {
    const KIND: &'static str = "virtio-rtc";
    const VERSION: u32 = 1;
}

impl Saved for Rtc {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&lock(&self.clocks).save())
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let mut clocks = lock(&self.clocks);
        clocks.reset();
        let saved: SavedClocks = state.read()?;
        if saved.clocks.len() > MOST_CLOCKS {
            let reason = format!("it has {} clocks, and there can be {MOST_CLOCKS}", saved.clocks.len());
            return Err(StateError::Value { kind: SavedClocks::KIND, reason });
        }
        clocks.restore(&saved);
        Ok(())
    }
}

struct Handler {
    requests: Queue,
    alarms: Option<Queue>,
    clocks: Arc<Mutex<Clocks>>,
    negotiated_alarms: bool,
    chain: Chain,
    served: u64,
    notifications: u64,
}

impl Handler {
    /// Serves requests. `true`: there may be more.
    fn serve(&mut self) -> bool {
        for _ in 0..BUDGET {
            // A broken queue has told the driver already.
            let Ok(true) = self.requests.pop(&mut self.chain) else { return false };
            let mut request = [0; LONGEST];
            let length = self.chain.read_at(0, &mut request);
            let terms = Terms { alarms: self.negotiated_alarms, room: self.chain.writable_len() };
            let request = request.get(..length).unwrap_or_default();
            let answer = request::serve(request, &mut lock(&self.clocks), terms);
            let written = self.chain.write_at(0, answer.bytes());
            self.served = self.served.saturating_add(1);
            self.requests.push(self.chain.token(), u32::try_from(written).unwrap_or(0));
        }
        true
    }

    /// Tells the driver of alarms, as far as it has given room to.
    fn notify(&mut self) {
        let Some(queue) = self.alarms.as_mut().filter(|_| self.negotiated_alarms) else { return };
        let mut clocks = lock(&self.clocks);
        while let Some(id) = clocks.pending() {
            let Ok(true) = queue.pop(&mut self.chain) else { break };
            let message = request::notification(id);
            let written = self.chain.write_at(0, &message);
            if written < message.len() {
                queue.fail(QueueError::Request("for alarms has too little room for one"));
                break;
            }
            clocks.told(id);
            self.notifications = self.notifications.saturating_add(1);
            queue.push(self.chain.token(), u32::try_from(written).unwrap_or(0));
        }
        drop(clocks);
        queue.notify();
    }
}

impl QueueHandler for Handler {
    fn run(&mut self, _now: u64) -> Progress {
        self.requests.disable_notifications();
        let more = self.serve();
        self.requests.notify();
        let next = lock(&self.clocks).look();
        self.notify();
        match (more, next) {
            (true, _) => Progress::More,
            (false, Some(time)) => Progress::Until(time),
            (false, None) => Progress::Idle,
        }
    }

    fn arm(&mut self) -> bool {
        let pending = lock(&self.clocks).pending().is_some();
        let alarms = self.alarms.as_mut().is_some_and(Queue::enable_notifications);
        let requests = self.requests.enable_notifications();
        requests || pending && alarms
    }

    fn has_work(&self) -> bool {
        let room = self.alarms.as_ref().is_some_and(Queue::has_available);
        self.requests.has_available() || room && lock(&self.clocks).pending().is_some()
    }

    fn queues(&self) -> Vec<&Queue> {
        [&self.requests].into_iter().chain(&self.alarms).collect()
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        [self.requests].into_iter().chain(self.alarms).collect()
    }
}

machine::inspect!(Handler, this => {
    requests: this.served,
    alarms: this.notifications,
    queues: this.queues().into_iter().map(Inspect::inspect).collect::<Vec<_>>(),
});

#[cfg(test)]
mod tests;
