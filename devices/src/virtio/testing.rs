//! A virtio device with its driver's queues, stepped in the test's thread.

use machine::clock::ManualClock;
use machine::inspect::Value;
use machine::memory::{Bytes, GuestAddress, Memory};
use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use virtio::device::{Activation, ConfigChange, Progress, QueueTask, VirtioDevice};
use virtio::features::Features;
use virtio::queue::Queue;
use virtio::testing::{DriverRing, Events, memory};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Rings are above this; tests use what is below.
const RINGS: u64 = 1 << 20;
const MEMORY: usize = 4 << 20;

pub(crate) struct Bench {
    memory: Memory,
    rings: BTreeMap<u16, DriverRing>,
    events: Arc<Events>,
    config_changes: Arc<AtomicU64>,
    task: QueueTask,
    epoll: Epoll,
}

impl Bench {
    /// Activates `device` with these queues (32 entries each) and device-type features.
    pub(crate) fn start(device: &mut dyn VirtioDevice, queues: &[u16], features: u64) -> Self {
        let memory = memory(MEMORY);
        let ring_features = Features::VERSION_1 | Features::INDIRECT_DESC | Features::EVENT_IDX;
        let features = features | ring_features.bits();
        let events = Arc::new(Events::default());
        let mut base = RINGS;
        let mut rings = BTreeMap::new();
        let mut enabled = Vec::new();
        for &index in queues {
            let ring = DriverRing::new(&memory, base, 32, ring_features);
            base += DriverRing::footprint(32);
            enabled
                .push((index, Queue::new(&ring.state(), features, memory.clone(), events.clone()).unwrap()));
            rings.insert(index, ring);
        }
        let config_changes = Arc::new(AtomicU64::new(0));
        let counter = config_changes.clone();
        let activation = Activation {
            features,
            memory: memory.clone(),
            queues: enabled,
            config_changed: ConfigChange::new(move || {
                counter.fetch_add(1, Ordering::SeqCst);
            }),
            clock: Arc::new(ManualClock::default()),
        };
        let mut tasks = device.activate(activation).unwrap();
        let task = tasks.pop().unwrap();
        assert!(tasks.is_empty());
        let epoll = Epoll::new().unwrap();
        let sources: Vec<RawFd> = task.handler.event_sources();
        for fd in sources {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).unwrap();
        }
        Self { memory, rings, events, config_changes, task, epoll }
    }

    pub(crate) fn ring(&mut self, index: u16) -> &mut DriverRing {
        self.rings.get_mut(&index).unwrap()
    }

    pub(crate) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    pub(crate) fn run_once(&mut self) -> Progress {
        self.task.handler.run()
    }

    /// Runs as a worker does: until nothing is to be done, events included.
    pub(crate) fn run(&mut self) {
        for _ in 0..10_000 {
            if self.task.handler.run() == Progress::More {
                continue;
            }
            if !self.task.handler.arm() && !self.ready() {
                return;
            }
        }
        panic!("the handler never rests: {}", self.task.handler.inspect());
    }

    /// Whether an event source would wake the worker.
    pub(crate) fn ready(&self) -> bool {
        self.epoll.wait(0, &mut [EpollEvent::default(); 4]).unwrap() > 0
    }

    pub(crate) fn inspect(&self) -> Value {
        self.task.handler.inspect()
    }

    pub(crate) fn quiesce(&mut self) {
        while !self.task.handler.quiesce() {}
    }

    pub(crate) fn config_changes(&self) -> u64 {
        self.config_changes.load(Ordering::SeqCst)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.events.is_broken()
    }

    /// Stops the handler, as for a reset. Checks that all queues come back.
    pub(crate) fn stop(mut self) {
        self.quiesce();
        let count = self.task.queues.len();
        assert_eq!(self.task.handler.queues().len(), count);
        assert_eq!(self.task.handler.into_queues().len(), count);
    }
}
