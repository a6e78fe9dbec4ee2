//! Core scheduling (Linux, `Documentation/admin-guide/hw-vuln/core-scheduling.rst`), seen from the host: which threads may share a
//! core.
//!
//! Where the host has none, since its kernel is built without or its cores have one thread each, a thread of the test stands in for the
//! kernel: it is handed the process's calls (`seccomp_unotify(2)`) and gives cookies as the kernel would.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

/// Who gets a cookie (`PR_SCHED_CORE_SCOPE_*`).
const THREAD: u64 = 0;
const THREAD_GROUP: u64 = 1;

/// `_IOWR('!', 0, struct seccomp_notif)` and `_IOWR('!', 1, struct seccomp_notif_resp)`.
const RECEIVE: u64 = 0xC050_2100;
const SEND: u64 = 0xC018_2101;

/// What tells the cookies of a process's threads.
pub struct CoreScheduling(Option<Arc<Mutex<Cookies>>>);

/// What the stand-in gave.
#[derive(Default)]
struct Cookies {
    last: u64,
    /// Threads that the process starts have it from the one that starts them.
    process: u64,
    threads: BTreeMap<u32, u64>,
}

impl CoreScheduling {
    /// That of the process which `command` starts.
    ///
    /// # Panics
    /// When there is no socket to hand calls over by.
    pub fn of(command: &mut Command) -> Self {
        if of_kernel(std::process::id()).is_ok() {
            return Self(None);
        }
        let cookies = Arc::new(Mutex::new(Cookies::default()));
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let of_the_test = ours.as_raw_fd();
        let begin = move || {
            // Else it would not be seen that the test closes it.
            // SAFETY: the process that is about to become the program has a copy that it does not use.
            unsafe { libc::close(of_the_test) };
            hand_calls_over(&theirs)
        };
        // SAFETY: makes system calls only.
        unsafe { command.pre_exec(begin) };
        let told = Arc::clone(&cookies);
        std::thread::spawn(move || {
            if let Ok(calls) = take_over(&ours) {
                serve(&calls, &told);
            }
        });
        Self(Some(cookies))
    }

    /// Why it cannot be seen here: the host neither has it nor lets a process stand in for the kernel.
    pub fn cannot_be_seen() -> Option<String> {
        let mut nothing = Command::new("true");
        let _scheduling = Self::of(&mut nothing);
        nothing.status().err().map(|error| format!("calls are not handed over here: {error}"))
    }

    /// The cookie of one of its threads, by the thread's id; 0 is none. `None`: the thread has ended.
    pub fn cookie(&self, thread: u32) -> Option<u64> {
        let Some(cookies) = &self.0 else { return of_kernel(thread).ok() };
        let cookies = cookies.lock().unwrap();
        Some(*cookies.threads.get(&thread).unwrap_or(&cookies.process))
    }
}

fn of_kernel(thread: u32) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let get = libc::c_ulong::from(libc::PR_SCHED_CORE_GET.unsigned_abs());
    // SAFETY: writes a number of 8 bytes, which outlives the call.
    let got = unsafe {
        libc::prctl(libc::PR_SCHED_CORE, get, libc::c_ulong::from(thread), THREAD, &raw mut cookie)
    };
    if got == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// In the process that is about to become the program: has `prctl(PR_SCHED_CORE)` asked of who listens at a descriptor, and waits
/// until that is handed over through `socket`.
fn hand_calls_over(mut socket: &UnixStream) -> io::Result<()> {
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset);
    let unless = |value, skipped| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skipped, value);
    let answer = |action| instruction(libc::BPF_RET | libc::BPF_K, 0, action);
    let mut program = [
        load(NUMBER),
        unless(libc::SYS_prctl as u32, 3),
        load(FIRST_ARGUMENT),
        unless(libc::PR_SCHED_CORE as u32, 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the call.
    let calls = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
        libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program)
    };
    if calls < 0 {
        return Err(io::Error::last_os_error());
    }
    socket.write_all(&std::process::id().to_le_bytes())?;
    socket.write_all(&(calls as RawFd).to_le_bytes())?;
    socket.read_exact(&mut [0])
}

fn instruction(code: u32, skipped_unless: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: skipped_unless, k: value }
}

/// In the test: takes the descriptor over.
fn take_over(mut socket: &UnixStream) -> io::Result<File> {
    let mut number = [0; 4];
    socket.read_exact(&mut number)?;
    let process = u32::from_le_bytes(number);
    socket.read_exact(&mut number)?;
    // SAFETY: makes a new descriptor.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
    let (number, of) = (RawFd::from_le_bytes(number), process.as_raw_fd());
    // SAFETY: makes a new descriptor.
    let calls = owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, of, number, 0) })?;
    socket.write_all(&[0])?;
    Ok(File::from(calls))
}

/// What a system call returned that makes a descriptor.
fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(returned as RawFd) })
}

/// Answers calls until the process has gone.
fn serve(calls: &File, cookies: &Mutex<Cookies>) {
    let mut ready = libc::pollfd { fd: calls.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the structure outlives the call.
    while unsafe { libc::poll(&raw mut ready, 1, -1) } == 1 && ready.revents & libc::POLLIN != 0 {
        // SAFETY: zeroes are valid, and wanted by the kernel.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes the structure it is given.
        if unsafe { libc::ioctl(calls.as_raw_fd(), RECEIVE as _, &raw mut call) } != 0 {
            continue;
        }
        let done = cookies.lock().unwrap().create(call.pid, &call.data.args);
        let error = if done { 0 } else { -libc::EINVAL };
        let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error, flags: 0 };
        // SAFETY: the kernel reads the structure it is given.
        unsafe { libc::ioctl(calls.as_raw_fd(), SEND as _, &raw mut answer) };
    }
}

impl Cookies {
    /// What `thread` asks for itself or its process by the arguments of `prctl`; whether the kernel would do it.
    fn create(&mut self, thread: u32, arguments: &[u64; 6]) -> bool {
        let [_, command, of, scope, unused, _] = *arguments;
        if command != u64::from(libc::PR_SCHED_CORE_CREATE.unsigned_abs())
            || of != 0
            || unused != 0
            || scope > THREAD_GROUP
        {
            return false;
        }
        self.last += 1;
        if scope == THREAD {
            self.threads.insert(thread, self.last);
        } else {
            self.process = self.last;
            self.threads.clear();
        }
        true
    }
}
