//! The io_uring engine: operations straight on guest memory, many to a system call.
//!
//! The ring is used by whichever thread runs the queue, so it is not bound to one (`IORING_SETUP_SINGLE_ISSUER` and
//! `DEFER_TASKRUN` would, and gain nothing measurable here). Completions are read from shared memory; an eventfd wakes
//! a sleeping worker, and is switched off in the shared memory while the worker is awake.
//!
//! A read that comes alone is first tried from the page cache by `preadv2(RWF_NOWAIT)`, which takes a sixth less time than
//! a round through the ring. Whatever would sleep goes to the ring.

use super::{Completion, Engine, EngineFile, FileIndex, Operation, Pool, PoolEngine, Segments, TRANSFER_MAX};
use io_uring::{IoUring, Probe, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The most entries that are submitted by one system call.
const ENTRIES_MAX: u32 = 1024;

/// What the ring must be able to do.
const OPERATIONS: [u8; 6] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// Whether this process can use io_uring for disks.
pub(super) fn probe() -> io::Result<()> {
    let ring = build(2, 4)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if OPERATIONS.iter().any(|operation| !probe.is_supported(*operation)) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old"));
    }
    Ok(())
}

fn build(entries: u32, completions: u32) -> io::Result<IoUring> {
    // Without COOP_TASKRUN (Linux 5.19) each completion interrupts the polling worker.
    let cooperative =
        IoUring::builder().setup_cqsize(completions).setup_coop_taskrun().setup_taskrun_flag().build(entries);
    let ring = match cooperative {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_cqsize(completions).build(entries)?
        }
        other => other?,
    };
    // Completions that find no place must wait rather than be lost.
    if !ring.params().is_feature_nodrop() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old"));
    }
    Ok(ring)
}

/// Performs operations by an io_uring of its own.
pub struct UringEngine {
    ring: IoUring,
    files: Arc<[EngineFile]>,
    event: EventFd,
    armed: bool,
    /// A read that may be alone, not yet in the ring.
    held: Option<Held>,
    /// Tags of entries in the ring that the kernel has not taken yet, oldest first.
    staged: VecDeque<u32>,
    /// Operations that the kernel has.
    in_flight: usize,
    /// Completions that did not come from the ring.
    ready: VecDeque<Completion>,
    /// The error after which the ring is not used any more.
    failed: Option<i32>,
    /// For operations that io_uring does not have.
    beside: Option<PoolEngine>,
}

struct Held {
    tag: u32,
    file: FileIndex,
    offset: u64,
    into: Segments,
}

impl UringEngine {
    /// A new engine for up to `depth` operations at once. `pool` is needed for [`Operation::DiscardDevice`] only.
    ///
    /// # Errors
    /// When io_uring is not allowed or the host is out of descriptors or memory.
    pub fn new(files: Arc<[EngineFile]>, depth: u32, pool: Option<&Arc<Pool>>) -> io::Result<Self> {
        let depth = depth.max(1);
        let ring = build(depth.min(ENTRIES_MAX), depth.max(2))?;
        let descriptors: Vec<RawFd> = files.iter().map(|file| file.file.as_raw_fd()).collect();
        ring.submitter().register_files(&descriptors)?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        // Not IORING_REGISTER_EVENTFD_ASYNC: that leaves out completions made by interrupts of the storage.
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let beside = match pool {
            Some(pool) => Some(PoolEngine::beside_a_ring(pool, Arc::clone(&files), depth, &event)?),
            None => None,
        };
        let mut engine = Self {
            ring,
            files,
            event,
            armed: false,
            held: None,
            staged: VecDeque::with_capacity(depth as usize),
            in_flight: 0,
            ready: VecDeque::with_capacity(depth as usize),
            failed: None,
            beside,
        };
        engine.ring.completion().disable_eventfd();
        Ok(engine)
    }

