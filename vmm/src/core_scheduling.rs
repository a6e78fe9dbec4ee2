//! Core scheduling: which threads the host may run at the same time on the hardware threads of a core (Linux,
//! `Documentation/admin-guide/hw-vuln/core-scheduling.rst`). Threads share a core only with those of the same cookie, so that
//! a guest cannot watch another through what they share of a core.

use crate::config::CoreScheduling;
use std::io;

/// Gives all threads of the process a cookie of their own, where the whole machine is to have one.
///
/// # Errors
/// When the host's kernel cannot.
pub fn separate_machine(mode: CoreScheduling) -> io::Result<()> {
    match mode {
        CoreScheduling::Vm => create(Scope::Process),
        CoreScheduling::Vcpu | CoreScheduling::Off => Ok(()),
    }
}

/// Gives the calling thread, a CPU's, a cookie of its own, where each CPU is to have one.
///
/// # Errors
/// When the host's kernel cannot.
pub fn separate_cpu(mode: CoreScheduling) -> io::Result<()> {
    match mode {
        CoreScheduling::Vcpu => create(Scope::Thread),
        CoreScheduling::Vm | CoreScheduling::Off => Ok(()),
    }
}

/// Who gets a cookie (`enum pid_type`).
enum Scope {
    Thread = 0,
    Process = 1,
}

fn create(scope: Scope) -> io::Result<()> {
    let itself: libc::c_ulong = 0;
    let unused: libc::c_ulong = 0;
    // SAFETY: only changes where the scheduler places threads.
    let result = unsafe {
        libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, itself, scope as libc::c_ulong, unused)
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // Its cores have one thread each: nothing is shared.
    if error.raw_os_error() == Some(libc::ENODEV) { Ok(()) } else { Err(error) }
}
