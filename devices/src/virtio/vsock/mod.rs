//! Socket device (virtio 1.2, 5.10): stream sockets between the guest and programs on the host, without a network.
//!
//! On the host there are UNIX sockets, by Firecracker's scheme. A program that wants a port of the guest connects to the
//! device's socket, writes `CONNECT <port>` and a line feed, and reads `OK <its own port>` and a line feed; from there on
//! bytes are the guest's. When the guest connects to port P of the host (CID 2), the device connects to the socket whose path
//! is the device's with `_P` after it.
//!
//! Bytes go straight between a socket and guest memory. Only what a host program is too slow for is kept, as far as the
//! guest was given credit for it.
//!
//! Connections go on after a pause. They do not survive being saved and restored: the driver is then told by an event that
//! they are gone (5.10.6.7).

mod connection;
mod handler;
mod mux;
mod packet;
mod socket;
mod unsent;

pub use mux::MAX_CONNECTIONS;

use handler::Handler;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use mux::{FIRST_PORT, Mux};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio::device::{ActivateError, Activation, QueueTask, VirtioDevice, read_fields};

const DEVICE_TYPE: u16 = 19;
/// Packets to the guest, packets from the guest, events.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// There are stream sockets.
const F_STREAM: u64 = 1 << 0;

/// The least address a guest can have (5.10.4): those below are reserved.
pub const FIRST_CID: u64 = 3;
/// The last address a guest can have: the next one stands for any.
pub const LAST_CID: u64 = 0xffff_fffe;
/// The longest path of the device's socket, in bytes: a port of ten digits has to find room after it.
pub const LONGEST_PATH: usize = 96;

/// What the device and its handler both know. Locked when the handler starts and stops, never while it runs.
struct Shared {
    cid: u64,
    /// The connections, while no handler has them.
    mux: Mutex<Option<Mux>>,
}

impl Shared {
    fn mux(&self) -> MutexGuard<'_, Option<Mux>> {
        self.mux.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device.
pub struct Vsock {
    path: PathBuf,
    shared: Arc<Shared>,
}

impl Vsock {
    /// A device for a guest whose address is `cid`, [`FIRST_CID`] to [`LAST_CID`], with its socket at `path`.
    ///
    /// # Errors
    /// When the socket cannot be made, or its path is longer than [`LONGEST_PATH`].
    pub fn open(cid: u64, path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() > LONGEST_PATH {
            let reason = format!("the path has more than {LONGEST_PATH} characters");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let mux = Mux::new(cid, path)?;
        Ok(Self { path: path.to_owned(), shared: Arc::new(Shared { cid, mux: Mutex::new(Some(mux)) }) })
    }

    /// Ends all connections.
    fn forget(&self, next_port: u32) {
        if let Some(mux) = &mut *self.shared.mux() {
            mux.clear(next_port);
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }

    /// `struct virtio_vsock_config` (5.10.4): the guest's address.
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.shared.cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let mut queues = activation.queues.into_iter();
        let mut next = |wanted| match queues.next() {
            Some((index, queue)) if index == wanted => Ok(queue),
            _ => Err(ActivateError::QueueMissing(wanted)),
        };
        let queues = [next(0)?, next(1)?, next(2)?];
        let Some(mux) = self.shared.mux().take() else {
            return Err(ActivateError::Unsupported("the socket device's handler is still running"));
        };
        let handler = Handler::new(Arc::clone(&self.shared), activation.clock, mux, queues);
        Ok(vec![QueueTask { name: "sockets".to_owned(), queues: vec![0, 1, 2], handler: Box::new(handler) }])
    }

    fn reset(&mut self) {
        self.forget(FIRST_PORT);
    }
}

machine::inspect!(Vsock, this => {
    cid: this.shared.cid,
    socket: this.path,
});

#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct SavedVsock {
    /// The port that the next program on the host gets.
    next_port: u32,
}

impl Default for SavedVsock {
    fn default() -> Self {
        Self { next_port: FIRST_PORT }
    }
}

impl SavedFields for SavedVsock {
    const KIND: &'static str = "virtio-vsock";
    const VERSION: u32 = 1;
}

impl Saved for Vsock {
    fn save(&self) -> Result<SavedState, StateError> {
        let next_port = self.shared.mux().as_ref().map_or(FIRST_PORT, Mux::next_port);
        SavedState::of(&SavedVsock { next_port })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let state: SavedVsock = state.read()?;
        if !(FIRST_PORT..u32::MAX).contains(&state.next_port) {
            let reason = format!("port {} is not one for programs on the host", state.next_port);
            return Err(StateError::Value { kind: SavedVsock::KIND, reason });
        }
        if let Some(mux) = &mut *self.shared.mux() {
            mux.clear(state.next_port);
            mux.transport_reset = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
