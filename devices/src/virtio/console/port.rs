//! One port in operation: carries bytes between its pair of queues and the host.

use super::Port;
use super::state::SavedPort;
use virtio::chain::Chain;
use virtio::queue::{Queue, QueueError};

/// How much is copied in one piece.
const PIECE: usize = 4096;
/// How many pieces a run carries at most for each port and direction.
const BUDGET: u32 = 16;

/// How much of a chain that was begun is carried at once when the port comes to rest: more than drivers put into one.
const FINISH: usize = 1 << 20;

/// A pair of queues, as far as the driver enabled them, with their indices.
pub(super) struct PortQueues {
    pub(super) receive: Option<(u16, Queue)>,
    pub(super) transmit: Option<(u16, Queue)>,
}

impl PortQueues {
    pub(super) fn receive_available(&self) -> bool {
        self.receive.as_ref().is_some_and(|(_, queue)| queue.has_available())
    }

    pub(super) fn transmit_available(&self) -> bool {
        self.transmit.as_ref().is_some_and(|(_, queue)| queue.has_available())
    }

    /// The driver need not ring.
    pub(super) fn disable_notifications(&mut self) {
        for (_, queue) in self.receive.iter_mut().chain(&mut self.transmit) {
            queue.disable_notifications();
        }
    }

    /// The driver is to ring for what it transmits. `true`: there is something already.
    pub(super) fn arm_transmit(&mut self) -> bool {
        self.transmit.as_mut().is_some_and(|(_, queue)| queue.enable_notifications())
    }

    /// The driver is to ring for buffers it adds. `true`: there are some already.
    pub(super) fn arm_receive(&mut self) -> bool {
        self.receive.as_mut().is_some_and(|(_, queue)| queue.enable_notifications())
    }

    /// Shows the driver what was done.
    pub(super) fn notify(&mut self) {
        for (_, queue) in self.receive.iter_mut().chain(&mut self.transmit) {
            queue.notify();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(u16, Queue)> {
        self.receive.iter().chain(&self.transmit)
    }

    pub(super) fn into_queues(self) -> impl Iterator<Item = (u16, Queue)> {
        self.receive.into_iter().chain(self.transmit)
    }
}

/// A port with its queues.
pub(super) struct RunningPort {
    pub(super) port: Port,
    pub(super) queues: PortQueues,
    pub(super) state: SavedPort,
    /// The chain being transmitted, and how much of it was.
    transmitting: Option<u64>,
    chain: Chain,
    /// Input was left on the host for want of the driver's buffers.
    starved: bool,
    buffer: Box<[u8]>,
}

impl RunningPort {
    pub(super) fn new(port: Port, queues: PortQueues, state: SavedPort) -> Self {
        let buffer = vec![0; PIECE].into_boxed_slice();
        Self { port, queues, state, transmitting: None, chain: Chain::new(), starved: false, buffer }
    }

    /// A channel for programs waits for its slow peer; a console does not.
    fn throttled(&self) -> bool {
        !self.port.console && self.port.host.backlog() > 0
    }

    /// Carries output. `true`: there may be more.
    pub(super) fn transmit(&mut self) -> bool {
        for _ in 0..BUDGET {
            if self.throttled() || !self.transmit_piece(true) {
                return false;
            }
        }
        true
    }

    /// Carries the rest of a chain that was begun. Who wants the port at rest must not wait for a guest that made a chain of
    /// gigabytes: of one like that, most is dropped.
    pub(super) fn finish_transmitting(&mut self) {
        for _ in 0..FINISH / PIECE {
            if self.transmitting.is_none() {
                return;
            }
            self.transmit_piece(false);
        }
        self.give_up_begun();
    }

    /// Drops the rest of a chain that was begun.
    pub(super) fn give_up_begun(&mut self) {
        if self.transmitting.take().is_some()
            && let Some((_, queue)) = &mut self.queues.transmit
        {
            queue.push(self.chain.token(), 0);
        }
    }

    fn transmit_piece(&mut self, begin: bool) -> bool {
        let Some((_, queue)) = &mut self.queues.transmit else { return false };
        let offset = match self.transmitting {
            Some(offset) => offset,
            // A queue that is broken has told the driver already.
            None if !begin || !matches!(queue.pop(&mut self.chain), Ok(true)) => return false,
            None => 0,
        };
        let count = self.chain.read_at(offset, &mut self.buffer);
        self.port.host.write(self.buffer.get(..count).unwrap_or_default());
        let offset = offset.saturating_add(count as u64);
        if count == 0 || offset >= self.chain.readable_len() {
            queue.push(self.chain.token(), 0);
            self.transmitting = None;
        } else {
            self.transmitting = Some(offset);
        }
        true
    }

    /// Carries input, if the guest listens. `true`: there may be more. `scratch` is overwritten.
    pub(super) fn receive(&mut self, listens: bool, scratch: &mut Chain) -> bool {
        self.starved = false;
        for _ in 0..BUDGET {
            self.starved = listens && !self.queues.receive_available();
            if !listens || self.starved {
                // Left on the host until there are buffers.
                self.port.host.want_input(false);
                return false;
            }
            if self.state.held.is_empty() {
                let count = self.port.host.read(&mut self.buffer);
                self.state.held.extend(self.buffer.iter().take(count));
            }
            if self.state.held.is_empty() {
                self.port.host.want_input(true);
                return false;
            }
            let Some((_, queue)) = &mut self.queues.receive else { return false };
            if !matches!(queue.pop(scratch), Ok(true)) {
                return false;
            }
            let count = scratch.write_at(0, &self.state.held);
            if count == 0 {
                queue.fail(QueueError::Request("for input has no room for any"));
                return false;
            }
            self.state.held.drain(..count.min(self.state.held.len()));
            queue.push(scratch.token(), u32::try_from(count).unwrap_or(0));
        }
        true
    }

    /// Whether running would carry anything, as far as it can be seen without a system call.
    pub(super) fn has_work(&self) -> bool {
        let transmits = self.transmitting.is_some() || self.queues.transmit_available();
        (transmits && !self.throttled()) || (self.starved && self.queues.receive_available())
    }

    /// Asks the driver to ring for what is waited for.
    pub(super) fn arm(&mut self) -> bool {
        let transmits = !self.throttled() && self.queues.arm_transmit();
        let receives = self.starved && self.queues.arm_receive();
        transmits || receives || self.has_work()
    }
}

machine::inspect!(RunningPort, this => {
    name: this.port.name,
    console: this.port.console,
    guest_open: this.state.guest_open,
    waits_for_buffers: this.starved,
    waits_for_host: this.throttled(),
    host: this.port.host,
});
