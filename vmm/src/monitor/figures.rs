//! What the machine thread tells of the process and its machine as a whole.

use super::{Monitor, Vm, not_created};
use crate::api::request::{InfoReply, PingReply, VmState};
use crate::api::{Answer, Reply};
use crate::config::{VmConfig, several};
use crate::metrics::{self, Sample};
use serde_json::Value;

impl Monitor {
    pub(super) fn info(&self) -> Answer {
        let mut answer = Reply::json(&self.description().ok_or_else(not_created)?)?;
        if let Reply::Json(info) = &mut answer
            && let Some(config) = info.get_mut("config").and_then(Value::as_object_mut)
        {
            several::show_one(config);
        }
        Ok(answer)
    }

    pub(super) fn metrics(&self) -> String {
        let (state, cpus, memory) = self.description().map_or(("absent", 0, 0), |info| {
            let state = match info.state {
                VmState::Created => "created",
                VmState::Running => "running",
                VmState::Shutdown => "shutdown",
                VmState::Paused => "paused",
            };
            (state, info.cpus_actual, info.memory_actual_size)
        });
        let mut samples = metrics::overview(state, cpus, memory);
        let of_machine = if let Vm::Booted(machine) = &self.vm { machine.samples() } else { Vec::new() };
        samples.extend(all_samples(of_machine));
        metrics::prometheus(&samples)
    }

    /// What `vm.info` tells of the machine, if there is one.
    fn description(&self) -> Option<InfoReply> {
        let still = |config: &VmConfig, state| InfoReply {
            config: config.clone(),
            state,
            memory_actual_size: config.memory.first_size(),
            cpus_actual: config.cpus.boot_vcpus,
            throttle_percent: 0,
            device_tree: Default::default(),
        };
        let mut info = match &self.vm {
            Vm::Absent => return None,
            Vm::Created(config) => still(config, VmState::Created),
            Vm::Booting(booting) => still(booting.config(), VmState::Created),
            Vm::Leaving(leaving) => still(leaving.config(), VmState::Shutdown),
            Vm::Booted(machine) => InfoReply {
                config: machine.config().clone(),
                state: match machine.paused() {
                    true => VmState::Paused,
                    false if machine.ending() => VmState::Shutdown,
                    false => VmState::Running,
                },
                memory_actual_size: machine.memory_size(),
                cpus_actual: machine.cpu_count(),
                throttle_percent: machine.throttle_percent(),
                device_tree: machine.device_tree(),
            },
        };
        // Clients read a number here.
        info.config.cpus.max_vcpus = Some(info.config.cpus.limit());
        Some(info)
    }
}

/// The figures of a machine and of the process.
pub(super) fn all_samples(mut of_machine: Vec<Sample>) -> Vec<Sample> {
    of_machine.extend([crate::log::sample(), crate::api::event_monitor::sample()]);
    of_machine
}

pub(super) fn ping() -> Answer {
    Reply::json(&PingReply {
        build_version: concat!("v", env!("CARGO_PKG_VERSION")).into(),
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        features: vec!["kvm".into()],
    })
}
