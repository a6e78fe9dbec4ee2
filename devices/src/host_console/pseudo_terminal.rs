//! A console on a pseudo-terminal of its own.
//!
//! Whether somebody has its other end open is learnt from two sides: closing is a hang-up of the master, and
//! opening, of which the master says nothing, is seen by watching the file under `/dev/pts`.

use super::{Events, Interest, OpenError, Peer, Watch, WindowSize, event_set, system};
use machine::inspect::{Value, json};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use vmm_sys_util::epoll::EventSet;

/// How much input of a user who left is kept for the guest.
const LEFTOVER_SIZE: usize = 64 << 10;

pub(super) struct PseudoTerminal {
    master: File,
    path: PathBuf,
    link: Option<PathBuf>,
    openings: File,
    attached: bool,
    leftover: VecDeque<u8>,
    interest: Interest,
}

impl PseudoTerminal {
    pub(super) fn open(link: Option<&Path>, watch: &Watch) -> Result<Self, OpenError> {
        let master = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open("/dev/ptmx")
            .map_err(OpenError::new("making a pseudo-terminal with", "/dev/ptmx"))?;
        let number = system::unlock_pseudo_terminal(master.as_raw_fd())
            .map_err(OpenError::new("unlocking a pseudo-terminal of", "/dev/ptmx"))?;
        let path = PathBuf::from(format!("/dev/pts/{number}"));
        let error = |what| OpenError::new(what, path.clone());
        // Raw from the start, so that output before anybody attaches is not echoed back as input. The modes
        // stay as long as the master is open.
        system::modes(master.as_raw_fd())
            .and_then(|modes| system::set_modes(master.as_raw_fd(), &system::raw(modes)))
            .map_err(error("setting the modes of"))?;
        let openings = system::watch_openings(&path).map_err(error("watching"))?;
        watch.add(openings.as_raw_fd(), EventSet::IN).map_err(error("watching"))?;
        if let Some(link) = link {
            make_link(&path, link)?;
        }
        tracing::info!(path = %path.display(), "the console is on a pseudo-terminal");
        Ok(Self {
            master,
            path,
            link: link.map(Path::to_owned),
            openings: File::from(openings),
            attached: false,
            leftover: VecDeque::new(),
            interest: Interest::default(),
        })
    }

    fn detach(&mut self, watch: &Watch) {
        watch.remove(self.master.as_raw_fd());
        self.attached = false;
        let mut buffer = [0; 4096];
        while self.leftover.len() < LEFTOVER_SIZE {
            match self.master.read(&mut buffer) {
                Ok(count) if count > 0 => self.leftover.extend(buffer.iter().take(count)),
                _ => break,
            }
        }
    }

    /// True if the other end was opened since this was last asked.
    fn take_openings(&mut self) -> bool {
        let mut events = [0; 4096];
        let mut opened = false;
        while self.openings.read(&mut events).is_ok_and(|count| count > 0) {
            opened = true;
        }
        opened
    }
}

/// Puts a symbolic link to `path` at `link`, in place of one an earlier run left behind.
fn make_link(path: &Path, link: &Path) -> Result<(), OpenError> {
    if link.symlink_metadata().is_ok_and(|meta| meta.file_type().is_symlink()) {
        std::fs::remove_file(link).map_err(OpenError::new("replacing the console's link", link))?;
    }
    std::os::unix::fs::symlink(path, link).map_err(OpenError::new("making the console's link", link))
}

impl Drop for PseudoTerminal {
    fn drop(&mut self) {
        if let Some(link) = &self.link
            && std::fs::read_link(link).is_ok_and(|to| to == self.path)
        {
            // Already gone is as good.
            let _ = std::fs::remove_file(link);
        }
    }
}

impl Peer for PseudoTerminal {
    fn describe(&self) -> Value {
        json!({ "mode": "pty", "path": self.path, "link": self.link })
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn present(&self) -> bool {
        self.attached
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.master.write(bytes)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.leftover.is_empty() {
            return self.leftover.read(buffer);
        }
        if self.attached { self.master.read(buffer) } else { Ok(0) }
    }

    fn service(&mut self, watch: &Watch, joined: &mut bool) -> Events {
        let before = self.attached;
        let fd = self.master.as_raw_fd();
        let opened = self.take_openings();
        if self.attached && watch.ready(fd).contains(EventSet::HANG_UP) {
            self.detach(watch);
        }
        if opened && !self.attached && watch.add(fd, event_set(self.interest)).is_ok() {
            // Opened and closed at once shows as a hang-up.
            if watch.ready(fd).contains(EventSet::HANG_UP) {
                self.detach(watch);
            } else {
                // An earlier user may have left some unread.
                system::discard_unread(fd);
                self.attached = true;
                *joined = true;
            }
        }
        Events { peer_changed: before != self.attached || *joined, ..Events::default() }
    }

    fn watch(&mut self, watch: &Watch, interest: Interest) {
        self.interest = interest;
        if self.attached {
            watch.hang_up_or(self.master.as_raw_fd(), event_set(interest));
        }
    }

    fn size(&self) -> Option<WindowSize> {
        system::window_size(self.master.as_raw_fd()).ok()
    }
}
