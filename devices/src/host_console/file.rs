//! Output to a file.

use super::{ConsoleOutput, Events, Interest, OpenError, Peer, Watch};
use machine::inspect::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens `path` for writing, emptied. A FIFO without a reader is an error instead of a wait.
fn create(path: &Path) -> Result<File, OpenError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(OpenError::new("opening the console's file", path))
}

/// Output straight to a file: what was written is in the file also if this process dies the next moment.
pub struct FileOutput {
    file: File,
    written: u64,
    dropped: u64,
}

impl FileOutput {
    /// Makes or empties the file.
    ///
    /// # Errors
    /// When the file cannot be opened for writing.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self { file: create(path)?, written: 0, dropped: 0 })
    }
}

impl ConsoleOutput for FileOutput {
    fn write(&mut self, bytes: &[u8]) {
        let count = bytes.len() as u64;
        // Fails when the disk or FIFO is full.
        match self.file.write_all(bytes) {
            Ok(()) => self.written = self.written.saturating_add(count),
            Err(_) => self.dropped = self.dropped.saturating_add(count),
        }
    }
}

machine::inspect!(FileOutput, this => {
    mode: "file",
    bytes_written: this.written,
    bytes_dropped: this.dropped,
});

/// The same for a console that is driven by events.
pub(super) struct FilePeer(File);

impl FilePeer {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        create(path).map(Self)
    }
}

impl Peer for FilePeer {
    fn describe(&self) -> Value {
        json!({ "mode": "file" })
    }

    fn present(&self) -> bool {
        true
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn service(&mut self, _watch: &Watch, _joined: &mut bool) -> Events {
        Events::default()
    }

    // A regular file is always writable and cannot be watched; a full FIFO is tried again at the next output.
    fn watch(&mut self, _watch: &Watch, _interest: Interest) {}
}
