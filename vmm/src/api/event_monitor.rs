//! `--event-monitor`: every event as a line of JSON, as cloud-hypervisor writes them.
//!
//! A pipe, terminal or socket says by itself that it is full, and is written to by whoever tells the event. A file on a disk keeps its
//! writer waiting for as long as the disk likes: it has a thread, behind a queue. Who tells an event never waits.

use super::socket::inherited;
use crate::config::options::options;
use crate::event::{Event, Events};
use crate::metrics::Sample;
use anyhow::{Context, Result, bail};
use machine::metrics::{Counter, Reading};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

options! {
    /// Where every event is written, as one JSON object a line.
    pub struct EventMonitorConfig {
        /// A file or pipe; a file is made if need be, and emptied.
        ["path" bare] path: Option<PathBuf> = None,
        /// A descriptor open for writing.
        ["fd"] fd: Option<i32> = None,
    }
}

/// Events that wait for a file at most.
const MOST_WAITING: usize = 1024;

/// How long a file may take nothing before the process ends without what waits for it.
const PATIENCE: Duration = Duration::from_millis(500);

/// Events that were not written: nobody read them, or the file did not take them in time.
static LOST: Counter = Counter::new();

/// What the event monitor counted.
pub fn sample() -> Sample {
    let readings = vec![Reading::total("lost", LOST.get())];
    Sample { key: "_event_monitor".to_owned(), kind: "event_monitor", labels: Vec::new(), readings }
}

/// Writes events. When it is dropped, what waits for a file is written, as long as the file takes it.
#[must_use]
pub struct EventMonitor(Option<Arc<Backlog>>);

/// Writes events from now on where `config` says. A reader that is too slow misses events, which the numbers of those it gets
/// tell it, and which are counted; nothing waits for it. `confine` is called on the thread, if there has to be one.
///
/// # Errors
/// When that cannot be opened, or the host is out of resources; names the option.
pub fn start(
    config: &EventMonitorConfig,
    events: &Events,
    confine: impl FnOnce() + Send + 'static,
) -> Result<EventMonitor> {
    let output = open(config)?;
    let kind = output.metadata().context("--event-monitor")?.file_type();
    let mut lines = Lines { output, unwritten: Vec::new() };
    if kind.is_fifo() || kind.is_char_device() || kind.is_socket() {
        // SAFETY: sets a flag of a descriptor that is open.
        if unsafe { libc::fcntl(lines.output.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error()).context("--event-monitor");
        }
        events.listen(None, Box::new(move |event| lines.write(event)));
        return Ok(EventMonitor(None));
    }
    let backlog = Arc::new(Backlog::default());
    let own = Arc::clone(&backlog);
    let thread = std::thread::Builder::new().name("events".into()).stack_size(128 << 10);
    let write = move || {
        confine();
        own.serve(|event| lines.write(event));
    };
    thread.spawn(write).context("--event-monitor: starting a thread")?;
    let own = Arc::clone(&backlog);
    events.listen(None, Box::new(move |event| own.push(event)));
    Ok(EventMonitor(Some(backlog)))
}

impl Drop for EventMonitor {
    fn drop(&mut self) {
        if let Some(backlog) = &self.0 {
            backlog.flush();
        }
    }
}

/// Events that wait for a thread to write them.
#[derive(Default)]
struct Backlog {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<Arc<Event>>,
    /// One is being written.
    writing: bool,
    /// No more can be written.
    ended: bool,
}

impl Backlog {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an event wait, or loses it. `false` when no more are written.
    fn push(&self, event: &Arc<Event>) -> bool {
        let mut waiting = self.lock();
        if waiting.events.len() < MOST_WAITING {
            waiting.events.push_back(Arc::clone(event));
            self.changed.notify_all();
        } else {
            LOST.add_shared(1);
        }
        !waiting.ended
    }

