//! System call filters: what each kind of thread may ask of the host's kernel.
//!
//! A thread confines itself before it runs anything a guest can influence. A call that is not allowed ends the
//! process with a message that names it, or is only reported by the kernel's audit log, as `--seccomp` says.

mod program;

use crate::cli::Seccomp;
use crate::machine::calls;
use hypervisor::kvm::requests;

use seccompiler::BpfProgram;
use std::sync::OnceLock;

/// The kinds of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// The machine thread, once the only machine it will have is built: changes and ends it.
    Machine,
    /// The machine thread where the API may have machines built at any time, and devices added to them, or where a core dump
    /// is written when the guest crashes.
    Control,
    /// Runs a CPU.
    Cpu,
    /// Runs queues of a virtio device.
    Worker,
    /// Carries console bytes and hears signals.
    Console,
    /// Serves a debugger.
    Debugger,
    /// Writes a core dump.
    Dump,
    /// Serves the API.
    Api,
}

/// A call that is allowed, with the ioctl requests if it is `ioctl`.
struct Allowed {
    call: i64,
    requests: &'static [u64],
}

/// Why it is allowed is for the reader.
const fn call(call: i64, _why: &'static str) -> Allowed {
    Allowed { call, requests: &[] }
}

const fn ioctl(requests: &'static [u64], _why: &'static str) -> Allowed {
    Allowed { call: libc::SYS_ioctl, requests }
}

/// What every thread needs.
const COMMON: &[Allowed] = &[
    call(libc::SYS_futex, "locks, and waiting for other threads"),
    call(libc::SYS_mmap, "memory from the allocator; thread stacks"),
    call(libc::SYS_munmap, "memory back from the allocator; thread stacks"),
    call(libc::SYS_mprotect, "the allocator's arenas; guard pages of stacks"),
    call(libc::SYS_mremap, "the allocator grows a large block"),
    call(libc::SYS_madvise, "the allocator gives pages back"),
    call(libc::SYS_brk, "the allocator's main arena"),
    call(libc::SYS_read, "events, consoles"),
    call(libc::SYS_write, "events, consoles, the log"),
    call(libc::SYS_writev, "panic messages"),
    call(libc::SYS_sendto, "the log, where it is a socket"),
    call(libc::SYS_close, "descriptors of devices that go"),
    call(libc::SYS_fcntl, "debug builds check a descriptor before they close it"),
    call(libc::SYS_clock_gettime, "time, where the vDSO does not have it"),
    call(libc::SYS_clock_nanosleep, "backing off"),
    call(libc::SYS_sched_yield, "backing off while spinning"),
    call(libc::SYS_rt_sigreturn, "returning from signal handlers"),
    call(libc::SYS_rt_sigprocmask, "panics and thread starts mask signals"),
    call(libc::SYS_rt_sigaction, "the handler of a fatal signal takes itself away"),
    call(libc::SYS_sigaltstack, "thread starts and ends"),
    call(libc::SYS_gettid, "panic messages; a thread's own id"),
    call(libc::SYS_getpid, "raising a fatal signal again"),
    call(libc::SYS_tgkill, "kicking CPUs; raising a fatal signal again"),
    call(libc::SYS_getrandom, "hash tables' seeds"),
    call(libc::SYS_exit, "the thread ends"),
    call(libc::SYS_exit_group, "the process ends"),
    call(libc::SYS_restart_syscall, "a wait goes on after a stop by a debugger"),
    call(libc::SYS_rseq, "thread starts"),
    call(libc::SYS_set_robust_list, "thread starts"),
    call(libc::SYS_prctl, "naming a thread; confining a thread"),
    call(libc::SYS_seccomp, "confining a thread"),
    call(libc::SYS_sched_getaffinity, "the number of CPUs, asked when a thread starts"),
    call(libc::SYS_sched_setaffinity, "placing a thread"),
    ioctl(&[libc::TCGETS, libc::TCSETS, libc::TCSETSW, libc::TCSETSF], "giving the terminal back"),
];

