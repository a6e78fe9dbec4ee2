//! What is asked of CPUs and workers while they run: a non-maskable interrupt, and where they run.

use super::{Machine, platform};
use crate::api::request::SetAffinity;
use crate::api::{Answer, ApiError, ErrorKind, Reply};
use crate::cpu;
use crate::cpu::CpuThread;

impl Machine {
    /// Raises a non-maskable interrupt on every CPU.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn nmi(&self) -> Answer {
        self.on_each_cpu((&self.cpus).into_iter(), "raising an NMI", platform::raise_nmi)?;
        self.events.emit("vm", "nmi");
        Ok(Reply::Done)
    }

    /// Moves CPUs, and the workers of a device's queues, to other host CPUs.
    ///
    /// # Errors
    /// When one of them is not there. Those before it were moved if the host refuses one.
    pub fn set_affinity(&mut self, request: &SetAffinity) -> Answer {
        let missing = |field: &str, message| ApiError {
            field: Some(field.to_owned()),
            ..ApiError::new(ErrorKind::NotFound, message)
        };
        for affinity in &request.cpus {
            if self.cpus.get(affinity.vcpu).is_none() {
                return Err(missing("cpus", format!("there is no CPU {}", affinity.vcpu)));
            }
        }
        for affinity in &request.queues {
            if self.pci.address_of(&affinity.id).is_none() {
                let reason = format!("device {}: there is no device of that name", affinity.id);
                return Err(missing("queues", reason));
            }
        }
        for affinity in &request.cpus {
            let host_cpus = affinity.host_cpus.clone();
            let cpu = self.cpus.get(affinity.vcpu);
            self.on_each_cpu(cpu.into_iter(), "moving CPU to other host CPUs", move |_| {
                cpu::set_affinity(&host_cpus)
            })
            // The host refuses when it has none of these CPUs, or not for this process.
            .map_err(|error| ApiError {
                kind: ErrorKind::BadRequest,
                field: Some("cpus".to_owned()),
                ..error
            })?;
            let settings = &mut self.config.cpus.affinity;
            settings.retain(|present| present.vcpu != affinity.vcpu);
            settings.push(affinity.clone());
            self.cpus.affinity.clone_from(settings);
        }
        for affinity in &request.queues {
            self.pci.set_queue_affinity(&affinity.id, affinity.queue_index, &affinity.host_cpus);
        }
        Ok(Reply::Done)
    }

    /// Has CPUs do something between two instructions, all at the same time, and waits until they have.
    fn on_each_cpu<'a, E: std::fmt::Display + Send + 'static>(
        &self,
        cpus: impl Iterator<Item = &'a CpuThread>,
        what: &str,
        task: impl Fn(&mut dyn hypervisor::Vcpu) -> Result<(), E> + Clone + Send + 'static,
    ) -> Result<(), ApiError> {
        let failed = |error: &dyn std::fmt::Display| ApiError::internal(format!("{what}: {error}"));
        let begun: Vec<_> = cpus
            .map(|cpu| {
                let task = task.clone();
                cpu.begin(move |vcpu| task(vcpu))
            })
            .collect::<anyhow::Result<_>>()
            .map_err(|error| failed(&error))?;
        for done in begun {
            done.wait().map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        }
        Ok(())
    }
}
