//! A console on a UNIX stream socket. One client is served at a time, others wait their turn.

use super::{Events, Interest, OpenError, Peer, Watch, event_set};
use machine::inspect::{Value, json};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use vmm_sys_util::epoll::EventSet;

/// How much input of a client that left is kept for the guest.
const LEFTOVER_SIZE: usize = 64 << 10;

pub(super) struct Socket {
    path: PathBuf,
    listener: UnixListener,
    client: Option<UnixStream>,
    /// The client has closed its sending side.
    input_ended: bool,
    /// Input of a client that has left.
    leftover: VecDeque<u8>,
    interest: Interest,
    clients: u64,
}

impl Socket {
    pub(super) fn open(path: &Path, watch: &Watch) -> Result<Self, OpenError> {
        let error = |what| OpenError::new(what, path);
        // What an earlier run left behind is in the way; a socket somebody listens on is not.
        if path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket())
            && UnixStream::connect(path).is_err()
        {
            std::fs::remove_file(path).map_err(error("removing the dead socket"))?;
        }
        let listener = UnixListener::bind(path).map_err(error("listening at the console's socket"))?;
        listener.set_nonblocking(true).map_err(error("setting up the console's socket"))?;
        watch.add(listener.as_raw_fd(), EventSet::IN).map_err(error("watching the console's socket"))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            client: None,
            input_ended: false,
            leftover: VecDeque::new(),
            interest: Interest::default(),
            clients: 0,
        })
    }

    /// Takes the next client if there is none.
    fn accept(&mut self, watch: &Watch) -> bool {
        if self.client.is_some() {
            return false;
        }
        let Ok((client, _)) = self.listener.accept() else { return false };
        if client.set_nonblocking(true).is_err()
            || watch.add(client.as_raw_fd(), event_set(self.interest)).is_err()
        {
            return false;
        }
        // Nobody else is served meanwhile: a waiting client would keep the listener readable.
        watch.remove(self.listener.as_raw_fd());
        self.client = Some(client);
        self.input_ended = false;
        self.clients = self.clients.saturating_add(1);
        true
    }

    /// The client is gone: what it still sent is kept, and the next one may come.
    fn leave(&mut self, watch: &Watch) {
        let Some(mut client) = self.client.take() else { return };
        watch.remove(client.as_raw_fd());
        let mut buffer = [0; 4096];
        while self.leftover.len() < LEFTOVER_SIZE {
            match client.read(&mut buffer) {
                Ok(count) if count > 0 => self.leftover.extend(buffer.iter().take(count)),
                _ => break,
            }
        }
        // It was watched before, so it can be again; were it not, the service of a later event would tell.
        let _ = watch.add(self.listener.as_raw_fd(), EventSet::IN);
    }

    fn effective(&self, interest: Interest) -> EventSet {
        event_set(Interest { readable: interest.readable && !self.input_ended, ..interest })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Peer for Socket {
    fn describe(&self) -> Value {
        json!({ "mode": "socket", "path": self.path, "clients": self.clients })
    }

    fn present(&self) -> bool {
        self.client.is_some()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Rust ignores SIGPIPE only in processes it starts; the standard library sends without the signal.
        self.client.as_mut().map_or(Ok(0), |client| client.write(bytes))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.leftover.is_empty() {
            return self.leftover.read(buffer);
        }
        let Some(client) = &mut self.client else { return Ok(0) };
        let count = client.read(buffer)?;
        self.input_ended |= count == 0 && !buffer.is_empty();
        Ok(count)
    }

    fn service(&mut self, watch: &Watch, joined: &mut bool) -> Events {
        let mut peer_changed = false;
        if let Some(client) = &self.client {
            let fd = client.as_raw_fd();
            if watch.ready(fd).intersects(EventSet::HANG_UP | EventSet::ERROR) {
                self.leave(watch);
                peer_changed = true;
            } else if self.input_ended {
                // Its output goes on until it hangs up.
                watch.hang_up_or(fd, self.effective(self.interest));
            }
        }
        if self.accept(watch) {
            *joined = true;
            peer_changed = true;
        }
        Events { peer_changed, ..Events::default() }
    }

    fn watch(&mut self, watch: &Watch, interest: Interest) {
        self.interest = interest;
        if let Some(client) = &self.client {
            watch.hang_up_or(client.as_raw_fd(), self.effective(interest));
        }
    }
}
