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

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::{virtio_config as linux, virtio_ring};

    #[test]
    fn the_bits_are_those_of_linux() {
        let bits = [
            (Features::ANY_LAYOUT, linux::VIRTIO_F_ANY_LAYOUT),
            (Features::INDIRECT_DESC, virtio_ring::VIRTIO_RING_F_INDIRECT_DESC),
            (Features::EVENT_IDX, virtio_ring::VIRTIO_RING_F_EVENT_IDX),
            (Features::VERSION_1, linux::VIRTIO_F_VERSION_1),
            (Features::ACCESS_PLATFORM, linux::VIRTIO_F_ACCESS_PLATFORM),
            (Features::RING_PACKED, linux::VIRTIO_F_RING_PACKED),
            (Features::IN_ORDER, linux::VIRTIO_F_IN_ORDER),
            (Features::ORDER_PLATFORM, linux::VIRTIO_F_ORDER_PLATFORM),
            (Features::SR_IOV, linux::VIRTIO_F_SR_IOV),
            (Features::NOTIFICATION_DATA, linux::VIRTIO_F_NOTIFICATION_DATA),
            (Features::NOTIF_CONFIG_DATA, linux::VIRTIO_F_NOTIF_CONFIG_DATA),
            (Features::RING_RESET, linux::VIRTIO_F_RING_RESET),
        ];
        for (ours, theirs) in bits {
            assert_eq!(ours.bits(), 1 << theirs, "{ours:?}");
        }
        assert_eq!(Features::all().bits() & !Features::RESERVED, 0);
        assert_eq!(Features::device_type(u64::MAX), !0 << 50 | 0xff_ffff);
    }
}