    /// Gives `write` one event after the other, for ever, or until it takes no more.
    fn serve(&self, mut write: impl FnMut(&Event) -> bool) {
        let mut waiting = self.lock();
        while !waiting.ended {
            let Some(event) = waiting.events.pop_front() else {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            waiting.writing = true;
            drop(waiting);
            let more = write(&event);
            waiting = self.lock();
            waiting.writing = false;
            waiting.ended = !more;
            self.changed.notify_all();
        }
        waiting.events.clear();
    }

    /// Waits until all is written, for as long as something is now and then.
    fn flush(&self) {
        let mut waiting = self.lock();
        while waiting.writing || !waiting.events.is_empty() {
            let left = waiting.events.len();
            let waited = self.changed.wait_timeout(waiting, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            waiting = waited.0;
            if waited.1.timed_out() && waiting.events.len() == left {
                return;
            }
        }
    }
}

fn open(config: &EventMonitorConfig) -> Result<File> {
    match (&config.path, config.fd) {
        (Some(path), None) => {
            let mut options = File::options();
            // A pipe that nobody reads yet is an error at once.
            options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK);
            options.open(path).with_context(|| format!("--event-monitor path={}", path.display()))
        }
        (None, Some(fd)) => {
            let fd = inherited(fd).with_context(|| format!("--event-monitor fd={fd}"))?;
            Ok(File::from(fd))
        }
        (Some(_), Some(_)) => bail!("--event-monitor: has both path and fd; give one"),
        (None, None) => bail!("--event-monitor: says nothing; write --event-monitor path=<file>"),
    }
}

struct Lines<W> {
    output: W,
    /// The rest of a line of which a part is written.
    unwritten: Vec<u8>,
}

impl<W: Write> Lines<W> {
    /// Writes an event, or leaves it out if the line before is not written yet. `false` when nobody will read more.
    fn write(&mut self, event: &Event) -> bool {
        if !self.flush() {
            return false;
        }
        if self.unwritten.is_empty()
            && let Ok(line) = serde_json::to_vec(event)
        {
            self.unwritten = line;
            self.unwritten.push(b'\n');
        } else {
            LOST.add_shared(1);
        }
        self.flush()
    }

    fn flush(&mut self) -> bool {
        while !self.unwritten.is_empty() {
            match self.output.write(&self.unwritten) {
                Ok(count) => drop(self.unwritten.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!("--event-monitor: no more events are written: {error}");
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, pipe};
    use std::os::fd::OwnedFd;

    #[test]
    fn a_reader_that_is_too_slow_gets_whole_lines_and_can_tell_what_it_missed() {
        let (reader, writer) = pipe().unwrap();
        // SAFETY: sets a flag of a descriptor that is open.
        assert_eq!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
        let mut lines = Lines { output: File::from(OwnedFd::from(writer)), unwritten: Vec::new() };
        let events = Events::default();
        let text = "x".repeat(10_000);
        events.listen(None, Box::new(move |event| lines.write(event)));
        for _ in 0..50 {
            events.emit_with("vm", "noise", [("text", text.as_str().into())]);
        }
        let mut reader = BufReader::new(reader);
        let mut next = || {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            serde_json::from_str::<serde_json::Value>(&line).unwrap()["id"].as_u64().unwrap()
        };
        assert_eq!((next(), next(), next()), (1, 2, 3));
        events.emit("vm", "paused");
        let heard: Vec<u64> = std::iter::repeat_with(&mut next).take_while(|id| *id != 51).collect();
        assert!(heard.len() < 47, "{heard:?}");
    }

    #[test]
    fn a_file_that_hangs_keeps_nobody_and_gets_the_rest_when_it_goes_on() {
        let backlog = Arc::new(Backlog::default());
        let (own, events) = (Arc::clone(&backlog), Events::default());
        let own_too = Arc::clone(&backlog);
        events.listen(None, Box::new(move |event| own_too.push(event)));
        let (written, seen) = std::sync::mpsc::channel();
        let (go_on, hangs) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            own.serve(|event| {
                // The disk takes its time: until the test lets it.
                let _ = hangs.recv();
                written.send(event.id).is_ok()
            });
        });
        events.emit("vm", "noise");
        while !backlog.lock().writing {
            std::thread::yield_now();
        }
        (0..MOST_WAITING + 100).for_each(|_| events.emit("vm", "noise"));
        drop(go_on);
        let rests = |waiting: &Waiting| waiting.events.is_empty() && !waiting.writing;
        while !rests(&backlog.lock()) {
            backlog.flush();
        }
        let written: Vec<_> = seen.try_iter().collect();
        assert_eq!(written, (1..=1 + MOST_WAITING as u64).collect::<Vec<_>>());
        // Nobody reads what is written any more.
        drop(seen);
        events.emit("vm", "noise");
        thread.join().unwrap();
        assert!(!backlog.push(&Arc::new(event())));
    }

    fn event() -> Event {
        Event {
            id: 0,
            timestamp: Duration::ZERO,
            unix_time: Duration::ZERO,
            source: "vm",
            event: "noise",
            properties: None,
        }
    }

    #[test]
    fn a_regular_file_has_every_event_when_the_monitor_ends() {
        let folder = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let path = folder.as_path().join("events");
        let events = Events::default();
        let config = EventMonitorConfig { path: Some(path.clone()), fd: None };
        let monitor = start(&config, &events, || {}).unwrap();
        (0..500).for_each(|_| events.emit("vm", "noise"));
        drop(monitor);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 500);
    }
}