    /// Puts an entry into the ring, making place when there is none.
    ///
    /// # Safety
    /// As for [`Engine::submit`].
    unsafe fn push(&mut self, tag: u32, entry: &squeue::Entry) {
        for _ in 0..2 {
            if let Some(errno) = self.failed {
                self.ready.push_back(Completion::from_kernel(tag, errno.saturating_neg()));
                return;
            }
            // SAFETY: the caller keeps what the entry points to valid.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.staged.push_back(tag);
                return;
            }
            self.enter();
        }
        // The kernel takes nothing now, for lack of memory.
        self.ready.push_back(Completion::from_kernel(tag, libc::EAGAIN.saturating_neg()));
    }

    /// Gives the kernel what is in the ring.
    fn enter(&mut self) {
        while !self.staged.is_empty() && self.failed.is_none() {
            match self.ring.submit() {
                Ok(taken) => {
                    for _ in 0..taken {
                        if self.staged.pop_front().is_some() {
                            self.in_flight = self.in_flight.saturating_add(1);
                        }
                    }
                    if taken == 0 {
                        return;
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // No memory or no place for completions at the moment: `has_work` brings us back here.
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => return,
                    errno => self.give_up(errno.unwrap_or(libc::EIO)),
                },
            }
        }
    }

    /// The ring refuses to work, which only a change of this process's privileges explains. What the kernel did not take
    /// ends with the error; the entries are never submitted.
    fn give_up(&mut self, errno: i32) {
        tracing::error!("a disk's io_uring stopped working: {}", io::Error::from_raw_os_error(errno));
        self.failed = Some(errno);
        while let Some(tag) = self.staged.pop_front() {
            self.ready.push_back(Completion::from_kernel(tag, errno.saturating_neg()));
        }
    }

    /// Tries a read that came alone from the page cache.
    fn try_cached(&mut self, held: &Held) -> Option<u32> {
        let file = self.files.get(usize::from(held.file.0))?;
        let offset = i64::try_from(held.offset).ok()?;
        let (file, count) = (file.file.as_raw_fd(), held.into.count as i32);
        // SAFETY: `submit` was promised that the segments stay valid.
        let read = unsafe { libc::preadv2(file, held.into.iovecs(), count, offset, libc::RWF_NOWAIT) };
        // An end of file or error is the ring's to report.
        u32::try_from(read).ok().filter(|read| *read > 0)
    }

    /// Puts the held read into the ring.
    fn release(&mut self) {
        if let Some(held) = self.held.take() {
            let operation = Operation::Read { offset: held.offset, into: held.into, patient: false };
            // SAFETY: `submit` was promised that the segments stay valid.
            unsafe {
                if let Some(entry) = entry(held.tag, held.file, operation) {
                    self.push(held.tag, &entry);
                }
            }
        }
    }

    fn kernel_has_news(&self) -> bool {
        // SAFETY: the engine is used by one thread at a time, and neither queue is otherwise borrowed here.
        let (submission, completion) =
            unsafe { (self.ring.submission_shared(), self.ring.completion_shared()) };
        !completion.is_empty() || submission.taskrun() || submission.cq_overflow()
    }
}

impl Engine for UringEngine {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    unsafe fn submit(&mut self, tag: u32, file: FileIndex, operation: Operation) {
        let cached = self.files.get(usize::from(file.0)).is_some_and(|file| !file.direct);
        match operation {
            Operation::Read { offset, into, patient: false }
                if cached && self.held.is_none() && self.staged.is_empty() =>
            {
                self.held = Some(Held { tag, file, offset, into });
                return;
            }
            _ => self.release(),
        }
        // SAFETY: the caller keeps the operation's memory valid.
        unsafe {
            match (entry(tag, file, operation), &mut self.beside) {
                (Some(entry), _) => self.push(tag, &entry),
                (None, Some(beside)) => beside.submit(tag, file, operation),
                (None, None) => {
                    self.ready.push_back(Completion::from_kernel(tag, libc::EOPNOTSUPP.saturating_neg()));
                }
            }
        }
    }

