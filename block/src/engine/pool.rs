//! The engine for hosts that do not allow io_uring: a few threads per image that make ordinary system calls.

use super::{Completion, Engine, EngineFile, FileIndex, Operation, ThreadStart};
use crate::host;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Threads added with each engine, and the most that one image has. Storage that is worth more parallel requests than
/// this is also on hosts that allow io_uring.
const THREADS_PER_ENGINE: usize = 4;
const THREADS_MAX: usize = 16;

/// The threads of one image.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<usize>,
    start: Option<ThreadStart>,
}

struct Shared {
    jobs: Mutex<Jobs>,
    wake: Condvar,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    /// Depths of the engines there are: room that is kept in the queue, so that submitting does not allocate.
    depth: usize,
    closed: bool,
}

struct Job {
    tag: u32,
    operation: Operation,
    file: Option<RawFd>,
    results: Arc<Results>,
}

/// Where threads leave what is over, for one engine.
struct Results {
    list: Mutex<VecDeque<Completion>>,
    /// Length of the list, readable without its lock.
    count: AtomicUsize,
    armed: AtomicBool,
    event: EventFd,
    /// Told of each result, for dropping an engine.
    added: Condvar,
}

impl Pool {
    /// A pool without threads: they come with engines.
    pub fn new(start: Option<ThreadStart>) -> Arc<Self> {
        let shared = Shared { jobs: Mutex::default(), wake: Condvar::new() };
        Arc::new(Self { shared: Arc::new(shared), threads: Mutex::new(0), start })
    }

