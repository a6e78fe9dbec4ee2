//! Looking at a machine while it runs: its tree of live state, and its figures.

use super::Machine;
use super::pci_bus::observe::add_handlers;
use crate::metrics::Sample;
use machine::inspect::{Inspect, Value, json};
use machine::memory::GuestMemoryRegion;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long workers may take to say what their handlers do, before a tree is given without it.
const GATHERING_LIMIT: Duration = Duration::from_secs(5);

impl Machine {
    /// The figures of everything that counts.
    pub fn samples(&self) -> Vec<Sample> {
        let cpus = self.cpus.numbered().map(|(index, cpu)| Sample {
            key: format!("_cpu{index}"),
            kind: "cpu",
            labels: vec![("cpu", index.to_string())],
            readings: cpu.exits().readings(),
        });
        let throttle = Sample {
            key: "_throttle".into(),
            kind: "throttle",
            labels: Vec::new(),
            readings: self.throttle.readings(),
        };
        cpus.chain([throttle]).chain(self.pci.samples()).collect()
    }

    /// Gives `done` the tree of the machine's live state. What handlers of queues have to say comes from their workers, each
    /// when it has a moment: `done` is called by the last of them, or here, or without those that have none for too long. Nothing
    /// waits.
    pub fn inspect_all(&mut self, done: impl FnOnce(Value) + Send + 'static) {
        let gathering = Arc::new(Gathering(Mutex::new((self.inspect(), Some(Box::new(done))))));
        self.gatherings.0.retain(|(_, gathering)| gathering.strong_count() > 0);
        self.gatherings.0.push((super::after(GATHERING_LIMIT), Arc::downgrade(&gathering)));
        for (address, worker) in self.pci.workers() {
            let gathering = Arc::clone(&gathering);
            let name = address.to_string();
            worker.inspect_tasks(move |tasks| {
                let mut gathering = gathering.0.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(function) = gathering.0.get_mut("pci").and_then(|pci| pci.get_mut(&name)) {
                    add_handlers(function, &tasks);
                }
            });
        }
    }
}

/// Trees that are being put together, and when they are given as they are.
#[derive(Default)]
pub struct Gatherings(Vec<(Instant, Weak<Gathering>)>);

impl Machine {
    /// When [`Machine::give_up_gatherings`] is to be called.
    pub(super) fn gathering_deadline(&self) -> Option<Instant> {
        let gatherings = self.gatherings.0.iter().filter(|(_, gathering)| gathering.strong_count() > 0);
        gatherings.map(|(deadline, _)| *deadline).min()
    }

    /// Gives trees without what workers have not said in time.
    pub(super) fn give_up_gatherings(&mut self, now: Instant) {
        for (_, gathering) in self.gatherings.0.extract_if(.., |(deadline, _)| *deadline <= now) {
            if let Some(gathering) = gathering.upgrade() {
                gathering.complete();
            }
        }
    }
}

impl Inspect for Machine {
    fn inspect(&self) -> Value {
        let memory = self.memory.boot_regions().enumerate().map(|(index, region)| {
            let start = region.start_addr().0;
            let zone = self.memory.zones.iter().find(|zone| zone.has_region(start));
            let tree = json!({
                "start": machine::inspect::hex(&start),
                "size": region.len(),
                "zone": zone.map(|zone| zone.id.as_str()),
            });
            (index.to_string(), tree)
        });
        json!({
            "cpu": self.cpus.inspect(),
            "memory": memory.collect::<Value>(),
            "pci": self.pci.inspect(),
            "worker": self.pci.inspect_workers(),
            "platform": self.platform.inspect(),
            "flash": self.flash.inspect(),
            "memory_modules": self.modules.inspect(),
            "memory_devices": self.memory_devices.inspect(&self.pci, self.balloon()),
            "resets": self.resets,
            "throttle": self.throttle.inspect(),
        })
    }
}

/// A tree that several add to. It is complete when the last of them lets go of it, also if that is because its worker
/// ended and will not answer.
pub struct Gathering(Mutex<(Value, Option<Done>)>);

type Done = Box<dyn FnOnce(Value) + Send>;

impl Gathering {
    fn complete(&self) {
        let mut gathering = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (tree, done) = &mut *gathering;
        if let Some(done) = done.take() {
            done(std::mem::take(tree));
        }
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.complete();
    }
}
