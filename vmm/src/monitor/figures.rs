//! What the machine thread tells of the process and its machine as a whole.

use super::{Monitor, Vm, not_created};
use crate::api::request::{InfoReply, PingReply, VmState};
use crate::api::{Answer, ApiError, ErrorKind, Reply};
use crate::config::{VmConfig, several};
use crate::metrics::{self, Sample};
use machine::inspect::inspect_at;
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

/// The part of the live tree that was asked for.
pub(super) fn part(tree: &Value, path: &str) -> Answer {
    if let Some(part) = inspect_at(tree, path) {
        return Ok(Reply::Json(part.clone()));
    }
    let reason = format!("path {path}: {}", missing_part(tree, path));
    Err(ApiError { field: Some("path".to_owned()), ..ApiError::new(ErrorKind::NotFound, reason) })
}

/// Says which part of `path` is not in the tree, and what is there instead.
fn missing_part(tree: &Value, path: &str) -> String {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let mut found = (String::new(), tree);
    for name in names {
        let deeper = format!("{}{}{name}", found.0, if found.0.is_empty() { "" } else { "/" });
        match inspect_at(tree, &deeper) {
            Some(part) => found = (deeper, part),
            None => {
                let there = match found.1 {
                    Value::Object(fields) => fields.keys().cloned().collect(),
                    Value::Array(list) => (0..list.len()).map(|index| index.to_string()).collect(),
                    _ => Vec::new(),
                };
                return match (found.0.as_str(), there.is_empty()) {
                    ("", _) => format!("there is nothing; paths begin with {}", there.join(", ")),
                    (above, true) => format!("there is no {name:?} in {above}, which has no parts"),
                    (above, false) => {
                        format!("there is no {name:?} in {above}, which has {}", there.join(", "))
                    }
                };
            }
        }
    }
    "there is nothing".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_of_a_path_is_told_with_what_is_there() {
        let tree = json!({"pci": {"0000:00:02.0": {"queue": {"0": {"size": 8}}, "list": [1, 2]}}, "cpu": {}});
        let refusal = |path| part(&tree, path).unwrap_err().message;
        for (path, expected) in [
            ("disk/a", "path disk/a: there is nothing; paths begin with cpu, pci"),
            (
                "pci/00:02.0/queue/1",
                "path pci/00:02.0/queue/1: there is no \"1\" in pci/00:02.0/queue, which has 0",
            ),
            (
                "pci/00:03.0/queue",
                "path pci/00:03.0/queue: there is no \"00:03.0\" in pci, which has 0000:00:02.0",
            ),
            (
                "pci/00:02.0/list/7",
                "path pci/00:02.0/list/7: there is no \"7\" in pci/00:02.0/list, which has 0, 1",
            ),
            ("cpu/0", "path cpu/0: there is no \"0\" in cpu, which has no parts"),
            (
                "pci/00:02.0/queue/0/size/x",
                "path pci/00:02.0/queue/0/size/x: there is no \"x\" in pci/00:02.0/queue/0/size, which has no parts",
            ),
        ] {
            assert_eq!(refusal(path), expected);
        }
        assert!(part(&tree, "pci/00:02.0/queue/0").is_ok());
    }
}
