//! The common configuration structure (virtio 1.2, 4.1.4.3).

use super::{QueueRegisters, VirtioPci, status};
use crate::features::Features;
use machine::effect::DeviceChange;

/// Offsets of the fields.
pub mod register {
    /// Which 32 bits of the offered features are seen; 4 bytes.
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    /// The offered features; 4 bytes.
    pub const DEVICE_FEATURE: u64 = 0x04;
    /// Which 32 bits of the accepted features are seen; 4 bytes.
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    /// The accepted features; 4 bytes.
    pub const DRIVER_FEATURE: u64 = 0x0c;
    /// Vector of configuration changes; 2 bytes.
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    /// Number of queues; 2 bytes.
    pub const NUM_QUEUES: u64 = 0x12;
    /// Device status; 1 byte.
    pub const DEVICE_STATUS: u64 = 0x14;
    /// Changes with the device configuration; 1 byte.
    pub const CONFIG_GENERATION: u64 = 0x15;
    /// Which queue the following are of; 2 bytes.
    pub const QUEUE_SELECT: u64 = 0x16;
    /// Queue size; 2 bytes.
    pub const QUEUE_SIZE: u64 = 0x18;
    /// Vector of the queue; 2 bytes.
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    /// Whether the queue is in use; 2 bytes.
    pub const QUEUE_ENABLE: u64 = 0x1c;
    /// Index of the queue's doorbell; 2 bytes.
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    /// Descriptor area; 8 bytes.
    pub const QUEUE_DESC: u64 = 0x20;
    /// Driver area; 8 bytes.
    pub const QUEUE_DRIVER: u64 = 0x28;
    /// Device area; 8 bytes.
    pub const QUEUE_DEVICE: u64 = 0x30;
    /// Data for the doorbell; 2 bytes.
    pub const QUEUE_NOTIFY_DATA: u64 = 0x38;
    /// Resets the queue; 2 bytes.
    pub const QUEUE_RESET: u64 = 0x3a;
}
use register::*;

/// The field that contains `offset`: where it starts and its size. Past the last one every byte is a field.
fn field(offset: u64) -> (u64, usize) {
    match offset {
        0x00..=0x0f => (offset & !3, 4),
        DEVICE_STATUS | CONFIG_GENERATION => (offset, 1),
        0x10..=0x1f | 0x38..=0x3b => (offset & !1, 2),
        0x20..=0x37 => (offset & !7, 8),
        _ => (offset, 1),
    }
}

/// Replaces 32 bits of a 64-bit number.
fn set_half(number: &mut u64, high: bool, half: u32) {
    let shift = if high { 32 } else { 0 };
    *number = (*number & !(0xffff_ffff_u64 << shift)) | u64::from(half) << shift;
}

/// The 32 bits of a 64-bit number that a select register chooses; zero for all but the first two.
fn selected(number: u64, select: u32) -> u64 {
    match select {
        0 => number & 0xffff_ffff,
        1 => number >> 32,
        _ => 0,
    }
}

