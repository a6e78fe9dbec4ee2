//! A ring that carries output from a CPU thread to the thread that drives the host's consoles.
//!
//! One writer, one reader, no lock. The reader is woken by a timer rather than at each byte: when output starts it
//! is given half a millisecond to gather, which a line end or a ring half full cuts short. A guest that prints a line
//! byte by byte thus costs two system calls a line.

use super::ConsoleOutput;
use super::system::Timer;
use machine::memory::{LazyRegion, VolatileMemory};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How many bytes a ring holds.
pub const RING_SIZE: usize = 64 << 10;
const GATHER: Duration = Duration::from_micros(500);
const AT_ONCE: Duration = Duration::from_nanos(1);

struct Ring {
    bytes: LazyRegion,
    /// Bytes ever written, wrapping. Changed by the writer alone.
    written: AtomicUsize,
    /// Bytes ever read, wrapping. Changed by the reader alone.
    read: AtomicUsize,
    /// Bytes that found no room.
    dropped: AtomicU64,
    timer: Timer,
}

impl Ring {
    /// Copies to `at`, counted as in `written`. What lies there is the writer's: the reader has read it, and is told of the
    /// new bytes when they are there.
    fn fill(&self, at: usize, bytes: &[u8]) {
        let offset = at % RING_SIZE;
        let (first, rest) = bytes.split_at(bytes.len().min(RING_SIZE.saturating_sub(offset)));
        for (offset, part) in [(offset, first), (0, rest)] {
            // Both parts lie in the ring.
            let _ = self.bytes.get_slice(offset, part.len()).map(|place| place.copy_from(part));
        }
    }

    /// Copies from `at`, counted as in `read`. What lies there is the reader's until it tells that it has read it.
    fn take(&self, at: usize, buffer: &mut [u8]) {
        let offset = at % RING_SIZE;
        let (first, rest) = buffer.split_at_mut(buffer.len().min(RING_SIZE.saturating_sub(offset)));
        for (offset, part) in [(offset, first), (0, rest)] {
            let _ = self.bytes.get_slice(offset, part.len()).map(|place| place.copy_to(part));
        }
    }
}

/// Makes a ring.
///
/// # Errors
/// When the host is out of file descriptors or memory.
pub fn output_ring() -> io::Result<(RingWriter, RingReader)> {
    let ring = Arc::new(Ring {
        // Most guests print little, and one that ends early never comes to most of it.
        bytes: LazyRegion::new(RING_SIZE).map_err(io::Error::other)?,
        written: AtomicUsize::new(0),
        read: AtomicUsize::new(0),
        dropped: AtomicU64::new(0),
        timer: Timer::new()?,
    });
    Ok((RingWriter { ring: Arc::clone(&ring), hurried: false }, RingReader { ring }))
}

/// The writing end: a device's output.
pub struct RingWriter {
    ring: Arc<Ring>,
    /// The reader was told to come at once since it last had read everything.
    hurried: bool,
}

impl ConsoleOutput for RingWriter {
    fn write(&mut self, bytes: &[u8]) {
        let ring = &*self.ring;
        let start = ring.written.load(Ordering::Relaxed);
        let used = start.wrapping_sub(ring.read.load(Ordering::Acquire));
        let count = bytes.len().min(RING_SIZE.saturating_sub(used));
        ring.fill(start, bytes.get(..count).unwrap_or_default());
        let at = start.wrapping_add(count);
        let dropped = bytes.len().saturating_sub(count);
        if dropped > 0 {
            ring.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
        }
        ring.written.store(at, Ordering::SeqCst);
        // Sequentially consistent with the reader's store and second look: either this sees that the reader had
        // read everything, or the reader sees these bytes.
        let was_empty = ring.read.load(Ordering::SeqCst) == start;
        let hurry = used.saturating_add(count) > RING_SIZE / 2 || bytes.contains(&b'\n');
        if was_empty {
            self.hurried = hurry;
            ring.timer.set(if hurry { AT_ONCE } else { GATHER });
        } else if hurry && !self.hurried {
            self.hurried = true;
            ring.timer.set(AT_ONCE);
        }
    }
}

machine::inspect!(RingWriter, this => {
    bytes_waiting: this.ring.waiting(),
    bytes_dropped: this.ring.dropped,
});

impl Ring {
    fn waiting(&self) -> u64 {
        let read = self.read.load(Ordering::Relaxed);
        (self.written.load(Ordering::Relaxed)).wrapping_sub(read) as u64
    }
}

/// The reading end.
pub struct RingReader {
    ring: Arc<Ring>,
}

impl RingReader {
    /// Reads what is there, up to a buffer full. 0: the ring is empty, and [`RingReader::as_raw_fd`] becomes
    /// readable when it no longer is.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let ring = &*self.ring;
        let at = ring.read.load(Ordering::Relaxed);
        if ring.written.load(Ordering::SeqCst) == at {
            ring.timer.clear();
            // Something may have been written, and its timer cleared, in between.
            if ring.written.load(Ordering::SeqCst) == at {
                return 0;
            }
        }
        let available = ring.written.load(Ordering::Acquire).wrapping_sub(at);
        let count = available.min(buffer.len());
        ring.take(at, buffer.get_mut(..count).unwrap_or_default());
        ring.read.store(at.wrapping_add(count), Ordering::SeqCst);
        count
    }
}

impl AsRawFd for RingReader {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_console::system::wait_readable;
    use machine::inspect::Inspect;

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (mut writer, mut reader) = output_ring().unwrap();
        writer.write(&vec![1; RING_SIZE - 1]);
        writer.write(&[2, 3, 4]);
        assert_eq!(writer.inspect()["bytes_dropped"], 2);
        let mut all = vec![0; RING_SIZE + 1];
        assert_eq!(reader.read(&mut all), RING_SIZE);
        assert_eq!(all[RING_SIZE - 2..RING_SIZE], [1, 2]);
        assert_eq!(reader.read(&mut all), 0);
    }

    /// A reader that sleeps on the descriptor gets everything, however the two interleave.
    #[test]
    fn no_wake_up_is_lost() {
        let (mut writer, mut reader) = output_ring().unwrap();
        let total = 200_000_usize;
        let thread = std::thread::spawn(move || {
            let mut next = 0_usize;
            while next < total {
                let length = (next % 7 + 1).min(total - next);
                let bytes: Vec<u8> = (next..next + length).map(|n| (n % 251) as u8).collect();
                // Kept below the ring's size, so that nothing is dropped.
                if writer.inspect()["bytes_waiting"].as_u64().unwrap() < 60_000 {
                    writer.write(&bytes);
                    next += length;
                } else {
                    std::thread::yield_now();
                }
            }
        });
        let mut buffer = [0; 1000];
        let mut next = 0;
        while next < total {
            let count = reader.read(&mut buffer);
            for &byte in &buffer[..count] {
                assert_eq!(byte, (next % 251) as u8);
                next += 1;
            }
            if count == 0 && next < total {
                assert!(wait_readable(reader.as_raw_fd(), Duration::from_secs(20)), "asleep for ever");
            }
        }
        thread.join().unwrap();
    }
}
