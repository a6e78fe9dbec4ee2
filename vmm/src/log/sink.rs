//! Where the log's lines go. Nobody who logs waits for it: lines that are not taken at once wait here, up to [`MOST_WAITING`]
//! bytes, and what is more is lost and counted.
//!
//! A pipe, FIFO, terminal or socket says by itself that it is full. It is written to by whoever logs, and what it did not take
//! by the console thread, when there is room. A file on a disk keeps its writer waiting for as long as the disk likes: it has
//! a thread, which is there for nothing else.

use machine::metrics::Counter;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that wait at most.
const MOST_WAITING: usize = 64 << 10;
/// How long the log's reader may take nothing before the process ends without it.
const PATIENCE: Duration = Duration::from_millis(500);

/// Lines that were lost since the process started: nobody took them, or they could not be written.
pub static LOST: Counter = Counter::new();

/// A place for lines.
pub struct Sink {
    target: Target,
    state: Mutex<State>,
    /// The thread has something to do, or has done it.
    changed: Condvar,
}

enum Target {
    /// Writing to it does not wait.
    Direct(OwnedFd),
    /// The same by `send`, since the descriptor is shared with others, for whom it may have to wait.
    Socket(OwnedFd),
    /// Only the thread writes to it.
    Thread(File),
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    /// The thread is there, or begins. Until then whoever logs writes, as at the start of the process, when nobody has to be fast.
    served: bool,
    /// The thread is writing.
    writing: bool,
}

impl Sink {
    /// Standard error.
    ///
    /// # Errors
    /// When the host is out of resources.
    pub fn standard_error() -> io::Result<Arc<Self>> {
        // SAFETY: the runtime has seen to it that the descriptor is open, and nobody closes it.
        let descriptor = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
        Self::new(descriptor.try_clone_to_owned()?.into())
    }