impl VirtioPci {
    /// A read of any size and alignment: the bytes of the fields.
    pub(super) fn read_common(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let (start, _) = field(at);
            let shift = (at.wrapping_sub(start) as u32).wrapping_mul(8);
            *byte = self.read_field(start).wrapping_shr(shift) as u8;
        }
    }

    fn read_field(&self, field: u64) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of_queue = |value: fn(&QueueRegisters) -> u64| queue.map_or(0, value);
        match field {
            DEVICE_FEATURE_SELECT => self.device_feature_select.into(),
            DEVICE_FEATURE => selected(self.offered_features(), self.device_feature_select),
            DRIVER_FEATURE_SELECT => self.driver_feature_select.into(),
            DRIVER_FEATURE => selected(self.driver_features, self.driver_feature_select),
            CONFIG_MSIX_VECTOR => self.interrupts.vector_of(None).into(),
            NUM_QUEUES => self.queues.len() as u64,
            DEVICE_STATUS => self.read_status().into(),
            CONFIG_GENERATION => self.interrupts.generation().into(),
            QUEUE_SELECT => self.queue_select.into(),
            QUEUE_SIZE => of_queue(|queue| queue.size.into()),
            QUEUE_MSIX_VECTOR => self.interrupts.vector_of(Some(self.queue_select)).into(),
            QUEUE_ENABLE => of_queue(|queue| queue.enabled.into()),
            QUEUE_NOTIFY_OFF | QUEUE_NOTIFY_DATA => queue.map_or(0, |_| self.queue_select.into()),
            QUEUE_DESC => of_queue(|queue| queue.descriptor_area),
            QUEUE_DRIVER => of_queue(|queue| queue.driver_area),
            QUEUE_DEVICE => of_queue(|queue| queue.device_area),
            QUEUE_RESET => of_queue(|queue| queue.resetting.into()),
            _ => 0,
        }
    }

    fn read_status(&self) -> u8 {
        let broken = if self.interrupts.needs_reset() { status::DEVICE_NEEDS_RESET } else { 0 };
        self.status | broken
    }

    /// A write of one whole field, or of half of a 64-bit one. Others are not allowed (virtio 1.2, 4.1.3.1) and ignored,
    /// as is everything while a reset is under way.
    pub(super) fn write_common(&mut self, offset: u64, data: &[u8]) -> Option<DeviceChange> {
        if self.resetting {
            return None;
        }
        let (start, size) = field(offset);
        let mut bytes = [0; 8];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        match (size, data.len()) {
            (8, 4) => self.write_half(start, offset != start, value as u32),
            (8, 8) if offset == start => {
                self.write_half(start, false, value as u32);
                self.write_half(start, true, (value >> 32) as u32);
            }
            (4, 4) if offset == start => self.write_32(start, value as u32),
            (2, 2) if offset == start => return self.write_16(start, value as u16),
            (1, 1) if offset == DEVICE_STATUS => return self.write_status(value as u8),
            _ => {}
        }
        None
    }

    fn write_32(&mut self, field: u64, value: u32) {
        match field {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE if self.status & status::FEATURES_OK == 0 && self.driver_feature_select < 2 => {
                set_half(&mut self.driver_features, self.driver_feature_select == 1, value);
            }
            _ => {}
        }
    }

    /// The queue addresses, which are fixed once the queue is enabled.
    fn write_half(&mut self, field: u64, high: bool, value: u32) {
        let queue = self.queues.get_mut(usize::from(self.queue_select));
        let Some(queue) = queue.filter(|queue| !queue.enabled) else { return };
        match field {
            QUEUE_DESC => set_half(&mut queue.descriptor_area, high, value),
            QUEUE_DRIVER => set_half(&mut queue.driver_area, high, value),
            QUEUE_DEVICE => set_half(&mut queue.device_area, high, value),
            _ => {}
        }
    }

    fn write_16(&mut self, field: u64, value: u16) -> Option<DeviceChange> {
        let select = self.queue_select;
        let live = self.is_live();
        let ring_reset = self.features().contains(Features::RING_RESET);
        let queue = self.queues.get_mut(usize::from(select));
        match (field, queue) {
            (CONFIG_MSIX_VECTOR, _) => self.interrupts.set_vector(None, value),
            (QUEUE_SELECT, _) => self.queue_select = value,
            (QUEUE_MSIX_VECTOR, _) => self.interrupts.set_vector(Some(select), value),
            (QUEUE_SIZE, Some(queue)) if !queue.enabled && (1..=queue.max_size).contains(&value) => {
                queue.size = value;
            }
            // A queue may be enabled before the driver is ready, and after it was reset.
            (QUEUE_ENABLE, Some(queue)) if value == 1 && !queue.enabled && !queue.resetting => {
                if !live {
                    queue.enabled = true;
                } else if ring_reset {
                    queue.enabled = true;
                    return Some(DeviceChange::StartQueue(select));
                }
            }
            (QUEUE_RESET, Some(queue)) if value == 1 && ring_reset && queue.enabled && !queue.resetting => {
                if self.running {
                    queue.resetting = true;
                    return Some(DeviceChange::StopQueue(select));
                }
                *queue = QueueRegisters::new(queue.max_size);
                self.interrupts.set_vector(Some(select), pci::msix::NO_VECTOR);
            }
            _ => {}
        }
        None
    }

    fn write_status(&mut self, value: u8) -> Option<DeviceChange> {
        if value == 0 {
            return self.request_reset();
        }
        let new = value & !self.status;
        // A driver sets bits and never clears them, but by a reset.
        self.status |= new & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if new & status::FEATURES_OK != 0 && self.features_agree() {
            self.status |= status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0 {
            self.status |= status::DRIVER_OK;
            self.interrupts.set_live(true);
            if self.status & status::FEATURES_OK == 0 {
                // A driver that skips the negotiation expects a legacy device.
                self.interrupts.need_reset();
            } else if self.is_to_run() {
                return Some(DeviceChange::Start);
            }
        }
        None
    }

    /// Whether the device can work with what the driver accepted: nothing that was not offered, and no legacy driver.
    fn features_agree(&self) -> bool {
        let unknown = self.driver_features & !self.offered_features();
        let features = self.features();
        let translated = !self.options.access_platform || features.contains(Features::ACCESS_PLATFORM);
        unknown == 0 && features.contains(Features::VERSION_1) && translated
    }
}