/// Starting and stopping what runs queues.
const MACHINE: &[Allowed] = &[
    ioctl(requests::LINE, "a wired interrupt, where the kernel has the controller"),
    ioctl(
        requests::CONTROLLER,
        "the interrupt controller is reset with the machine, where the kernel has it",
    ),
    call(libc::SYS_clone, "starting workers"),
    call(libc::SYS_clone3, "starting workers"),
    call(libc::SYS_epoll_create1, "workers' epolls"),
    call(libc::SYS_epoll_ctl, "workers' epolls"),
    call(libc::SYS_eventfd2, "workers' events"),
    call(libc::SYS_timerfd_create, "workers' timers"),
    call(libc::SYS_io_uring_setup, "rings of disks and persistent memory, made when the driver is ready"),
    call(libc::SYS_io_uring_register, "rings of disks and persistent memory"),
    call(libc::SYS_io_uring_enter, "rings of disks and persistent memory"),
    call(libc::SYS_pread64, "the kernel is read again on a restart"),
    call(libc::SYS_preadv, "the kernel is read again on a restart"),
    call(libc::SYS_lseek, "the kernel is read again on a restart"),
    call(libc::SYS_fstat, "sizes of files"),
    call(libc::SYS_statx, "sizes of files"),
    call(libc::SYS_fstatfs, "the kind of pages behind guest memory"),
    call(libc::SYS_fcntl, "locks of disk images; duplicating descriptors"),
    call(libc::SYS_dup, "duplicating descriptors"),
    call(calls::UNLINK, "sockets that consoles listened on"),
    call(calls::POLL, "consoles take their last output, at the end"),
    call(libc::SYS_ppoll, "consoles take their last output, at the end"),
    call(calls::EPOLL_WAIT, "consoles take their last output, at the end"),
    call(libc::SYS_epoll_pwait, "consoles take their last output, at the end"),
    call(libc::SYS_timerfd_settime, "consoles take their last output, at the end"),
    call(libc::SYS_recvfrom, "consoles take their last output, at the end"),
    call(libc::SYS_sendto, "consoles take their last output, at the end"),
    call(libc::SYS_shutdown, "sockets of consoles"),
    call(libc::SYS_bind, "the socket of a socket device that is added"),
    call(libc::SYS_listen, "the socket of a socket device that is added"),
    call(libc::SYS_getuid, "paths of the runtime"),
    ioctl(requests::DOORBELL, "devices move, come and go"),
    ioctl(requests::CREATE_CPU, "CPUs come"),
    ioctl(requests::MEMORY, "memory comes and goes"),
];

/// Building machines and adding devices to them.
const BUILD: &[Allowed] = &[
    call(libc::SYS_openat, "kernels, images, devices"),
    call(libc::SYS_ioctl, "machines and CPUs, taps, block devices, terminals"),
    call(libc::SYS_newfstatat, "kinds of files"),
    call(libc::SYS_statfs, "kinds of file systems"),
    call(libc::SYS_inotify_init1, "whether somebody has a pseudo-terminal open"),
    call(libc::SYS_inotify_add_watch, "whether somebody has a pseudo-terminal open"),
    call(calls::ACCESS, "what this user may do with a file"),
    call(libc::SYS_faccessat2, "what this user may do with a file"),
    call(calls::READLINK, "who holds an image; which device a file is on"),
    call(libc::SYS_readlinkat, "who holds an image; which device a file is on"),
    call(libc::SYS_getdents64, "who holds an image"),
    call(libc::SYS_memfd_create, "shared memory"),
    call(libc::SYS_ftruncate, "sizes of memory and images"),
    call(libc::SYS_fallocate, "sizes of memory and images"),
    call(libc::SYS_mbind, "memory of a host's node"),
    call(libc::SYS_fadvise64, "how an image is read"),
    call(libc::SYS_socket, "consoles' sockets; setting a tap's address"),
    call(libc::SYS_bind, "consoles' sockets"),
    call(libc::SYS_listen, "consoles' sockets"),
    call(libc::SYS_connect, "whether a socket is in use"),
    call(libc::SYS_getsockname, "whether a socket is in use"),
    call(libc::SYS_getsockopt, "kinds of sockets"),
    call(libc::SYS_setsockopt, "kinds of sockets"),
    call(libc::SYS_sendmsg, "setting a tap's address"),
    call(libc::SYS_recvmsg, "setting a tap's address"),
    call(libc::SYS_accept4, "consoles' sockets"),
    call(calls::SYMLINK, "a link to a pseudo-terminal"),
    call(libc::SYS_symlinkat, "a link to a pseudo-terminal"),
    call(libc::SYS_unlinkat, "files of a machine that cannot be had"),
    call(libc::SYS_readv, "kernels"),
    call(libc::SYS_pwrite64, "images"),
    call(libc::SYS_sysinfo, "the host's memory"),
    call(libc::SYS_uname, "the host's kernel"),
    call(libc::SYS_prlimit64, "stacks of threads"),
    call(libc::SYS_getuid, "paths of the runtime"),
    call(libc::SYS_geteuid, "what this user may do"),
    call(libc::SYS_pipe2, "the C library's conveniences"),
    call(libc::SYS_landlock_create_ruleset, "--landlock"),
    call(libc::SYS_landlock_add_rule, "--landlock"),
    call(libc::SYS_landlock_restrict_self, "--landlock"),
    call(libc::SYS_kill, "whether the process that holds an image is there"),
];

