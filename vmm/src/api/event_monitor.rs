//! `--event-monitor`: every event as a line of JSON, as cloud-hypervisor writes them.

use super::socket::inherited;
use crate::config::options::options;
use crate::event::{Event, Events};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

options! {
    /// Where every event is written, as one JSON object a line.
    pub struct EventMonitorConfig {
        /// A file or pipe; a file is made if need be, and emptied.
        ["path" bare] path: Option<PathBuf> = None,
        /// A descriptor open for writing.
        ["fd"] fd: Option<i32> = None,
    }
}

/// Writes events from now on where `config` says. A reader that is too slow misses events, which the numbers of those it gets
/// tell it; nothing waits for it.
///
/// # Errors
/// When that cannot be opened; names the option.
pub fn start(config: &EventMonitorConfig, events: &Events) -> Result<()> {
    let mut lines = Lines { output: open(config)?, unwritten: Vec::new() };
    events.listen(None, Box::new(move |event| lines.write(event)));
    Ok(())
}

fn open(config: &EventMonitorConfig) -> Result<File> {
    match (&config.path, config.fd) {
        (Some(path), None) => {
            let mut options = File::options();
            options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK);
            options.open(path).with_context(|| format!("--event-monitor path={}", path.display()))
        }
        (None, Some(fd)) => {
            let fd = inherited(fd).with_context(|| format!("--event-monitor fd={fd}"))?;
            // SAFETY: sets a flag of a descriptor that is open.
            if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
                return Err(io::Error::last_os_error()).context("--event-monitor fd");
            }
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
}