    /// Makes sure of `more` further threads, within the limit.
    fn grow(&self, more: usize) -> io::Result<()> {
        let mut threads = lock(&self.threads);
        for _ in 0..more.min(THREADS_MAX.saturating_sub(*threads)) {
            let shared = Arc::clone(&self.shared);
            let start = self.start.clone();
            std::thread::Builder::new().name(format!("disk-io{threads}")).spawn(move || {
                if let Some(start) = start {
                    start();
                }
                shared.serve();
            })?;
            *threads = threads.saturating_add(1);
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.jobs).closed = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    /// A thread's life.
    fn serve(&self) {
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.queue.pop_front() {
                drop(jobs);
                let result = job.file.map_or(Err(io::Error::from_raw_os_error(libc::EBADF)), |file| {
                    // SAFETY: who submitted the operation keeps its memory valid until it is told of the result.
                    unsafe { perform(file, job.operation) }
                });
                job.results.add(Completion { tag: job.tag, result });
                jobs = lock(&self.jobs);
            } else if jobs.closed {
                return;
            } else {
                jobs = self.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Results {
    fn add(&self, completion: Completion) {
        let mut list = lock(&self.list);
        list.push_back(completion);
        // Under the lock, so that it is the list's length whenever the lock is free.
        self.count.store(list.len(), Ordering::SeqCst);
        drop(list);
        self.added.notify_all();
        if self.armed.swap(false, Ordering::SeqCst) {
            // It can only fail when the counter is at its limit, and then the event is readable.
            let _ = self.event.write(1);
        }
    }
}

/// Performs operations by the threads of a [`Pool`].
pub struct PoolEngine {
    pool: Arc<Pool>,
    files: Arc<[EngineFile]>,
    results: Arc<Results>,
    staged: Vec<Job>,
    depth: usize,
    in_flight: usize,
    armed: bool,
}

impl PoolEngine {
    /// A new engine for up to `depth` operations at once.
    ///
    /// # Errors
    /// When the host is out of threads or descriptors.
    pub fn new(pool: &Arc<Pool>, files: Arc<[EngineFile]>, depth: u32) -> io::Result<Self> {
        pool.grow(THREADS_PER_ENGINE)?;
        Self::on_event(pool, files, depth, EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?)
    }

    /// For what io_uring has no operation for: one thread is enough, and the event is the ring's.
    pub(super) fn beside_a_ring(
        pool: &Arc<Pool>,
        files: Arc<[EngineFile]>,
        depth: u32,
        event: &EventFd,
    ) -> io::Result<Self> {
        pool.grow(1)?;
        Self::on_event(pool, files, depth, event.try_clone()?)
    }

    fn on_event(pool: &Arc<Pool>, files: Arc<[EngineFile]>, depth: u32, event: EventFd) -> io::Result<Self> {
        let depth = depth as usize;
        let mut jobs = lock(&pool.shared.jobs);
        jobs.depth = jobs.depth.saturating_add(depth);
        let room = jobs.depth.saturating_sub(jobs.queue.len());
        jobs.queue.reserve(room);
        drop(jobs);
        let results = Results {
            list: Mutex::new(VecDeque::with_capacity(depth)),
            count: AtomicUsize::new(0),
            armed: AtomicBool::new(false),
            event,
            added: Condvar::new(),
        };
        Ok(Self {
            pool: Arc::clone(pool),
            files,
            results: Arc::new(results),
            staged: Vec::with_capacity(depth),
            depth,
            in_flight: 0,
            armed: false,
        })
    }
}

impl Engine for PoolEngine {
    fn name(&self) -> &'static str {
        "threads"
    }

    unsafe fn submit(&mut self, tag: u32, file: FileIndex, operation: Operation) {
        let file = self.files.get(usize::from(file.0)).map(|file| file.file.as_raw_fd());
        self.staged.push(Job { tag, operation, file, results: Arc::clone(&self.results) });
        self.in_flight = self.in_flight.saturating_add(1);
    }

    fn kick(&mut self) {
        let count = self.staged.len();
        if count == 0 {
            return;
        }
        lock(&self.pool.shared.jobs).queue.extend(self.staged.drain(..));
        if count == 1 {
            self.pool.shared.wake.notify_one();
        } else {
            self.pool.shared.wake.notify_all();
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        if self.results.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut list = lock(&self.results.list);
        let completion = list.pop_front()?;
        self.results.count.store(list.len(), Ordering::SeqCst);
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(completion)
    }

    fn has_work(&self) -> bool {
        self.results.count.load(Ordering::SeqCst) != 0 || !self.staged.is_empty()
    }

    fn arm(&mut self) -> bool {
        self.armed = true;
        self.results.armed.store(true, Ordering::SeqCst);
        self.has_work()
    }

    fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.results.armed.store(false, Ordering::SeqCst);
            // Nothing to read when the event was not raised.
            let _ = self.results.event.read();
        }
    }

    fn event(&self) -> RawFd {
        self.results.event.as_raw_fd()
    }
}

impl Drop for PoolEngine {
    fn drop(&mut self) {
        self.kick();
        let mut list = lock(&self.results.list);
        while list.len() < self.in_flight {
            list = self.results.added.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
        drop(list);
        // The room is not given back to the allocator: the next engine takes it.
        let mut jobs = lock(&self.pool.shared.jobs);
        jobs.depth = jobs.depth.saturating_sub(self.depth);
    }
}

/// Performs one operation, waiting for it.
///
/// # Safety
/// The operation's segments are valid.
unsafe fn perform(file: RawFd, operation: Operation) -> io::Result<u32> {
    let position =
        |offset: u64| i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    loop {
        let transferred = match operation {
            Operation::Read { offset, into, .. } => {
                let (iovecs, count, offset) = (into.iovecs(), into.count as i32, position(offset)?);
                // SAFETY: the caller says that the segments are valid.
                unsafe { libc::preadv64(file, iovecs, count, offset) }
            }
            Operation::Write { offset, from, stable, .. } => {
                let (iovecs, count, offset) = (from.iovecs(), from.count as i32, position(offset)?);
                let flags = if stable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: as above.
                unsafe { libc::pwritev2(file, iovecs, count, offset, flags) }
            }
            Operation::Sync => return host::fdatasync(file).map(|()| 0),
            Operation::Allocate { mode, offset, length } => {
                return host::fallocate(file, mode, offset, length).map(|()| 0);
            }
            Operation::DiscardDevice { offset, length } => {
                return host::device_discard(file, offset, length).map(|()| 0);
            }
        };
        match u32::try_from(transferred) {
            Ok(transferred) => return Ok(transferred),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest makes new engines with each reset of its disk.
    #[test]
    fn engines_that_come_and_go_take_no_more_room_than_those_that_stay() {
        let pool = Pool::new(None);
        let mut engine = PoolEngine::new(&pool, Arc::new([]), 64).unwrap();
        let room = || lock(&pool.shared.jobs).queue.capacity();
        let before = room();
        for _ in 0..100 {
            drop(engine);
            engine = PoolEngine::new(&pool, Arc::new([]), 64).unwrap();
        }
        assert_eq!(room(), before);
        let _second = PoolEngine::new(&pool, Arc::new([]), 64).unwrap();
        assert!(room() >= 128, "there is room for both");
    }
}