const CPU: &[Allowed] = &[
    ioctl(requests::LINE, "a wired interrupt, where the kernel has the controller"),
    ioctl(requests::RUN, "running the guest"),
    ioctl(requests::INTERRUPT, "the guest sets up an interrupt"),
    call(libc::SYS_eventfd2, "an interrupt's event, when first set up"),
    call(libc::SYS_timerfd_settime, "waking the console thread for a serial port's output"),
    call(calls::POLL, "whether a peer that shares memory can be interrupted"),
    ioctl(
        requests::CPU_STATE,
        "a CPU's state, when the machine is restarted, the CPU failed, or the guest starts it or asks about one",
    ),
];

const WORKER: &[Allowed] = &[
    ioctl(requests::LINE, "a wired interrupt, where the kernel has the controller"),
    call(calls::EPOLL_WAIT, "waiting for doorbells"),
    call(libc::SYS_epoll_pwait, "waiting for doorbells"),
    call(libc::SYS_epoll_pwait2, "waiting for doorbells"),
    call(libc::SYS_epoll_ctl, "what to wait for"),
    call(libc::SYS_timerfd_settime, "rate limits"),
    call(calls::POLL, "waiting for one descriptor"),
    call(libc::SYS_ppoll, "waiting for one descriptor"),
    call(libc::SYS_readv, "packets; console input"),
    call(libc::SYS_preadv, "disks, by threads"),
    call(libc::SYS_preadv2, "disks, what is cached"),
    call(libc::SYS_pwritev, "disks, by threads"),
    call(libc::SYS_pwritev2, "disks, by threads"),
    call(libc::SYS_fdatasync, "disks and persistent memory, flush"),
    call(libc::SYS_fallocate, "disks, discard and write zeroes; memory that the guest gives back"),
    call(libc::SYS_fcntl, "descriptors of consoles' clients"),
    call(libc::SYS_io_uring_register, "rings of disks and persistent memory"),
    call(libc::SYS_io_uring_enter, "rings of disks and persistent memory"),
    call(libc::SYS_accept4, "a console's socket"),
    call(libc::SYS_recvfrom, "a console's socket"),
    call(libc::SYS_recvmsg, "who comes and goes that has shared memory"),
    call(libc::SYS_sendto, "a console's socket"),
    call(libc::SYS_shutdown, "a console's socket"),
    call(libc::SYS_ftruncate, "a console's file, emptied at the first output"),
    call(libc::SYS_socket, "the guest connects to a program's socket"),
    call(libc::SYS_connect, "the guest connects to a program's socket"),
    call(libc::SYS_sendmsg, "bytes for a program's socket"),
    call(calls::UNLINK, "a console's socket, at its end"),
    ioctl(&[libc::TIOCGWINSZ, libc::FIONBIO, libc::FIONREAD], "a console's window and readiness"),
    ioctl(
        &[libc::TIOCGPTPEER, libc::TCFLSH],
        "a pseudo-terminal's next user does not get what the last left",
    ),
    ioctl(TAP_REQUESTS, "the driver negotiates offloads"),
    ioctl(BLOCK_REQUESTS, "discard on block devices"),
    ioctl(requests::INTERRUPT, "an interrupt goes with its device"),
];

