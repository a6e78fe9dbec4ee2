//! Looking at a machine while it runs: its tree of live state, and its figures.

use super::Machine;
use super::pci_bus::observe::add_handlers;
use crate::metrics::Sample;
use machine::inspect::{Inspect, Value, json};
use machine::memory::GuestMemoryRegion;
use std::sync::{Arc, Mutex, PoisonError};

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
        cpus.chain([throttle]).chain(self.pci.samples()).chain([crate::log::sample()]).collect()
    }

    /// Gives `done` the tree of the machine's live state. What handlers of queues have to say comes from their workers, each
    /// when it has a moment: `done` is called by the last of them, or here. Nothing waits.
    pub fn inspect_all(&self, done: impl FnOnce(Value) + Send + 'static) {
        let gathering = Arc::new(Gathering(Mutex::new((self.inspect(), Some(Box::new(done))))));
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

impl Inspect for Machine {
    fn inspect(&self) -> Value {
        let memory = self.memory.boot_regions().enumerate().map(|(index, region)| {
            let start = region.start_addr().0;
            let zone = self.memory.zones.iter().find(|zone| zone.has_region(start));
            let tree = json!({
                "start": machine::inspect::hex(&start),
                "size": machine::inspect::size(&region.len()),
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
            "memory_devices": self.memory_devices.inspect(),
            "resets": self.resets,
            "throttle": self.throttle.inspect(),
        })
    }
}

/// A tree that several add to. It is complete when the last of them lets go of it, also if that is because its worker
/// ended and will not answer.
struct Gathering(Mutex<(Value, Option<Done>)>);

type Done = Box<dyn FnOnce(Value) + Send>;

impl Drop for Gathering {
    fn drop(&mut self) {
        let (tree, done) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = done.take() {
            done(std::mem::take(tree));
        }
    }
}