    /// A file, which is open for writing.
    ///
    /// # Errors
    /// When the host is out of resources.
    pub fn new(file: File) -> io::Result<Arc<Self>> {
        let kind = file.metadata()?.file_type();
        let target = if kind.is_socket() {
            Target::Socket(file.into())
        } else if kind.is_fifo() || kind.is_char_device() {
            // Whether a write waits is a property of the opened file, which others may have from whoever started this
            // process: this opens it once more. Where that is not permitted, a thread may wait.
            reopen(&file).map_or(Target::Thread(file), |own| Target::Direct(own.into()))
        } else {
            Target::Thread(file)
        };
        Ok(Arc::new(Self { target, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Starts the thread, if there has to be one. `confine` is called on it.
    ///
    /// # Errors
    /// When the host is out of resources.
    pub fn begin(self: &Arc<Self>, confine: impl FnOnce() + Send + 'static) -> io::Result<()> {
        if matches!(self.target, Target::Thread(_)) {
            let own = Arc::clone(self);
            std::thread::Builder::new().name("log".into()).stack_size(128 << 10).spawn(move || {
                confine();
                own.serve();
            })?;
            self.state().served = true;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line, or has it wait, or loses it.
    pub fn write(&self, line: &[u8]) {
        let mut state = self.state();
        if let Target::Thread(file) = &self.target {
            if state.served {
                state.push(line);
                self.changed.notify_all();
            } else if { file }.write_all(line).is_err() {
                LOST.add_shared(1);
            }
            return;
        }
        if !state.waiting.is_empty() {
            state.push(line);
            return;
        }
        match self.put(line) {
            // A line that was begun is completed, whatever its length.
            Ok(count) => state.waiting.extend(&line[count..]),
            Err(_) => LOST.add_shared(1),
        }
    }

    /// What tells, by being writable, that [`Sink::drain`] may have something to do.
    pub fn room(&self) -> Option<RawFd> {
        match &self.target {
            Target::Direct(fd) | Target::Socket(fd) => Some(fd.as_raw_fd()),
            Target::Thread(_) => None,
        }
    }

    /// Writes of what waits as much as there is room for. Does not wait.
    pub fn drain(&self) {
        let mut state = self.state();
        while !state.waiting.is_empty() {
            match self.put(state.waiting.as_slices().0) {
                Ok(0) => return,
                Ok(count) => drop(state.waiting.drain(..count)),
                Err(_) => state.lose(),
            }
        }
        // A log is seldom full; the memory is not kept for that.
        state.waiting.shrink_to_fit();
    }

    /// Waits until everything is written, for as long as some of it is every half second.
    pub fn flush(&self) {
        let mut state = self.state();
        loop {
            let left = state.waiting.len();
            if left == 0 && !state.writing {
                return;
            }
            if let Some(fd) = self.room() {
                drop(state);
                wait_for_room(fd);
                self.drain();
                state = self.state();
                if state.waiting.len() == left {
                    return;
                }
            } else {
                let waited =
                    self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
                state = waited.0;
                if waited.1.timed_out() {
                    return;
                }
            }
        }
    }

    /// Writes what can be written now. 0: nothing.
    fn put(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let (data, length) = (bytes.as_ptr().cast(), bytes.len());
            let written = match &self.target {
                // SAFETY: the bytes outlive the call.
                Target::Direct(fd) => unsafe { libc::write(fd.as_raw_fd(), data, length) },
                // SAFETY: as above.
                Target::Socket(fd) => unsafe {
                    libc::send(fd.as_raw_fd(), data, length, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                },
                Target::Thread(_) => 0,
            };
            if let Ok(written) = usize::try_from(written) {
                return Ok(written);
            }
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                error => return Err(error),
            }
        }
    }

    /// The thread: writes what there is, as long as the process lives.
    fn serve(&self) {
        let Target::Thread(file) = &self.target else { return };
        let mut file = file;
        let mut state = self.state();
        loop {
            while state.waiting.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let lines = Vec::from(std::mem::take(&mut state.waiting));
            state.writing = true;
            drop(state);
            let written = file.write_all(&lines);
            state = self.state();
            state.writing = false;
            if written.is_err() {
                LOST.add_shared(count_lines(lines.iter()));
            }
            self.changed.notify_all();
        }
    }
}

impl State {
    fn push(&mut self, line: &[u8]) {
        if self.waiting.len() + line.len() > MOST_WAITING {
            LOST.add_shared(1);
        } else {
            self.waiting.extend(line);
        }
    }

    fn lose(&mut self) {
        LOST.add_shared(count_lines(self.waiting.iter()));
        self.waiting.clear();
    }
}

fn count_lines<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    bytes.filter(|byte| **byte == b'\n').count() as u64
}

/// Opens what `file` is once more, so that writing does not wait.
fn reopen(file: &File) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    File::options().append(true).custom_flags(flags).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Waits until `fd` takes something, as long as [`PATIENCE`] says. `false`: it does not.
pub fn wait_for_room(fd: RawFd) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, which outlives the call.
    unsafe { libc::poll(&mut entry, 1, PATIENCE.as_millis() as libc::c_int) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    /// Far more than waits anywhere.
    const LINES: usize = 20_000;

    fn line(number: usize) -> String {
        format!("{number} {}\n", "x".repeat(number % 90))
    }

    /// What comes out of `reader` when nobody read it before everything was logged.
    fn late(sink: &Sink, reader: impl io::Read + Send + 'static) -> Vec<String> {
        for number in 0..LINES {
            sink.write(line(number).as_bytes());
        }
        let reading = std::thread::spawn(move || {
            let lines = BufReader::new(reader).lines().map(Result::unwrap);
            lines.take_while(|line| line != "end").collect::<Vec<_>>()
        });
        let flush = || {
            while !sink.state().waiting.is_empty() {
                sink.flush();
            }
        };
        flush();
        sink.write(b"end\n");
        flush();
        reading.join().unwrap()
    }

    #[test]
    fn a_reader_that_holds_the_log_open_and_does_not_read_costs_lines_and_nothing_else() {
        let (pipe_reader, pipe) = io::pipe().unwrap();
        let (socket_reader, socket) = UnixStream::pair().unwrap();
        let readers: [(File, Box<dyn io::Read + Send>); 2] = [
            (OwnedFd::from(pipe).into(), Box::new(pipe_reader)),
            (OwnedFd::from(socket).into(), Box::new(socket_reader)),
        ];
        for (file, reader) in readers {
            let sink = Sink::new(file).unwrap();
            assert!(sink.room().is_some(), "there is no need of a thread");
            let lost = LOST.get();
            let lines = late(&sink, reader);
            assert!(lines.len() > 1000 && lines.len() < LINES, "{}", lines.len());
            assert!(LOST.get() - lost >= (LINES - lines.len()) as u64);
            let whole =
                lines.iter().enumerate().filter(|(number, text)| format!("{text}\n") == line(*number));
            assert!(whole.count() > lines.len() - 100, "the first ones are there, whole and in order");
        }
    }

    #[test]
    fn whoever_started_this_process_keeps_a_log_that_waits() {
        let (_reader, pipe) = io::pipe().unwrap();
        let given = OwnedFd::from(pipe);
        let _sink = Sink::new(given.try_clone().unwrap().into()).unwrap();
        // SAFETY: reads the flags of an open descriptor.
        let flags = unsafe { libc::fcntl(given.as_raw_fd(), libc::F_GETFL) };
        assert_eq!(flags & libc::O_NONBLOCK, 0);
    }

    #[test]
    fn a_file_has_everything_when_it_was_waited_for() {
        let path = std::env::temp_dir().join(format!("vivarium-sink-{}", std::process::id()));
        let sink = Sink::new(File::create(&path).unwrap()).unwrap();
        assert!(sink.room().is_none());
        for number in 0..500 {
            // At first there is no thread.
            if number == 100 {
                assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 100);
                sink.begin(|| ()).unwrap();
            }
            sink.write(line(number).as_bytes());
        }
        sink.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text, (0..500).map(line).collect::<String>());
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_not_tried_for_ever() {
        let (reader, pipe) = io::pipe().unwrap();
        let sink = Sink::new(OwnedFd::from(pipe).into()).unwrap();
        for number in 0..LINES {
            sink.write(line(number).as_bytes());
        }
        drop(reader);
        let lost = LOST.get();
        sink.flush();
        assert!(LOST.get() > lost);
        let lost = LOST.get();
        sink.write(b"one more\n");
        assert!(LOST.get() > lost);
    }
}
