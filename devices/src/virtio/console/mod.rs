//! Console device (virtio 1.2, 5.3): a console, and further named serial ports.
//!
//! Port 0 is a console, `hvc0` in Linux. With more than one port the device offers MULTIPORT, and tells the driver of
//! its ports over the control queues. Queues are numbered as in 5.3.2: receive and transmit of port 0, of the control
//! queues, of port 1, and so on. One handler runs all of them, since the control messages depend on what the ports do.
//!
//! What a console port transmits is always taken: a person who does not read must not stop a kernel that prints.
//! Other ports carry data for programs, so they wait for a slow peer and lose nothing.

mod control;
mod handler;
mod port;
mod state;

use crate::host_console::{HostConsole, WindowSize};
use handler::Handler;
use machine::state::{Saved, SavedState, StateError};
use port::PortQueues;
use state::SavedConsole;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio::device::{ActivateError, Activation, QueueTask, VirtioDevice, read_fields};
use virtio::queue::Queue;
use virtio::stand_in::Refusal;

const DEVICE_TYPE: u16 = 3;
const QUEUE_SIZE: u16 = 128;

/// The configuration space's window size is valid.
const F_SIZE: u64 = 1 << 0;
/// There are several ports, and control queues.
const F_MULTIPORT: u64 = 1 << 1;

const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;

/// The most ports of one device.
pub const MAX_PORTS: usize = 31;

/// A port.
pub struct Port {
    /// The name its driver finds it by (`/dev/virtio-ports/NAME` in Linux). Without effect for port 0.
    pub name: String,
    /// A console for people, rather than a channel for programs. Port 0 always is one.
    pub console: bool,
    /// Where it ends on the host.
    pub host: HostConsole,
}

/// What the device and its handler both know. Locked when the handler starts and stops, never while it runs.
struct Shared {
    /// The ports, while no handler has them.
    ports: Mutex<Option<Vec<Port>>>,
    /// What the driver and the host told the handler, from when it was last quiescent.
    state: Mutex<SavedConsole>,
    /// Port 0's window: columns in the upper half, rows in the lower.
    size: AtomicU32,
}

impl Shared {
    fn ports(&self) -> MutexGuard<'_, Option<Vec<Port>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, SavedConsole> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes port 0's window size; whether it changed.
    fn set_size(&self, size: Option<WindowSize>) -> bool {
        let Some(size) = size else { return false };
        let packed = u32::from(size.columns) << 16 | u32::from(size.rows);
        self.size.swap(packed, Ordering::Relaxed) != packed
    }

    fn size(&self) -> WindowSize {
        let packed = self.size.load(Ordering::Relaxed);
        WindowSize { columns: (packed >> 16) as u16, rows: packed as u16 }
    }
}

/// The device.
pub struct Console {
    shared: Arc<Shared>,
    port_count: usize,
}

/// Why a console device could not be made.
#[derive(Debug, thiserror::Error)]
#[error("a virtio console has 1 to {MAX_PORTS} ports, not {0}: use several devices")]
pub struct PortCountError(usize);

impl Console {
    /// A device with these ports, the first of which is the console.
    ///
    /// # Errors
    /// When there are no ports or more than [`MAX_PORTS`].
    pub fn new(mut ports: Vec<Port>) -> Result<Self, PortCountError> {
        let port_count = ports.len();
        let Some(first) = ports.first_mut().filter(|_| port_count <= MAX_PORTS) else {
            return Err(PortCountError(port_count));
        };
        first.console = true;
        let size = first.host.size();
        ports.iter_mut().filter(|port| !port.console).for_each(|port| port.host.without_past());
        let shared = Shared { ports: Mutex::default(), state: Mutex::default(), size: AtomicU32::new(0) };
        shared.set_size(size);
        *shared.ports() = Some(ports);
        Ok(Self { shared: Arc::new(shared), port_count })
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    /// Also with a single port: a driver then says when the port is open. Linux drops what it is sent on a console
    /// before that, so without this, input that is there before the guest has booted would be lost.
    fn features(&self) -> u64 {
        F_SIZE | F_MULTIPORT
    }

    fn queue_sizes(&self) -> Vec<u16> {
        // Two for each port, and two for control.
        vec![QUEUE_SIZE; self.port_count.saturating_add(1).saturating_mul(2)]
    }

    /// `struct virtio_console_config` (5.3.4): columns, rows, number of ports, emergency write.
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let size = self.shared.size();
        let ports = u32::try_from(self.port_count).unwrap_or(u32::MAX);
        let fields = [&size.columns.to_le_bytes()[..], &size.rows.to_le_bytes(), &ports.to_le_bytes()];
        read_fields(fields.into_iter().flatten().copied(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let multiport = activation.features & F_MULTIPORT != 0;
        let mut queues: Vec<(u16, Option<Queue>)> =
            activation.queues.into_iter().map(|(index, queue)| (index, Some(queue))).collect();
        // Without MULTIPORT there is no control, whatever the driver enabled.
        let is_control = |index: u16| matches!(index, CONTROL_RECEIVE | CONTROL_TRANSMIT);
        queues.retain(|(index, _)| multiport || !is_control(*index));
        let indices: Vec<u16> = queues.iter().map(|(index, _)| *index).collect();
        let mut take = |wanted: u16| {
            let found = queues.iter_mut().find(|(index, _)| *index == wanted);
            found.and_then(|(_, queue)| queue.take()).map(|queue| (wanted, queue))
        };
        let Some(ports) = self.shared.ports().take() else {
            return Err(ActivateError::Unsupported("the console's handler is still running"));
        };
        let mut with_queues = Vec::with_capacity(ports.len());
        for (number, port) in (0_u16..).zip(ports) {
            let first = match number {
                0 => 0,
                // A driver without MULTIPORT knows port 0 only.
                _ => number.saturating_add(1).saturating_mul(2),
            };
            let (receive, transmit) = (take(first), take(first.saturating_add(1)));
            with_queues.push((port, PortQueues { receive, transmit }));
        }
        let control = PortQueues { receive: take(CONTROL_RECEIVE), transmit: take(CONTROL_TRANSMIT) };
        let state = std::mem::take(&mut *self.shared.state());
        let handler = Handler::new(
            Arc::clone(&self.shared),
            with_queues,
            multiport.then_some(control),
            &state,
            activation.config_changed,
        );
        Ok(vec![QueueTask { name: "console".to_owned(), queues: indices, handler: Box::new(handler) }])
    }

    /// What is transmitted is taken, since Linux waits for that. Buffers to receive in stay.
    fn refusal(&self) -> Refusal {
        |asked| (asked.queue % 2 == 1).then_some(0)
    }

    fn reset(&mut self) {
        *self.shared.state() = SavedConsole::default();
    }
}

machine::inspect!(Console, this => {
    ports: this.port_count,
    columns: this.shared.size().columns,
    rows: this.shared.size().rows,
});

impl Saved for Console {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&*self.shared.state())
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let state: SavedConsole = state.read()?;
        state.check(self.port_count)?;
        *self.shared.state() = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
