//! Interrupting a CPU that another thread runs.
//!
//! Two things together: the `immediate_exit` flag in the page KVM shares makes the next entry return at
//! once, and a signal to the thread ends the entry it is in. Setting the flag first leaves no gap.

use crate::Kick;
use kvm_bindings::kvm_run;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// What a kick needs of a CPU: the page shared with KVM and the thread that runs it. Outlives the CPU safely.
pub(super) struct KickTarget {
    run_page: RunPage,
    /// 0: no thread runs the CPU.
    thread: AtomicI32,
}

impl KickTarget {
    /// For the CPU with file descriptor `vcpu`.
    pub(super) fn new(vcpu: &impl AsRawFd) -> io::Result<Self> {
        install_handler()?;
        Ok(Self { run_page: RunPage::map(vcpu)?, thread: AtomicI32::new(0) })
    }

    /// The calling thread is the one that runs the CPU.
    pub(super) fn set_current_thread(&self) {
        // SAFETY: gettid has no preconditions.
        self.thread.store(unsafe { libc::gettid() }, Ordering::Release);
    }

    /// No thread runs the CPU any more.
    pub(super) fn clear_thread(&self) {
        self.thread.store(0, Ordering::Release);
    }

    /// Whether a kick made the CPU stop, and takes that kick.
    pub(super) fn take(&self) -> bool {
        self.run_page.immediate_exit().swap(0, Ordering::AcqRel) != 0
    }
}

impl Kick for KickTarget {
    fn kick(&self) {
        self.run_page.immediate_exit().store(1, Ordering::Release);
        let thread = self.thread.load(Ordering::Acquire);
        if thread != 0 {
            // SAFETY: sends a signal with an empty handler to a thread of this process. If the thread is gone
            // the call fails, and if another has its number, that one is interrupted for nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGRTMIN()) };
        }
    }
}

/// A second mapping of the page KVM shares, so that a kick never touches one that is unmapped.
struct RunPage(NonNull<kvm_run>);

// SAFETY: only the atomic flag in it is accessed.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

/// `kvm_run`'s named fields fit in the first page.
const RUN_PAGE_SIZE: usize = 4096;

impl RunPage {
    fn map(vcpu: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: makes a new mapping of the CPU's shared page.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RUN_PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::Error::other("mapped at address zero"))
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping lives as long as `self`, and the field is a byte that every thread of this process
        // accesses through this atomic only.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this size, and no reference to it is left.
        unsafe { libc::munmap(self.0.as_ptr().cast(), RUN_PAGE_SIZE) };
    }
}

/// Makes the signal do nothing but interrupt. Once for the process.
fn install_handler() -> io::Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static INSTALLED: OnceLock<std::result::Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| register_signal_handler(SIGRTMIN(), ignore).map_err(|errno| errno.errno()))
        .map_err(io::Error::from_raw_os_error)
}
