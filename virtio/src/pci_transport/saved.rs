//! What is saved of the transport and its device, and what is shown of them.

use super::{QueueRegisters, VirtioPci, status};
use machine::inspect::{Inspect, Value, hex, json};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use pci::config::ConfigState;
use pci::function::Function;
use pci::msix::NO_VECTOR;
use serde::{Deserialize, Serialize};

/// One queue's registers and progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct QueueFields {
    size: u16,
    descriptor_area: u64,
    driver_area: u64,
    device_area: u64,
    enabled: bool,
    vector: u16,
    /// Next available and next used, once the queue ran.
    progress: Option<(u16, u16)>,
}

impl Default for QueueFields {
    fn default() -> Self {
        Self {
            size: 1,
            descriptor_area: 0,
            driver_area: 0,
            device_area: 0,
            enabled: false,
            vector: NO_VECTOR,
            progress: None,
        }
    }
}

/// The transport's fields, and the device's own state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
struct Fields {
    pci: ConfigState,
    device: Option<SavedState>,
    offered_features: u64,
    driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: u8,
    needs_reset: bool,
    config_vector: u16,
    config_generation: u8,
    isr: u8,
    queue_select: u16,
    queues: Vec<QueueFields>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            pci: ConfigState::default(),
            device: None,
            offered_features: 0,
            driver_features: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: 0,
            needs_reset: false,
            config_vector: NO_VECTOR,
            config_generation: 0,
            isr: 0,
            queue_select: 0,
            queues: Vec::new(),
        }
    }
}

impl SavedFields for Fields {
    const KIND: &'static str = "virtio-pci";
    const VERSION: u32 = 1;
}

fn refuse(reason: String) -> StateError {
    StateError::Value { kind: Fields::KIND, reason }
}

impl VirtioPci {
    fn take(&mut self, fields: &Fields) -> Result<(), StateError> {
        if fields.queues.len() != self.queues.len() {
            let (found, here) = (fields.queues.len(), self.queues.len());
            return Err(refuse(format!("it has {found} queues, and this device has {here}")));
        }
        let missing = fields.driver_features & !self.offered_features();
        if missing != 0 && fields.status & status::FEATURES_OK != 0 {
            return Err(refuse(format!(
                "its driver uses the features {missing:#x}, which this device lacks"
            )));
        }
        for ((registers, saved), queue) in self.queues.iter_mut().zip(&fields.queues).zip(0_u16..) {
            if !(1..=registers.max_size).contains(&saved.size) {
                let (size, max) = (saved.size, registers.max_size);
                return Err(refuse(format!(
                    "queue {queue} has size {size}, and here 1 to {max} are possible"
                )));
            }
            *registers = QueueRegisters {
                max_size: registers.max_size,
                size: saved.size,
                descriptor_area: saved.descriptor_area,
                driver_area: saved.driver_area,
                device_area: saved.device_area,
                enabled: saved.enabled,
                resetting: false,
                progress: saved.progress,
            };
            self.interrupts.set_vector(Some(queue), saved.vector);
        }
        if let Some(device) = &fields.device {
            self.device.restore(device)?;
        }
        self.config.restore(&fields.pci)?;
        self.driver_features = fields.driver_features;
        self.device_feature_select = fields.device_feature_select;
        self.driver_feature_select = fields.driver_feature_select;
        self.status = fields.status & !status::DEVICE_NEEDS_RESET;
        self.queue_select = fields.queue_select;
        self.interrupts.set_vector(None, fields.config_vector);
        self.interrupts.set_generation(fields.config_generation);
        self.interrupts.restore_needs_reset(fields.needs_reset);
        self.interrupts.set_live(fields.status & status::DRIVER_OK != 0);
        self.interrupts.set_isr(fields.isr);
        Ok(())
    }
}

impl Saved for VirtioPci {
    fn save(&self) -> Result<SavedState, StateError> {
        let queue = |(registers, queue): (&QueueRegisters, u16)| QueueFields {
            size: registers.size,
            descriptor_area: registers.descriptor_area,
            driver_area: registers.driver_area,
            device_area: registers.device_area,
            enabled: registers.enabled,
            vector: self.interrupts.vector_of(Some(queue)),
            progress: registers.progress,
        };
        SavedState::of(&Fields {
            pci: self.config.save(),
            device: Some(self.device.save()?),
            offered_features: self.offered_features(),
            driver_features: self.driver_features,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            status: self.status,
            needs_reset: self.interrupts.needs_reset(),
            config_vector: self.interrupts.vector_of(None),
            config_generation: self.interrupts.generation(),
            isr: self.interrupts.isr(),
            queue_select: self.queue_select,
            queues: self.queues.iter().zip(0..).map(queue).collect(),
        })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let fields: Fields = state.read()?;
        self.take(&fields).inspect_err(|_| self.reset())
    }
}

machine::inspect!(VirtioPci, this => {
    kind: "virtio-pci",
    device_type: this.device.device_type(),
    status,
    running,
    resetting,
    needs_reset: this.interrupts.needs_reset(),
    resets_needed: this.interrupts.resets_needed,
    config_changes: this.interrupts.config_changes,
    hex offered_features: this.offered_features(),
    hex driver_features,
    queue: this.queue_trees(),
    pci: this.config,
    device: *this.device,
});

impl VirtioPci {
    fn queue_trees(&self) -> Value {
        let tree = |(registers, queue): (&QueueRegisters, u16)| {
            json!({
                "size": registers.size,
                "max_size": registers.max_size,
                "enabled": registers.enabled,
                "vector": self.interrupts.vector_of(Some(queue)),
                "descriptor_area": hex(&registers.descriptor_area),
                "driver_area": hex(&registers.driver_area),
                "device_area": hex(&registers.device_area),
                "progress": registers.progress,
                "counters": self.counters.get(usize::from(queue)).map(|counters| counters.inspect()),
            })
        };
        self.queues.iter().zip(0..).map(tree).collect()
    }
}
