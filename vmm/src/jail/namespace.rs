//! Namespaces, and the first process in them.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Joins a network namespace.
///
/// # Errors
/// The host's.
pub fn join_network(path: &Path) -> io::Result<()> {
    let namespace = File::open(path)?;
    // SAFETY: the descriptor is open.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Leaves the host's message and name namespaces, and the network's if `network`; the next process that is started leaves the
/// process namespace too.
///
/// # Errors
/// The host's.
pub fn leave(network: bool) -> io::Result<()> {
    let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if network {
        flags |= libc::CLONE_NEWNET;
    }
    // SAFETY: plain flags; the process has one thread.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// The process that started this one and cleans up after it, as the reading end of a pipe that only that one can write to.
pub struct Parent(PipeReader);

impl Parent {
    /// Has the calling process end with its parent from now on, at once if that has ended. Becoming another user undoes it.
    pub fn end_with(self) {
        // SAFETY: plain numbers.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // A signal is only sent by a parent that ends after this was asked for.
        if self.has_ended() {
            std::process::exit(1);
        }
    }

    /// The descriptor of the pipe.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn has_ended(&self) -> bool {
        let mut pipe = libc::pollfd { fd: self.0.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one initialized structure; nothing is waited for.
        unsafe { libc::poll(&mut pipe, 1, 0) == 1 }
    }
}

/// Runs `body`, which is told of its parent, in a process of its own, which is the first one of its namespace: when it ends, so does
/// all that it started. Signals that ask this process to end are passed on to it. Returns its exit status, 128 and the number of the
/// signal that ended it.
///
/// # Errors
/// When the host gives no process.
pub fn run_first_process(body: impl FnOnce(Parent) -> u8) -> Result<u8> {
    crate::console_thread::hold_signals().context("jail: holding signals")?;
    let (parent, alive) = std::io::pipe().context("jail: making a pipe")?;
    // SAFETY: the process has one thread, so the child has a whole copy of all it may use.
    let child = check(unsafe { libc::fork() }).context("jail: starting the machine's process")?;
    if child == 0 {
        drop(alive);
        std::process::exit(i32::from(body(Parent(parent))));
    }
    drop(parent);
    let mut heard = crate::console_thread::heard_set();
    // SAFETY: the set is initialized. A child's end is a signal too, which is heard only if it is held.
    unsafe {
        libc::sigaddset(&mut heard, libc::SIGCHLD);
        libc::pthread_sigmask(libc::SIG_BLOCK, &heard, std::ptr::null_mut());
    }
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place.
        let ended = unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) };
        if ended == child {
            if libc::WIFEXITED(status) {
                return Ok(libc::WEXITSTATUS(status) as u8);
            }
            return Ok(128u8.saturating_add(libc::WTERMSIG(status) as u8));
        }
        if ended < 0 {
            bail!("jail: waiting for the machine's process: {}", io::Error::last_os_error());
        }
        let mut signal = 0;
        // SAFETY: the set is initialized, and `signal` is a valid place.
        if unsafe { libc::sigwait(&heard, &mut signal) } == 0 && signal != libc::SIGCHLD {
            // SAFETY: the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(child, signal) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_that_has_ended_is_seen() {
        let (reader, alive) = io::pipe().unwrap();
        let parent = Parent(reader);
        assert!(!parent.has_ended());
        drop(alive);
        assert!(parent.has_ended());
    }
}
