//! What is asked of CPUs and workers while they run: a non-maskable interrupt, and where they run.

use super::{Machine, platform};
use crate::api::request::{DeviceQueueAffinity, SetAffinity};
use crate::api::{Answer, ApiError, ErrorKind, Reply};
use crate::config::disk::QueueAffinity;
use crate::config::{CpuAffinity, VmConfig};
use crate::cpu;
use crate::cpu::CpuThread;
use crate::host_cpus;

impl Machine {
    /// Raises a non-maskable interrupt on every CPU.
    ///
    /// # Errors
    /// When CPUs have no such interrupt, or the host refuses.
    pub fn nmi(&self) -> Answer {
        let Some(raise) = platform::RAISE_NMI else {
            let reason = "vm.nmi: CPUs of this architecture have no non-maskable interrupt that the host can raise; to see where \
                          they are, use vm.coredump or --gdb";
            return Err(ApiError::new(ErrorKind::NotSupported, reason));
        };
        self.on_each_cpu((&self.cpus).into_iter(), "raising an NMI", raise)?;
        self.events.emit("vm", "nmi");
        Ok(Reply::Done)
    }

    /// Moves CPUs, and the workers of devices' queues, to other host CPUs, and notes it in the configuration where that has a place
    /// for it.
    ///
    /// # Errors
    /// When a CPU, device, queue or host CPU is not there; nothing is moved then.
    pub fn set_affinity(&mut self, request: &SetAffinity) -> Answer {
        check_affinity(
            request,
            |vcpu| self.cpus.get(vcpu).is_some(),
            |id| {
                let queues = self.pci.queues_of(id);
                queues.ok_or_else(|| format!("device {id}: there is no device of that name that has queues"))
            },
        )?;
        for affinity in &request.cpus {
            let host_cpus = affinity.host_cpus.clone();
            let cpu = self.cpus.get(affinity.vcpu);
            self.on_each_cpu(cpu.into_iter(), "moving a CPU to other host CPUs", move |_| {
                cpu::set_affinity(&host_cpus)
            })?;
            note_affinity(&mut self.config.cpus.affinity, affinity);
            self.cpus.affinity.clone_from(&self.config.cpus.affinity);
        }
        for queue in &request.queues {
            self.pci.set_queue_affinity(&queue.id, queue.queue_index, &queue.host_cpus);
            note_queue_affinity(&mut self.config, queue);
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

/// A configuration with other host CPUs for CPUs, and for the workers of disks and network interfaces.
///
/// # Errors
/// When a CPU, device, queue or host CPU is not there.
pub fn with_affinity(config: &VmConfig, request: &SetAffinity) -> Result<VmConfig, ApiError> {
    check_affinity(
        request,
        |vcpu| vcpu < config.cpus.limit(),
        |id| {
            let disks = config.disks.iter().map(|disk| (&disk.id, usize::from(disk.num_queues)));
            // With the one by which the driver gives orders.
            let nets = config.net.iter().map(|net| (&net.id, usize::from(net.num_queues).saturating_add(1)));
            let queues =
                disks.chain(nets).find(|(own, _)| own.as_deref() == Some(id)).map(|(_, queues)| queues);
            queues.ok_or_else(|| {
                format!(
                    "device {id}: there is no disk or network interface of that name; the queues of other devices are placed while \
                     the machine runs"
                )
            })
        },
    )?;
    let mut config = config.clone();
    for affinity in &request.cpus {
        note_affinity(&mut config.cpus.affinity, affinity);
    }
    for queue in &request.queues {
        note_queue_affinity(&mut config, queue);
    }
    Ok(config)
}

/// Notes where a CPU runs.
fn note_affinity(settings: &mut Vec<CpuAffinity>, affinity: &CpuAffinity) {
    settings.retain(|present| present.vcpu != affinity.vcpu);
    settings.push(affinity.clone());
}

/// Notes where the worker of a queue runs, if the configuration has a place for that.
fn note_queue_affinity(config: &mut VmConfig, affinity: &DeviceQueueAffinity) {
    let DeviceQueueAffinity { id, queue_index, host_cpus } = affinity;
    let disks = config.disks.iter_mut().map(|disk| (&disk.id, &mut disk.queue_affinity));
    let nets = config.net.iter_mut().map(|net| (&net.id, &mut net.queue_affinity));
    let mut settings = disks.chain(nets).filter(|(own, _)| own.as_ref() == Some(id));
    if let Some((_, settings)) = settings.next() {
        settings.retain(|present| present.queue_index != *queue_index);
        settings.push(QueueAffinity { queue_index: *queue_index, host_cpus: host_cpus.clone() });
    }
}

/// Checks all of a request against what CPUs there are, and how many queues a device has, or why none can be placed.
fn check_affinity(
    request: &SetAffinity,
    has_cpu: impl Fn(u32) -> bool,
    queues_of: impl Fn(&str) -> Result<usize, String>,
) -> Result<(), ApiError> {
    let refusal =
        |kind, field: String, message| ApiError { field: Some(field), ..ApiError::new(kind, message) };
    let host = |field: String, host_cpus: &[usize]| {
        host_cpus::check(host_cpus)
            .map_err(|reason| refusal(ErrorKind::BadRequest, format!("{field}.host_cpus"), reason))
    };
    for (at, CpuAffinity { vcpu, host_cpus }) in request.cpus.iter().enumerate() {
        let field = format!("cpus[{at}]");
        if !has_cpu(*vcpu) {
            let reason = format!("there is no CPU {vcpu}");
            return Err(refusal(ErrorKind::NotFound, format!("{field}.vcpu"), reason));
        }
        host(field, host_cpus)?;
    }
    for (at, DeviceQueueAffinity { id, queue_index, host_cpus }) in request.queues.iter().enumerate() {
        let field = format!("queues[{at}]");
        let queues =
            queues_of(id).map_err(|reason| refusal(ErrorKind::NotFound, format!("{field}.id"), reason))?;
        if usize::from(*queue_index) >= queues {
            let reason = format!("device {id}: there is no queue {queue_index}; it has {queues}, from 0");
            return Err(refusal(ErrorKind::NotFound, format!("{field}.queue_index"), reason));
        }
        host(field, host_cpus)?;
    }
    Ok(())
}
