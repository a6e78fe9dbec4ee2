//! Carries bytes between a device on CPU threads and its console on the host.

use super::{
    ConsoleOutput, HostConsole, Mode, NullOutput, OpenError, RING_SIZE, RingReader, Watch, output_ring,
};
use machine::doorbell::Doorbell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::epoll::EventSet;

/// A device that takes input, such as a serial port.
pub trait ConsoleInput: Send {
    /// Takes as much as there is room for, and returns how many bytes; the rest is given again when the
    /// device rings.
    fn receive(&mut self, bytes: &[u8]) -> usize;
}

impl ConsoleInput for crate::serial::Serial {
    fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive(bytes)
    }
}

/// Opens a console for a device on CPU threads: what the device writes to, and what carries it on if it must be
/// carried.
///
/// # Errors
/// When the host refuses, saying what was being done to which path.
pub fn connect(mode: &Mode) -> Result<(Box<dyn ConsoleOutput>, Option<ConsolePump>), OpenError> {
    match mode {
        Mode::Null => Ok((Box::new(NullOutput), None)),
        _ => {
            let (writer, reader) =
                output_ring().map_err(OpenError::new("making a ring for the console", "timerfd"))?;
            let pump = ConsolePump::new(HostConsole::open(mode)?, reader)
                .map_err(OpenError::new("watching the console", "epoll"))?;
            Ok((Box::new(writer), Some(pump)))
        }
    }
}

/// What [`ConsolePump::ready`] wants the monitor to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PumpEvents {
    /// The user pressed the escape on the terminal.
    pub escape: bool,
}

/// A device's console on the host, with the bytes on their way.
pub struct ConsolePump {
    watch: Watch,
    console: HostConsole,
    output: RingReader,
    input: Option<(Arc<Mutex<dyn ConsoleInput>>, Doorbell)>,
    /// Input the device had no room for.
    held: Vec<u8>,
    buffer: Box<[u8]>,
}

/// How much is carried in one piece, each way.
const PIECE: usize = 4096;
/// How many pieces one call carries at most, so that consoles take turns.
const PIECES: usize = 16;

impl ConsolePump {
    fn new(console: HostConsole, output: RingReader) -> io::Result<Self> {
        let watch = Watch::new()?;
        watch.add(console.fd(), EventSet::IN)?;
        watch.add(output.as_raw_fd(), EventSet::IN)?;
        let buffer = vec![0; PIECE].into_boxed_slice();
        let mut pump = Self { watch, console, output, input: None, held: Vec::new(), buffer };
        // Input stays on the host until there is a device to take it.
        pump.console.want_input(false);
        Ok(pump)
    }

    /// Gives input to `device` from now on. `room` is what it rings when it has room again.
    ///
    /// # Errors
    /// When the host is out of memory.
    pub fn set_input(&mut self, device: Arc<Mutex<dyn ConsoleInput>>, room: Doorbell) -> io::Result<()> {
        self.watch.add(room.as_raw_fd(), EventSet::IN)?;
        self.input = Some((device, room));
        self.console.want_input(true);
        Ok(())
    }

    /// Readable when [`ConsolePump::ready`] has something to do. It stays the same for the pump's life.
    pub fn fd(&self) -> RawFd {
        self.watch.0.as_raw_fd()
    }

    /// The console on the host.
    pub fn console(&self) -> &HostConsole {
        &self.console
    }

    /// The machine begins.
    pub fn begin(&mut self) {
        self.console.begin();
    }

    /// Carries what there is to carry, without waiting, and not for ever.
    pub fn ready(&mut self) -> PumpEvents {
        let events = self.console.service();
        for _ in 0..PIECES {
            if !self.carry_output() {
                break;
            }
        }
        self.carry_input();
        PumpEvents { escape: events.escape }
    }

    /// Carries the last output of a device that has stopped, for when there are no further calls of
    /// [`ConsolePump::ready`]. A slow peer is waited for as long as it takes some of it every 100 ms.
    pub fn finish(&mut self) {
        // The ring holds no more than this many pieces.
        for _ in 0..RING_SIZE / PIECE {
            if !self.carry_output() {
                break;
            }
            self.console.finish();
        }
        self.console.finish();
    }

    fn carry_output(&mut self) -> bool {
        let count = self.output.read(&mut self.buffer);
        if let Some(bytes) = self.buffer.get(..count).filter(|bytes| !bytes.is_empty()) {
            self.console.write(bytes);
        }
        count > 0
    }

    fn carry_input(&mut self) {
        let Some((device, room)) = &self.input else { return };
        room.take();
        for _ in 0..PIECES {
            if self.held.is_empty() {
                let count = self.console.read(&mut self.buffer);
                self.held.extend(self.buffer.iter().take(count));
                if self.held.is_empty() {
                    break;
                }
            }
            let taken = device.lock().unwrap_or_else(PoisonError::into_inner).receive(&self.held);
            self.held.drain(..taken.min(self.held.len()));
            if !self.held.is_empty() {
                break;
            }
        }
        self.console.want_input(self.held.is_empty());
    }
}

machine::inspect!(ConsolePump, this => {
    console,
    input_bytes_held: this.held.len(),
});
