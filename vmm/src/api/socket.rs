//! `--api-socket`: where the API listens.

use crate::config::options::options;
use crate::socket_file::SocketFile;
use anyhow::{Context, Result, bail};
use std::io::{self, ErrorKind};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

options! {
    /// The UNIX socket that the REST API is served on: a path, or a socket that whoever started the process made.
    pub struct ApiSocketConfig {
        /// The socket's path; what a process that is gone left there is replaced.
        ["path" bare] path: Option<PathBuf> = None,
        /// The descriptor of a listening socket.
        ["fd"] fd: Option<i32> = None,
    }
}

/// Where clients of the API arrive. Its path goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    _file: Option<SocketFile>,
}

impl Listener {
    /// Listens where `config` says. What clients send before they are served waits.
    ///
    /// # Errors
    /// When that cannot be had; names the option.
    pub fn open(config: &ApiSocketConfig) -> Result<Self> {
        match (&config.path, config.fd) {
            (Some(path), None) => {
                let (socket, file) = SocketFile::bind(path)
                    .with_context(|| format!("--api-socket path={}", path.display()))?;
                Ok(Self { socket, _file: Some(file) })
            }
            (None, Some(fd)) => {
                let fd = inherited(fd).with_context(|| format!("--api-socket fd={fd}"))?;
                Ok(Self { socket: fd.into(), _file: None })
            }
            (Some(_), Some(_)) => bail!("--api-socket: has both path and fd; give one"),
            (None, None) => bail!("--api-socket: says nothing; write --api-socket path=<socket>"),
        }
    }

    /// The socket.
    ///
    /// # Errors
    /// When no descriptor is left for it.
    pub(super) fn socket(&self) -> io::Result<UnixListener> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Takes over a descriptor that the process was started with.
pub(super) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "is a standard stream; pass descriptor 3 or above",
        ));
    }
    // SAFETY: only asks for flags; a descriptor that is not open is an error.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and who wrote its number on the command line gave it to this option.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Duplicated, so that it closes on exec.
    fd.try_clone()
}
