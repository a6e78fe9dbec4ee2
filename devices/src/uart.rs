//! The host's side of a serial port, whichever chip the guest sees: where its output goes, and who is told that there is room for
//! input.

use crate::host_console::ConsoleOutput;
use machine::doorbell::Doorbell;

/// What a port is connected to.
pub(crate) struct HostSide {
    output: Box<dyn ConsoleOutput>,
    room: Doorbell,
    /// The host has input that was not taken.
    input_waiting: bool,
    bytes_transmitted: u64,
    bytes_received: u64,
}

impl HostSide {
    /// A port that transmits to `output`. `room` is rung when less input was taken than there was, and more would be now.
    pub(crate) fn new(output: Box<dyn ConsoleOutput>, room: Doorbell) -> Self {
        Self { output, room, input_waiting: false, bytes_transmitted: 0, bytes_received: 0 }
    }

    /// Sends a byte of the guest's.
    pub(crate) fn transmit(&mut self, byte: u8) {
        self.bytes_transmitted = self.bytes_transmitted.saturating_add(1);
        self.output.write(&[byte]);
    }

    /// The part of the host's input that a guest with `room` bytes of room takes.
    pub(crate) fn take<'a>(&mut self, input: &'a [u8], room: usize) -> &'a [u8] {
        let taken = input.get(..room.min(input.len())).unwrap_or_default();
        self.bytes_received = self.bytes_received.saturating_add(taken.len() as u64);
        self.input_waiting = taken.len() < input.len();
        taken
    }

    /// Tells a host that waits for it that there is room. To be called when the guest's FIFO is empty and it listens, rather than
    /// at the first free byte, so that one wake-up fills the FIFO.
    pub(crate) fn tell_of_room(&mut self) {
        if std::mem::take(&mut self.input_waiting) {
            self.room.ring();
        }
    }
}

machine::inspect!(HostSide { input_waiting, bytes_transmitted, bytes_received, output });
