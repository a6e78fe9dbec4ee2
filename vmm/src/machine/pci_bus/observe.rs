//! What functions and their workers show of themselves.

use super::{PciBus, PlainFunction, Presence, VirtioFunction, lock};
use crate::metrics::Sample;
use machine::effect::FunctionAddress;
use machine::inspect::{Inspect, Value, json};
use pci::function::FunctionHandle;
use pci::segment::Segment;
use virtio::worker::Worker;

impl PciBus {
    /// The figures of devices, their queues and workers.
    pub fn samples(&self) -> Vec<Sample> {
        let there = self.virtio.values().filter(|function| function.presence != Presence::Gone);
        there.flat_map(VirtioFunction::samples).collect()
    }

    /// The functions by address, without what is in the hands of workers.
    pub fn inspect(&self) -> Value {
        let functions = self.segments.iter().flat_map(Segment::functions);
        functions
            .map(|(address, function)| (address.to_string(), self.function_tree(address, &function)))
            .collect()
    }

    fn function_tree(&self, address: FunctionAddress, function: &FunctionHandle) -> Value {
        let mut tree = lock(function).inspect();
        let Value::Object(fields) = &mut tree else { return tree };
        if let Some(id) = self.id_of(address) {
            fields.insert("id".to_owned(), id.into());
        }
        if let Some(virtio) = self.virtio.get(&address) {
            let workers = virtio.workers.running().iter().map(|worker| Value::from(worker.name()));
            fields.insert("workers".to_owned(), workers.collect());
        }
        let shared = self.shared_memory.iter().filter(|((function, _), _)| *function == address);
        let shared: serde_json::Map<_, _> =
            shared.map(|((_, bar), memory)| (bar.to_string(), memory.inspect())).collect();
        if !shared.is_empty() {
            fields.insert("shared_memory".to_owned(), shared.into());
        }
        tree
    }

    /// The workers by name.
    pub fn inspect_workers(&self) -> Value {
        self.workers().map(|(_, worker)| (worker.name().to_owned(), worker.inspect())).collect()
    }

    /// Number of queues of a device, if it is a virtio device.
    pub fn queues_of(&self, id: &str) -> Option<usize> {
        let function = self.virtio.values().find(|function| function.id == id)?;
        Some(lock(&function.transport).queue_counters().len())
    }

    /// Moves the worker of a device's queue to other host CPUs, and those that come after it.
    pub fn set_queue_affinity(&mut self, id: &str, queue: u16, host_cpus: &[usize]) {
        if let Some(function) = self.virtio.values_mut().find(|function| function.id == id) {
            function.workers.set_affinity(queue, host_cpus);
        }
    }

    /// Every worker, with the function it works for.
    pub fn workers<'a>(&'a self) -> impl Iterator<Item = (FunctionAddress, &'a Worker)> {
        let virtio = self.virtio.iter().map(|(address, function)| (address, &function.workers));
        let beside = |(at, function): (_, &'a PlainFunction)| Some((at, function.beside.as_ref()?));
        let all = virtio.chain(self.plain.iter().filter_map(beside));
        all.flat_map(|(address, workers)| workers.running().iter().map(|worker| (*address, worker)))
    }
}

impl VirtioFunction {
    fn samples(&self) -> Vec<Sample> {
        let transport = lock(&self.transport);
        let device = || ("device", self.id.clone());
        let kind = match transport.device().device_type() {
            1 => "net",
            2 => "disk",
            5 => "balloon",
            24 => "memory",
            _ => "device",
        };
        let readings = transport.device().readings();
        let mut samples = Vec::new();
        if !readings.is_empty() {
            samples.push(Sample { key: self.id.clone(), kind, labels: vec![device()], readings });
        }
        for (queue, counters) in (0_u16..).zip(transport.queue_counters()) {
            let mut readings = counters.readings();
            readings.extend(transport.device().queue_readings(queue));
            samples.push(Sample {
                key: format!("{}.queue{queue}", self.id),
                kind: "queue",
                labels: vec![device(), ("queue", queue.to_string())],
                readings,
            });
        }
        drop(transport);
        for worker in self.workers.running() {
            samples.push(Sample {
                key: format!("{}.worker.{}", self.id, worker.name()),
                kind: "worker",
                labels: vec![device(), ("worker", worker.name().to_owned())],
                readings: worker.counters().readings(),
            });
        }
        samples
    }
}

/// Puts what a worker told of its handlers into the tree of the function they are for: under each queue they run, or under their
/// name if they run none.
pub fn add_handlers(function: &mut Value, worker: &Value) {
    for task in worker["tasks"].as_array().into_iter().flatten() {
        if let (Value::Object(fields), Some([])) =
            (&mut *function, task["queues"].as_array().map(Vec::as_slice))
            && let Some(name) = task["name"].as_str()
        {
            fields.insert(name.to_owned(), task["handler"].clone());
        }
        for queue in task["queues"].as_array().into_iter().flatten().filter_map(Value::as_u64) {
            let queue = function.get_mut("queue").and_then(|queues| queues.get_mut(queue as usize));
            if let Some(Value::Object(queue)) = queue {
                let shown = json!({ "runs": task["runs"], "waits_until_ns": task["waits_until_ns"] });
                queue.insert("task".to_owned(), shown);
                queue.insert("handler".to_owned(), task["handler"].clone());
            }
        }
    }
}
