//! Feature bits of the virtio network device (virtio 1.2, 5.1.3; USO: virtio 1.3, 5.1.3).

use bitflags::bitflags;

bitflags! {
    /// Feature bits 0 to 23 and 50 to 63.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// The device takes packets with partial checksums.
        const CSUM = 1;
        /// The driver takes packets with partial checksums.
        const GUEST_CSUM = 1 << 1;
        /// Offloads can be changed by the control queue.
        const CTRL_GUEST_OFFLOADS = 1 << 2;
        /// The configuration tells the MTU.
        const MTU = 1 << 3;
        /// The configuration tells the MAC address.
        const MAC = 1 << 5;
        /// The driver takes segmentation for TCP over IPv4.
        const GUEST_TSO4 = 1 << 7;
        /// The driver takes segmentation for TCP over IPv6.
        const GUEST_TSO6 = 1 << 8;
        /// The driver takes TCP segmentation with congestion notification.
        const GUEST_ECN = 1 << 9;
        /// The driver takes fragmentation of UDP.
        const GUEST_UFO = 1 << 10;
        /// The device does segmentation for TCP over IPv4.
        const HOST_TSO4 = 1 << 11;
        /// The device does segmentation for TCP over IPv6.
        const HOST_TSO6 = 1 << 12;
        /// The device does TCP segmentation with congestion notification.
        const HOST_ECN = 1 << 13;
        /// The device does fragmentation of UDP.
        const HOST_UFO = 1 << 14;
        /// A received packet may be spread over several buffers.
        const MRG_RXBUF = 1 << 15;
        /// The configuration tells the link's status.
        const STATUS = 1 << 16;
        /// There is a control queue.
        const CTRL_VQ = 1 << 17;
        /// The control queue sets the receive mode.
        const CTRL_RX = 1 << 18;
        /// The control queue sets further receive modes.
        const CTRL_RX_EXTRA = 1 << 20;
        /// The driver sends announcements when asked to.
        const GUEST_ANNOUNCE = 1 << 21;
        /// There may be several queue pairs.
        const MQ = 1 << 22;
        /// The control queue sets the MAC address.
        const CTRL_MAC_ADDR = 1 << 23;
        /// The driver takes segmentation for UDP over IPv4.
        const GUEST_USO4 = 1 << 54;
        /// The driver takes segmentation for UDP over IPv6.
        const GUEST_USO6 = 1 << 55;
        /// The device does segmentation for UDP.
        const HOST_USO = 1 << 56;
    }
}

impl Features {
    /// What the driver may take, and may change while it runs (virtio 1.2, 5.1.6.5.6).
    pub const GUEST_OFFLOADS: Self = Self::GUEST_CSUM
        .union(Self::GUEST_TSO4)
        .union(Self::GUEST_TSO6)
        .union(Self::GUEST_ECN)
        .union(Self::GUEST_UFO)
        .union(Self::GUEST_USO4)
        .union(Self::GUEST_USO6);

    /// With any of these, received packets may be as large as IP allows.
    pub const GUEST_LARGE: Self = Self::GUEST_TSO4
        .union(Self::GUEST_TSO6)
        .union(Self::GUEST_UFO)
        .union(Self::GUEST_USO4)
        .union(Self::GUEST_USO6);
}
