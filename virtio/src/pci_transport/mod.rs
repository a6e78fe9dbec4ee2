//! Virtio over PCI (virtio 1.2, 4.1), modern devices only.
//!
//! [`VirtioPci`] makes a PCI function of a [`VirtioDevice`]. It runs nothing, and asks its owner for what is to be done:
//!
//! - [`DeviceChange::Start`]: take the queue handlers from [`VirtioPci::start`] and run them.
//! - [`DeviceChange::Stop`]: bring the handlers to rest and give them to [`VirtioPci::stopped`]. The reset is then done.
//! - [`DeviceChange::StartQueue`] and [`DeviceChange::StopQueue`]: stop as above (with no handlers, if none are out); then, as
//!   `stopped` says, start again. The handlers of other queues go on where they were.
//! - [`DeviceChange::Reset`]: stop as above, then [`pci::function::Function::reset`].
//! - [`DeviceChange::Remap`]: map the BARs anew, then do what [`VirtioPci::unsettled`] says.
//!
//! A function that may not access memory (its bus master bit is off) runs no handlers, and goes on where it was when it may
//! again: that is how a kernel that starts another one keeps the devices it leaves behind from writing over it.
//!
//! To pause, save, or give the device other memory, stop and later start it in the same way. Where things lie in the BARs
//! is told in [`layout`].

mod absent;
pub mod common;
mod function;
mod interrupts;
pub mod layout;
mod saved;

use crate::device::{ActivateError, Activation, ConfigChange, QueueTask, VirtioDevice};
use crate::features::Features;
use crate::queue::{MAX_SIZE, Queue, QueueCounters, QueueError, QueueState};
use crate::stand_in::StandIn;
use absent::Absent;
use interrupts::{Interrupts, QueueInterrupt};
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::effect::DeviceChange;
use machine::interrupt::MsiAllocator;
use machine::memory::Memory;
use pci::capability::ExpressKind;
use pci::config::{ConfigError, ConfigSpace};
use pci::intx::Intx;
use std::io;
use std::sync::Arc;
use thiserror::Error;

/// Device status bits (virtio 1.2, 2.1).
pub mod status {
    /// The driver found the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The features are agreed upon.
    pub const FEATURES_OK: u8 = 8;
    /// The device must be reset before it works again.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}

/// Which features of the ring and the transport are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Packed rings.
    pub packed: bool,
    /// Event indices.
    pub event_idx: bool,
    /// Indirect descriptors.
    pub indirect: bool,
    /// Accesses go through the platform's IOMMU: `ACCESS_PLATFORM`.
    pub access_platform: bool,
    /// Doorbells carry the driver's position: `NOTIFICATION_DATA`.
    pub notification_data: bool,
    /// Where the function sits.
    pub express: ExpressKind,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            packed: true,
            event_idx: true,
            indirect: true,
            access_platform: false,
            notification_data: true,
            express: ExpressKind::RootComplexIntegratedEndpoint,
        }
    }
}

/// What the function may use of the machine.
pub struct Capabilities {
    /// Guest memory.
    pub memory: Memory,
    /// Where interrupt vectors come from.
    pub msi: Arc<dyn MsiAllocator>,
    /// The interrupt pin, if it is to have one.
    pub intx: Option<Intx>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Why a device cannot be a PCI function.
#[derive(Debug, Error)]
pub enum VirtioPciError {
    /// It has more queues than there is room for.
    #[error("the device has {0} queues, and a virtio PCI function has room for {max}", max = layout::MAX_QUEUES)]
    Queues(usize),
    /// A queue's largest size is none a queue can have.
    #[error("the device's queue {queue} has size {size}, which is no power of two from 1 to 32768")]
    QueueSize {
        /// Its index.
        queue: usize,
        /// Its size.
        size: u16,
    },
    /// Its shared memory is larger than the address space.
    #[error("the device's shared memory does not fit in a BAR")]
    SharedMemory,
    /// The configuration space has no room.
    #[error("the device does not fit in a configuration space: {0}")]
    Config(#[from] ConfigError),
    /// No doorbells.
    #[error("making the doorbell of a queue failed: {0}; the process may be out of file descriptors")]
    Doorbell(#[source] io::Error),
}

/// Why a device did not start. Its driver has been told that it needs a reset.
#[derive(Debug, Error)]
pub enum StartError {
    /// The driver set a queue up wrongly.
    #[error("queue {queue}: {source}")]
    Queue {
        /// Its index.
        queue: u16,
        /// What is wrong.
        source: QueueError,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] ActivateError),
}

/// What one queue's registers hold.
#[derive(Clone, Copy, Debug)]
struct QueueRegisters {
    max_size: u16,
    size: u16,
    descriptor_area: u64,
    driver_area: u64,
    device_area: u64,
    enabled: bool,
    /// The driver reset the queue, and its handler has not come back.
    resetting: bool,
    /// How far it got, once it ran: next available and next used.
    progress: Option<(u16, u16)>,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            descriptor_area: 0,
            driver_area: 0,
            device_area: 0,
            enabled: false,
            resetting: false,
            progress: None,
        }
    }