/// `TUNSETOFFLOAD`, `TUNSETQUEUE`.
const TAP_REQUESTS: &[u64] = &[0x4004_54d0, 0x4004_54d9];
/// `BLKDISCARD`.
const BLOCK_REQUESTS: &[u64] = &[0x1277];

/// What is not among what the machine thread may do, it could not do either: the thread inherits that filter.
const DUMP: &[Allowed] = &[
    call(libc::SYS_pwrite64, "memory and registers"),
    call(libc::SYS_lseek, "holes of shared memory"),
    call(libc::SYS_ftruncate, "the file's size"),
    call(libc::SYS_fdatasync, "the file is complete"),
    call(calls::UNLINK, "a file that could not be completed"),
];

const DEBUGGER: &[Allowed] = &[
    call(libc::SYS_accept4, "a debugger comes"),
    call(libc::SYS_fcntl, "a second descriptor of its socket"),
    call(libc::SYS_recvfrom, "what it says"),
    call(libc::SYS_sendto, "what it is told"),
    call(calls::POLL, "waiting for it or for the machine to stop"),
    call(libc::SYS_ppoll, "waiting for it or for the machine to stop"),
    call(libc::SYS_eventfd2, "by which the machine tells that it stopped"),
];

const CONSOLE: &[Allowed] = &[
    ioctl(requests::LINE, "a wired interrupt, where the kernel has the controller"),
    call(calls::EPOLL_WAIT, "waiting for consoles"),
    call(libc::SYS_epoll_pwait, "waiting for consoles"),
    call(libc::SYS_epoll_ctl, "what to wait for"),
    call(calls::POLL, "the last output, at the end"),
    call(libc::SYS_ppoll, "the last output, at the end"),
    call(libc::SYS_timerfd_settime, "gathering output"),
    call(libc::SYS_fcntl, "descriptors of clients"),
    call(libc::SYS_fstat, "kinds of descriptors"),
    call(libc::SYS_statx, "kinds of descriptors"),
    call(libc::SYS_accept4, "a client of a socket"),
    call(libc::SYS_recvfrom, "a client of a socket"),
    call(libc::SYS_sendto, "a client of a socket"),
    call(libc::SYS_shutdown, "a client of a socket"),
    call(libc::SYS_ftruncate, "a file, emptied when the machine begins"),
    call(calls::UNLINK, "a socket, a link to a pseudo-terminal, at its end"),
    ioctl(&[libc::TIOCGWINSZ, libc::FIONBIO, libc::FIONREAD], "a console's window and readiness"),
    ioctl(
        &[libc::TIOCGPTPEER, libc::TCFLSH],
        "a pseudo-terminal's next user does not get what the last left",
    ),
];

/// Serving clients.
const API: &[Allowed] = &[
    call(calls::EPOLL_WAIT, "waiting for clients"),
    call(libc::SYS_epoll_pwait, "waiting for clients"),
    call(libc::SYS_epoll_ctl, "which clients to wait for"),
    call(libc::SYS_accept4, "a client comes"),
    call(libc::SYS_fcntl, "a second descriptor of its socket, by which it is seen that it leaves"),
    call(libc::SYS_recvmsg, "a request, with descriptors"),
    call(libc::SYS_recvfrom, "a request"),
    call(libc::SYS_sendmsg, "an answer"),
    call(libc::SYS_sendto, "an answer"),
    call(libc::SYS_getsockopt, "what is wrong with a connection"),
    call(libc::SYS_shutdown, "a client goes"),
];

