//! Control messages (virtio 1.2, 5.3.6.2).

use crate::host_console::WindowSize;
use serde::{Deserialize, Serialize};

/// Bytes of a message's header: port, event, value.
pub(super) const HEADER: usize = 8;

/// The events of 5.3.6.2.
pub(super) mod event {
    pub(in crate::virtio::console) const DEVICE_READY: u16 = 0;
    pub(in crate::virtio::console) const DEVICE_ADD: u16 = 1;
    pub(in crate::virtio::console) const PORT_READY: u16 = 3;
    pub(in crate::virtio::console) const CONSOLE_PORT: u16 = 4;
    pub(in crate::virtio::console) const RESIZE: u16 = 5;
    pub(in crate::virtio::console) const PORT_OPEN: u16 = 6;
    pub(in crate::virtio::console) const PORT_NAME: u16 = 7;
}

/// A message to or from the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Message {
    pub(super) port: u32,
    pub(super) event: u16,
    pub(super) value: u16,
    /// What follows the header: a name, or a size.
    pub(super) payload: Vec<u8>,
}

impl Message {
    pub(super) fn new(port: usize, event: u16, value: u16) -> Self {
        Self { port: u32::try_from(port).unwrap_or(u32::MAX), event, value, payload: Vec::new() }
    }

    pub(super) fn resize(port: usize, size: WindowSize) -> Self {
        // `struct virtio_console_resize`: columns first.
        let payload = [size.columns.to_le_bytes(), size.rows.to_le_bytes()].concat();
        Self { payload, ..Self::new(port, event::RESIZE, 0) }
    }

    pub(super) fn name(port: usize, name: &str) -> Self {
        Self { payload: name.as_bytes().to_vec(), ..Self::new(port, event::PORT_NAME, 1) }
    }

    pub(super) fn from_bytes(bytes: [u8; HEADER]) -> Self {
        let [p0, p1, p2, p3, e0, e1, v0, v1] = bytes;
        Self {
            port: u32::from_le_bytes([p0, p1, p2, p3]),
            event: u16::from_le_bytes([e0, e1]),
            value: u16::from_le_bytes([v0, v1]),
            payload: Vec::new(),
        }
    }

    pub(super) fn header(&self) -> [u8; HEADER] {
        let [p0, p1, p2, p3] = self.port.to_le_bytes();
        let [e0, e1] = self.event.to_le_bytes();
        let [v0, v1] = self.value.to_le_bytes();
        [p0, p1, p2, p3, e0, e1, v0, v1]
    }
}