    fn state(&self, packed: bool) -> QueueState {
        let fresh =
            QueueState::new(self.size, self.descriptor_area, self.driver_area, self.device_area, packed);
        match self.progress {
            None => fresh,
            Some((next_available, next_used)) => QueueState { next_available, next_used, ..fresh },
        }
    }
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    config: ConfigSpace,
    options: Options,
    memory: Memory,
    clock: Arc<dyn Clock>,
    interrupts: Arc<Interrupts>,
    doorbells: Vec<Doorbell>,
    regions: Vec<layout::Region>,
    /// Offset of the configuration space's window on the BARs.
    window: u16,
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    counters: Vec<Arc<QueueCounters>>,
    /// Queue handlers are out.
    running: bool,
    /// The device was started since its last reset, which then has to do with the host too: that is not done on a CPU.
    started: bool,
    /// The driver reset the device, and the handlers have not come back.
    resetting: bool,
}

impl VirtioPci {
    /// A function at power-on.
    ///
    /// # Errors
    /// When the device does not fit, or the host is out of file descriptors.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        options: Options,
        capabilities: Capabilities,
    ) -> Result<Self, VirtioPciError> {
        let sizes = device.queue_sizes();
        let count = u16::try_from(sizes.len()).ok().filter(|count| *count <= layout::MAX_QUEUES);
        let count = count.ok_or(VirtioPciError::Queues(sizes.len()))?;
        for (queue, &size) in sizes.iter().enumerate() {
            if !size.is_power_of_two() || size > MAX_SIZE {
                return Err(VirtioPciError::QueueSize { queue, size });
            }
        }
        let Capabilities { memory, msi, intx, clock } = capabilities;
        let shared_memory = device.shared_memory();
        let built =
            layout::build(device.device_type(), count, &shared_memory, options.express, msi, intx.clone())?;
        let Some(msix) = built.config.msix().map(pci::msix::Msix::handle) else {
            return Err(VirtioPciError::Queues(sizes.len()));
        };
        let doorbells = sizes.iter().map(|_| Doorbell::new()).collect::<io::Result<_>>();
        let timed = !device.times_requests();
        let counters = || Arc::new(if timed { QueueCounters::timed() } else { QueueCounters::default() });
        Ok(Self {
            device,
            config: built.config,
            options,
            memory,
            clock,
            interrupts: Arc::new(Interrupts::new(msix, intx, count)),
            doorbells: doorbells.map_err(VirtioPciError::Doorbell)?,
            regions: built.regions,
            window: built.window,
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            counters: sizes.iter().map(|_| counters()).collect(),
            queues: sizes.into_iter().map(QueueRegisters::new).collect(),
            running: false,
            started: false,
            resetting: false,
        })
    }

    /// The device behind the transport.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// The device behind the transport, to change what the host side sets.
    pub fn device_mut(&mut self) -> &mut dyn VirtioDevice {
        self.device.as_mut()
    }

    /// Takes the device out, to be dropped with what it holds of the host: the function is being removed, and no handler is out.
    /// What is left answers as a device without features and queues.
    pub fn take_device(&mut self) -> Box<dyn VirtioDevice> {
        self.reset_device();
        self.queues.clear();
        std::mem::replace(&mut self.device, Box::new(Absent))
    }

    /// Takes the device out, to be dropped with what it holds of the host, while its driver has not let go of it; no handler is
    /// out. What is left refuses requests until the driver resets it, and is to go on if handlers are to run.
    pub fn withdraw_device(&mut self) -> Box<dyn VirtioDevice> {
        let stand_in = StandIn::of(&*self.device);
        std::mem::replace(&mut self.device, Box::new(stand_in))
    }

    /// Tells the driver that the device's configuration space changed.
    pub fn config_change(&self) -> ConfigChange {
        let interrupts = Arc::clone(&self.interrupts);
        ConfigChange::new(move || interrupts.config_changed())
    }

    /// What each queue counted, by its index.
    pub fn queue_counters(&self) -> &[Arc<QueueCounters>] {
        &self.counters
    }

    /// The bells of `task`'s queues, to wake its worker.
    pub fn doorbells_of(&self, task: &QueueTask) -> Vec<Doorbell> {
        task.queues.iter().filter_map(|queue| self.doorbells.get(usize::from(*queue)).cloned()).collect()
    }

    /// Has every queue looked at, as if the driver had rung: something that a handler waits for may have changed.
    pub fn ring_all(&self) {
        self.doorbells.iter().for_each(Doorbell::ring);
    }

    /// Where region `id` of shared memory lies: its offset in [`layout::SHARED_MEMORY_BAR`] and its size.
    pub fn shared_memory(&self, id: u8) -> Option<(u64, u64)> {
        self.regions.iter().find(|region| region.id == id).map(|region| (region.offset, region.size))
    }

    /// The features offered: the device's, the ring's and the transport's.
    pub fn offered_features(&self) -> u64 {
        let mut ring = Features::VERSION_1;
        ring.set(Features::RING_PACKED, self.options.packed);
        ring.set(Features::EVENT_IDX, self.options.event_idx);
        ring.set(Features::INDIRECT_DESC, self.options.indirect);
        ring.set(Features::ACCESS_PLATFORM, self.options.access_platform);
        ring.set(Features::NOTIFICATION_DATA, self.options.notification_data);
        ring.set(Features::RING_RESET, self.device.ring_reset());
        Features::device_type(self.device.features()) | ring.bits()
    }

    /// The features agreed upon so far.
    fn features(&self) -> Features {
        Features::from_bits_retain(self.driver_features)
    }

    /// Whether the driver is ready and the device able: handlers are to run.
    pub fn is_live(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && !self.resetting && !self.interrupts.needs_reset()
    }

    /// Whether handlers are to run: the device is live, and may access memory.
    fn is_to_run(&self) -> bool {
        self.is_live() && self.config.bus_master()
    }

    /// What is to be done because the driver let the device access memory, or no longer.
    pub fn unsettled(&self) -> Option<DeviceChange> {
        if self.running {
            // While the driver resets the device, it is being stopped.
            (!self.config.bus_master() && !self.resetting).then_some(DeviceChange::Stop)
        } else {
            self.is_to_run().then_some(DeviceChange::Start)
        }
    }

    /// Whether handlers are out.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Makes the queue handlers, after [`DeviceChange::Start`], when a machine that was paused goes on, and when
    /// [`Self::stopped`] asks for it. None if they are out already or the driver is not ready (any more).
    ///
    /// # Errors
    /// When the driver's setup cannot work, or the host has no resources. The driver has then been told that the device
    /// needs a reset.
    pub fn start(&mut self) -> Result<Vec<QueueTask>, StartError> {
        if self.running || !self.is_to_run() {
            return Ok(Vec::new());
        }
        self.interrupts.set_live(true);
        self.started = true;
        let tasks = self.make_queues().and_then(|queues| {
            let activation = Activation {
                features: self.driver_features,
                memory: Arc::clone(&self.memory),
                queues,
                config_changed: self.config_change(),
                clock: Arc::clone(&self.clock),
            };
            Ok(self.device.activate(activation)?)
        });
        match tasks {
            Ok(tasks) => {
                self.running = true;
                Ok(tasks)
            }
            Err(error) => {
                tracing::warn!(device_type = self.device.device_type(), %error, "a virtio device cannot start");
                self.interrupts.need_reset();
                Err(error)
            }
        }
    }

    fn make_queues(&self) -> Result<Vec<(u16, Queue)>, StartError> {
        let packed = self.features().contains(Features::RING_PACKED);
        let enabled = self.queues.iter().zip(0_u16..).filter(|(registers, _)| registers.enabled);
        let make = |(registers, queue): (&QueueRegisters, u16)| {
            let events = Arc::new(QueueInterrupt { interrupts: Arc::clone(&self.interrupts), queue });
            let made =
                Queue::new(&registers.state(packed), self.driver_features, Arc::clone(&self.memory), events);
            let made = made.map_err(|source| StartError::Queue { queue, source })?;
            let counters = self.counters.get(usize::from(queue)).cloned().unwrap_or_default();
            Ok((queue, made.counting(counters, Arc::clone(&self.clock))))
        };
        enabled.map(make).collect()
    }

    /// Takes all handlers back, quiescent. What the driver asked for meanwhile is completed. `true`: handlers are to
    /// run again, see [`Self::start`].
    ///
    /// It is also how a machine is paused, saved or given other memory: the queues' progress is then here.
    pub fn stopped(&mut self, tasks: Vec<QueueTask>) -> bool {
        for task in tasks {
            for (queue, index) in task.handler.into_queues().into_iter().zip(task.queues) {
                if let Some(registers) = self.queues.get_mut(usize::from(index)) {
                    let state = queue.state();
                    registers.progress = Some((state.next_available, state.next_used));
                }
            }
        }
        self.running = false;
        if self.resetting {
            self.reset_device();
            return false;
        }
        for (registers, queue) in self.queues.iter_mut().zip(0_u16..) {
            if registers.resetting {
                *registers = QueueRegisters::new(registers.max_size);
                self.interrupts.set_vector(Some(queue), pci::msix::NO_VECTOR);
            }
        }
        self.is_to_run()
    }

    /// Tells the driver that the device does not work until it is reset.
    pub fn need_reset(&self) {
        self.interrupts.need_reset();
    }

    /// From the next start on, the device uses `memory`.
    pub fn set_memory(&mut self, memory: Memory) {
        self.memory = memory;
    }

    /// The driver writes 0 to the status.
    fn request_reset(&mut self) -> Option<DeviceChange> {
        if self.running || self.started {
            self.resetting = true;
            return Some(DeviceChange::Stop);
        }
        self.reset_device();
        None
    }

    /// Virtio's reset: everything the driver set is gone, apart from what is PCI's.
    fn reset_device(&mut self) {
        self.device.reset();
        self.interrupts.reset();
        self.status = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        for registers in &mut self.queues {
            *registers = QueueRegisters::new(registers.max_size);
        }
        self.started = false;
        self.resetting = false;
    }
}

#[cfg(test)]
mod tests;