static MODE: OnceLock<Seccomp> = OnceLock::new();

/// Chooses what a forbidden call does, once, before threads are started.
pub fn choose(mode: Seccomp) {
    let _ = MODE.set(mode);
    if mode == Seccomp::Enforce {
        report_violations();
    }
}

/// The filter of a kind of thread, which is made once; none when there are to be no filters.
fn program(kind: ThreadKind) -> Option<&'static BpfProgram> {
    let mode = MODE.get().copied().unwrap_or(Seccomp::Off);
    // One for each kind, with room for more kinds.
    static PROGRAMS: [OnceLock<BpfProgram>; 16] = [const { OnceLock::new() }; 16];
    (mode != Seccomp::Off).then(|| PROGRAMS[kind as usize].get_or_init(|| compile(kind, mode)))
}

/// Makes the filter of a kind of thread ahead of its use, on a thread that has nothing else to do.
pub fn prepare(kind: ThreadKind) {
    let _ = program(kind);
}

/// Confines the calling thread to what its kind needs. If that fails the process ends: it must not run unconfined.
pub fn confine(kind: ThreadKind) {
    let Some(program) = program(kind) else { return };
    if let Err(error) = apply(program) {
        devices::host_console::restore_terminal();
        eprintln!("vivarium: applying the system call filter: {error}; --seccomp false runs without filters");
        std::process::exit(1);
    }
}

/// Puts the calling thread under a filter. What it refuses is noted in the kernel's audit log too: whoever looks after the host
/// learns of it even when the process's own message is lost.
fn apply(program: &BpfProgram) -> std::io::Result<()> {
    let length = libc::c_ushort::try_from(program.len()).map_err(std::io::Error::other)?;
    // The kernel only reads the instructions, whose layout is the same in both definitions.
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    let flags = libc::SECCOMP_FILTER_FLAG_LOG;
    // SAFETY: plain numbers; then a program that outlives the call, which copies it.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// What a kind of thread is allowed. A thread inherits the filter of the one that starts it, and only what both allow is
/// allowed: the machine thread starts workers and CPUs, so it is allowed what they are.
fn allowed(kind: ThreadKind) -> &'static [&'static [Allowed]] {
    match kind {
        ThreadKind::Machine => &[COMMON, MACHINE, WORKER, CPU],
        ThreadKind::Control => &[COMMON, BUILD, MACHINE, WORKER, CPU],
        ThreadKind::Cpu => &[COMMON, CPU],
        ThreadKind::Worker => &[COMMON, WORKER],
        ThreadKind::Console => &[COMMON, CONSOLE],
        ThreadKind::Debugger => &[COMMON, DEBUGGER],
        ThreadKind::Dump => &[COMMON, DUMP],
        ThreadKind::Api => &[COMMON, API],
    }
}

/// The filter of a kind of thread.
fn compile(kind: ThreadKind, mode: Seccomp) -> BpfProgram {
    let mut rules = Vec::new();
    for allowed in allowed(kind).iter().copied().flatten() {
        let call = allowed.call as u32;
        match allowed.requests {
            [] => rules.push((call, None)),
            requests => rules.extend(requests.iter().map(|one| (call, Some(*one as u32)))),
        }
    }
    let refusal = match mode {
        Seccomp::Log => libc::SECCOMP_RET_LOG,
        _ => libc::SECCOMP_RET_TRAP,
    };
    program::assemble(rules, refusal)
}