    fn kick(&mut self) {
        if let Some(held) = self.held.take() {
            if let Some(read) = self.try_cached(&held) {
                self.ready.push_back(Completion { tag: held.tag, result: Ok(read) });
            } else {
                self.held = Some(held);
                self.release();
            }
        }
        self.enter();
        if let Some(beside) = &mut self.beside {
            beside.kick();
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        if let Some(completion) = self.ready.pop_front() {
            return Some(completion);
        }
        if let Some(completion) = self.beside.as_mut().and_then(Engine::complete) {
            return Some(completion);
        }
        if self.in_flight == 0 {
            return None;
        }
        let mut entry = self.ring.completion().next();
        if entry.is_none() && self.kernel_has_news() && self.failed.is_none() {
            // The kernel finishes what it has only when it is entered.
            // SAFETY: no argument is passed, and nothing is submitted.
            let _ = unsafe { self.ring.submitter().enter::<()>(0, 0, ENTER_GETEVENTS, None) };
            entry = self.ring.completion().next();
        }
        let entry = entry?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(Completion::from_kernel(entry.user_data() as u32, entry.result()))
    }

    fn has_work(&self) -> bool {
        !self.ready.is_empty()
            || self.held.is_some()
            || !self.staged.is_empty()
            || (self.in_flight > 0 && self.kernel_has_news())
            || self.beside.as_ref().is_some_and(Engine::has_work)
    }

    fn arm(&mut self) -> bool {
        if !self.armed {
            self.armed = true;
            self.ring.completion().enable_eventfd();
        }
        let beside = self.beside.as_mut().is_some_and(Engine::arm);
        // A completion is either seen by the look below, or its writer sees the event enabled.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        beside || self.has_work()
    }

    fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.ring.completion().disable_eventfd();
            // Nothing to read when the event was not raised.
            let _ = self.event.read();
            if let Some(beside) = &mut self.beside {
                beside.disarm();
            }
        }
    }

    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        // The kernel must not write to memory that is given to others: wait until it is done.
        self.kick();
        loop {
            while self.complete().is_some() {}
            if self.in_flight == 0 {
                // The kernel takes a ring down later, and would keep the files open until then.
                let _ = self.ring.submitter().unregister_files();
                return;
            }
            if self.arm() {
                self.enter();
                continue;
            }
            let mut wait = libc::pollfd { fd: self.event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one `pollfd` is passed.
            unsafe { libc::poll(&raw mut wait, 1, -1) };
            self.disarm();
        }
    }
}

/// `IORING_ENTER_GETEVENTS`
const ENTER_GETEVENTS: u32 = 1;

/// The ring's form of an operation; `None` when it has none.
///
/// # Safety
/// The operation's segments are valid.
unsafe fn entry(tag: u32, file: FileIndex, operation: Operation) -> Option<squeue::Entry> {
    let file = types::Fixed(u32::from(file.0));
    // SAFETY: the caller says that the segments are valid.
    let single = |segments: Segments| unsafe { segments.single() };
    let length = |length: usize| u32::try_from(length).unwrap_or(TRANSFER_MAX).min(TRANSFER_MAX);
    let (entry, patient) = match operation {
        Operation::Read { offset, into, patient } => {
            let entry = match single(into) {
                Some(only) => {
                    opcode::Read::new(file, only.as_ptr(), length(only.len())).offset(offset).build()
                }
                None => opcode::Readv::new(file, into.iovecs(), into.count).offset(offset).build(),
            };
            (entry, patient)
        }
        Operation::Write { offset, from, stable, patient } => {
            let flags = if stable { libc::RWF_DSYNC } else { 0 };
            let entry = match single(from) {
                Some(only) => opcode::Write::new(file, only.as_ptr(), length(only.len()))
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                None => opcode::Writev::new(file, from.iovecs(), from.count)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
            };
            (entry, patient)
        }
        Operation::Sync => (opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(), false),
        Operation::Allocate { mode, offset, length } => {
            (opcode::Fallocate::new(file, length).offset(offset).mode(mode).build(), false)
        }
        Operation::DiscardDevice { .. } => return None,
    };
    let flags = if patient { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
    Some(entry.user_data(u64::from(tag)).flags(flags))
}
