//! Output to a file.

use super::{Events, Interest, OpenError, Peer, Watch, event_set};
use machine::inspect::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens `path` for writing. A FIFO without a reader is an error instead of a wait.
fn create(path: &Path) -> Result<File, OpenError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        // What an earlier machine left is there until this one runs.
        .truncate(false)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(OpenError::new("opening the console's file", path))
}

/// A file, or what looks like one, such as a FIFO.
pub(super) struct FilePeer {
    file: File,
    /// Nothing was written yet, and it has what was there before.
    stale: bool,
}

impl FilePeer {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self { file: create(path)?, stale: true })
    }
}

impl Peer for FilePeer {
    fn describe(&self) -> Value {
        json!({ "mode": "file" })
    }

    fn present(&self) -> bool {
        true
    }

    fn begin(&mut self) {
        if std::mem::take(&mut self.stale) {
            // A FIFO has nothing to be rid of, and refuses.
            let _ = self.file.set_len(0);
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begin();
        self.file.write(bytes)
    }

    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn service(&mut self, _watch: &Watch, _joined: &mut bool) -> Events {
        Events::default()
    }

    // A regular file is always writable and is not watched; a FIFO tells when it is no longer full.
    fn watch(&mut self, watch: &Watch, interest: Interest) {
        watch.set(self.file.as_raw_fd(), event_set(Interest { readable: false, ..interest }));
    }

    fn replays(&self) -> bool {
        false
    }

    fn may_wait(&self) -> bool {
        true
    }
}
