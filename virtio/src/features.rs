//! Feature bits that belong to the ring and the transport rather than to a device type (virtio 1.2, 6).

use bitflags::bitflags;

bitflags! {
    /// Feature bits 24 to 49: of the ring and the transport.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Any layout of buffers in a chain; implied by `VERSION_1`.
        const ANY_LAYOUT = 1 << 27;
        /// Descriptors may point to tables of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// Both sides say for which entry they want to be notified.
        const EVENT_IDX = 1 << 29;
        /// Virtio 1.0 and later; without it a driver is a legacy one.
        const VERSION_1 = 1 << 32;
        /// The device's memory accesses are translated by the platform.
        const ACCESS_PLATFORM = 1 << 33;
        /// Packed rings.
        const RING_PACKED = 1 << 34;
        /// Buffers are used in the order they were made available.
        const IN_ORDER = 1 << 35;
        /// Memory accesses are ordered as by a real device.
        const ORDER_PLATFORM = 1 << 36;
        /// Single-root I/O virtualization.
        const SR_IOV = 1 << 37;
        /// A doorbell's data tells how far the driver got.
        const NOTIFICATION_DATA = 1 << 38;
        /// The device chooses the doorbell's data.
        const NOTIF_CONFIG_DATA = 1 << 39;
        /// Queues can be reset one by one.
        const RING_RESET = 1 << 40;
    }
}

impl Features {
    /// All feature bits that are not a device type's (virtio 1.2, 2.2: 24 to 49).
    pub const RESERVED: u64 = ((1 << 50) - 1) & !((1 << 24) - 1);

    /// Those of `bits` that are a device type's.
    pub fn device_type(bits: u64) -> u64 {
        bits & !Self::RESERVED
    }
}
