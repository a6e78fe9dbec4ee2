//! The control plane: configuration, the machine thread, lifecycle.

pub mod api;
pub mod cli;
pub mod config;
pub mod config_help;
pub mod console_thread;
pub mod core_scheduling;
pub mod cpu;
pub mod ctl;
pub mod event;
pub mod exits;
pub mod file_lock;
pub mod file_space;
pub mod guest_faults;
pub mod host_cpus;
pub mod host_pages;
pub mod jail;
pub mod landlock;
pub mod log;
pub mod machine;
pub mod memory;
pub mod message;
pub mod metrics;
pub mod monitor;
pub mod pmem;
pub mod seccomp;
pub mod settle;
pub mod socket_file;

pub use crate::machine::gdb;

use crate::machine::Ended;
use crate::monitor::Monitor;
use crate::seccomp::ThreadKind;
use anyhow::{Result, bail};
use hypervisor::kvm::{DEFAULT_PATH, Kvm};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the API's clients wait for the machine of the command line to be built.
const HEAD_START: Duration = Duration::from_millis(250);

/// Runs the machine the command line describes, until it ends.
///
/// # Errors
/// When the machine cannot be built, or fails.
pub fn run(run: cli::Run) -> Result<()> {
    let ended = run_logged(run);
    log::flush();
    ended
}

fn run_logged(run: cli::Run) -> Result<()> {
    limit_arenas();
    outlive_file_limits();
    allow_descriptors();
    seccomp::choose(run.seccomp);
    console_thread::hold_signals()?;
    log::start(run.log)?;
    tracing::info!(pid = std::process::id(), "vivarium {} starts", env!("CARGO_PKG_VERSION"));
    let kvm = Kvm::open(Path::new(DEFAULT_PATH))?;
    let mut monitor = Monitor::new(Arc::new(kvm))?;
    // Dropped after the machine thread has told its last event.
    let _event_monitor = run
        .event_monitor
        .as_ref()
        .map(|config| {
            api::event_monitor::start(config, &monitor.events(), || seccomp::confine(ThreadKind::Console))
        })
        .transpose()?;
    monitor.events().emit("vmm", "starting");
    let debugger = run.gdb.as_ref().map(|gdb| gdb::serve(&gdb.path, monitor.inbox())).transpose()?;
    if let Some(gdb) = &run.gdb {
        monitor.keep_removable(&gdb.path);
        if gdb.wait {
            monitor.hold_for_debugger();
        }
    }
    let listener = run.api_socket.as_ref().map(api::socket::Listener::open).transpose()?;
    if let Some(path) = run.api_socket.as_ref().and_then(|socket| socket.path.as_deref()) {
        monitor.keep_removable(path);
    }
    // What may have to make a file later.
    let dumps = run.config.as_ref().and_then(|config| config.on_crash.as_ref());
    let builds = listener.is_some() || dumps.is_some_and(|crash| crash.coredump.is_some());
    let serves = listener.is_some();
    if let Some(config) = run.config {
        monitor.boot(config)?;
    }
    let kind = if builds { ThreadKind::Control } else { ThreadKind::Machine };
    // While the machine is built.
    seccomp::prepare(kind);
    // Clients may have come by now; the guest goes first, unless the host lets it wait.
    let ended = match monitor.await_boot(serves.then_some(HEAD_START))? {
        Some(ended) => ended,
        None => {
            log::begin(|| seccomp::confine(ThreadKind::Console))?;
            let _api = listener.map(|listener| serve(listener, &monitor)).transpose()?;
            if serves {
                monitor.settle_later();
            }
            seccomp::confine(kind);
            monitor.run()?
        }
    };
    drop(debugger);
    tracing::info!(
        "the process ends: {}",
        match &ended {
            Ended::PoweredOff => "the guest powered off".to_owned(),
            Ended::Terminated => "it was asked to".to_owned(),
            Ended::Failed(failure) => failure.to_string(),
        }
    );
    match ended {
        Ended::PoweredOff | Ended::Terminated => Ok(()),
        Ended::Failed(failure) => bail!("{failure}"),
    }
}

/// Starts the API, whose calls go to `monitor`.
fn serve(listener: api::socket::Listener, monitor: &Monitor) -> Result<api::server::Server> {
    let inbox = monitor.inbox();
    let ask = Box::new(move |call| inbox.tell(message::Event::Call(call)));
    api::server::Server::start(listener, ask, monitor.events(), || seccomp::confine(ThreadKind::Api))
}

/// Has all threads share the allocator's one arena. Nothing allocates on a data path, so there is no contention to
/// avoid; memory is saved; and the C library does not come to count the host's CPUs, for which it would open a file, on
/// a thread that may open none.
fn limit_arenas() {
    // SAFETY: only sets a parameter of the allocator. No other thread is there yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Has a write beyond the process's largest file (`RLIMIT_FSIZE`) fail, so that whoever wrote is told, instead of ending the
/// process, which a guest could bring about.
fn outlive_file_limits() {
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Takes as many descriptors as the process may have: each connection of a guest's programs to the host takes one, and the
/// usual limit of 1024 (`RLIMIT_NOFILE`, the soft one) is there for programs that use `select(2)`.
fn allow_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: one limit is passed each time. What is refused leaves the limit as it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