/// Has a forbidden call named before the process ends.
fn report_violations() {
    extern "C" fn on_violation(
        _signal: libc::c_int,
        info: *mut libc::siginfo_t,
        _context: *mut libc::c_void,
    ) {
        devices::host_console::restore_terminal();
        // `siginfo_t` of SIGSYS: the address of the call, then its number.
        const NUMBER_OFFSET: usize = 24;
        // SAFETY: the kernel passes a siginfo_t, which is larger than the offset and the number.
        let number = unsafe { info.cast::<u8>().add(NUMBER_OFFSET).cast::<i32>().read_unaligned() };
        let mut digits = [b'0'; 10];
        let (mut rest, mut at) = (number.unsigned_abs(), digits.len());
        while at == digits.len() || rest > 0 {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let mut name = [0u8; 16];
        // SAFETY: the buffer has the 16 bytes that this writes.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        let name_end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        for part in [
            b"vivarium: thread ".as_slice(),
            &name[..name_end],
            b" made the forbidden system call ",
            &digits[at..],
            b"; please report this. --seccomp log lets it pass and reports it\n",
        ] {
            // SAFETY: writes initialized bytes; both calls are safe in signal handlers.
            unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
        }
        // SAFETY: ends the process, as SIGSYS would have.
        unsafe { libc::_exit(128 + libc::SIGSYS) };
    }
    // SAFETY: a zeroed sigaction is valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_violation as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler only makes calls that are safe in handlers.
    unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_thread_has_a_filter_that_allows_its_work_and_no_more() {
        for (kind, allowed, forbidden) in [
            (ThreadKind::Cpu, libc::SYS_futex, libc::SYS_openat),
            (ThreadKind::Worker, libc::SYS_io_uring_enter, libc::SYS_openat),
            (ThreadKind::Console, libc::SYS_accept4, libc::SYS_execve),
            (ThreadKind::Debugger, libc::SYS_accept4, libc::SYS_openat),
            (ThreadKind::Dump, libc::SYS_pwrite64, libc::SYS_openat),
            (ThreadKind::Machine, libc::SYS_clone3, libc::SYS_openat),
            (ThreadKind::Control, libc::SYS_openat, libc::SYS_execve),
            (ThreadKind::Api, libc::SYS_recvmsg, libc::SYS_openat),
        ] {
            let has =
                |call| super::allowed(kind).iter().copied().flatten().any(|allowed| allowed.call == call);
            assert!(has(allowed) && !has(forbidden), "{kind:?}");
        }
    }
    const CHILD: &str = "seccomp::tests::child";
    const VARIABLE: &str = "VIVARIUM_TEST_SECCOMP";

    /// Runs in a process of its own, as the variable says: on a confined thread, writes, and then opens a file.
    #[test]
    fn child() {
        let Ok(mode) = std::env::var(VARIABLE) else { return };
        choose(if mode == "log" { Seccomp::Log } else { Seccomp::Enforce });
        let thread = std::thread::Builder::new().name("confined".into()).spawn(|| {
            confine(ThreadKind::Cpu);
            let said = b"allowed\n";
            // SAFETY: writes initialized bytes.
            unsafe { libc::write(2, said.as_ptr().cast(), said.len()) };
            // SAFETY: a C string that outlives the call.
            unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/dev/null".as_ptr(), libc::O_RDONLY) }
        });
        let opened = thread.unwrap().join().unwrap();
        assert!(opened >= 0, "the file was not opened");
        std::process::exit(0);
    }

    /// How the child ends, and what it says. `None` where there are no filters: in user-mode emulation.
    fn confined(mode: &str) -> Option<(Option<i32>, String)> {
        let action = libc::SECCOMP_RET_TRAP;
        // SAFETY: plain numbers, and one that outlives the call.
        let asked =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
        if asked != 0 {
            println!("@@SKIP this host's kernel has no filters of system calls");
            return None;
        }
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CHILD, "--nocapture"])
            .env(VARIABLE, mode)
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        Some((output.status.code(), errors))
    }

    #[test]
    fn a_forbidden_call_is_named_and_ends_the_process() {
        let Some((status, errors)) = confined("enforce") else { return };
        assert!(errors.contains("allowed\n"), "{errors}");
        let call = libc::SYS_openat;
        let named =
            format!("vivarium: thread confined made the forbidden system call {call}; please report this");
        assert!(errors.contains(&named), "{errors}");
        assert_eq!(status, Some(128 + libc::SIGSYS));
    }

    #[test]
    fn a_forbidden_call_that_is_only_noted_is_made() {
        let Some((status, errors)) = confined("log") else { return };
        assert_eq!((status, errors.contains("forbidden")), (Some(0), false), "{errors}");
    }
}
