//! Both engines by the same tests, on real files.

use super::*;
use crate::image::testing::{Memory, TempFile};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

const KINDS: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Threads];
const FILE: FileIndex = FileIndex(0);

struct Rig {
    _path: TempFile,
    file: Arc<File>,
    engines: Engines,
}

fn rig(kind: EngineKind, contents: &[u8]) -> Rig {
    let path = TempFile::new(0);
    fs::write(path.path(), contents).unwrap();
    let file = Arc::new(File::options().read(true).write(true).open(path.path()).unwrap());
    Rig { _path: path, file, engines: Engines::new(kind, true, None).unwrap() }
}

impl Rig {
    fn engine(&self, depth: u32) -> Box<dyn Engine> {
        let file = EngineFile { file: self.file.clone(), direct: false };
        self.engines.engine(vec![file], depth).unwrap()
    }
}

/// The next completion, waiting for it as a worker does.
fn wait(engine: &mut dyn Engine) -> Completion {
    loop {
        engine.kick();
        if let Some(completion) = engine.complete() {
            return completion;
        }
        if !engine.arm() {
            let mut ready = libc::pollfd { fd: engine.event(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one `pollfd` is passed.
            assert_eq!(unsafe { libc::poll(&raw mut ready, 1, 10_000) }, 1, "the operation ends");
        }
        engine.disarm();
    }
}

fn readable(engine: &dyn Engine) -> bool {
    let mut ready = libc::pollfd { fd: engine.event(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one `pollfd` is passed.
    unsafe { libc::poll(&raw mut ready, 1, 0) == 1 }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn many_operations_at_once_end_once_each() {
    for kind in KINDS {
        let rig = rig(kind, &pattern(64 * 4096));
        // More operations than ring entries that fit one page, more than threads.
        let mut engine = rig.engine(64);
        let mut memory = Memory { bytes: vec![0; 64 * 4096] };
        for round in 0..10 {
            memory.bytes.fill(0);
            let segments: Vec<_> = (0..64)
                .map(|i| memory.segments(i * 4096, if i % 2 == 0 { &[4096] } else { &[96, 4000] }))
                .collect();
            for (tag, segments) in segments.iter().enumerate() {
                let into = Segments::of(segments);
                let read = Operation::Read { offset: tag as u64 * 4096, into, patient: round == 9 };
                // SAFETY: memory and segments outlive the operations, which end in this round.
                unsafe { engine.submit(tag as u32, FILE, read) };
            }
            let ended: BTreeSet<_> = (0..64)
                .map(|_| {
                    let completion = wait(engine.as_mut());
                    assert_eq!(completion.result.unwrap(), 4096);
                    completion.tag
                })
                .collect();
            assert_eq!(ended.len(), 64);
            assert!(engine.complete().is_none() && !engine.has_work());
            assert!(memory.bytes == pattern(64 * 4096), "{kind:?}");
        }
    }
}

#[test]
fn a_read_that_comes_alone_and_a_write_are_done() {
    for kind in KINDS {
        let rig = rig(kind, &pattern(8192));
        let mut engine = rig.engine(2);
        let mut memory = Memory { bytes: vec![0; 4096] };
        let segments = memory.segments(0, &[4096]);
        let (into, from) = (Segments::of(&segments), Segments::of(&segments));
        // SAFETY: memory and segments outlive the operations.
        unsafe {
            engine.submit(1, FILE, Operation::Read { offset: 6000, into, patient: false });
            assert_eq!(wait(engine.as_mut()).result.unwrap(), 2192, "up to the end of the file");
            engine.submit(0, FILE, Operation::Read { offset: 8192, into, patient: false });
            assert_eq!(wait(engine.as_mut()).result.unwrap(), 0);
            for (tag, stable) in [(0, false), (1, true)] {
                engine.submit(tag, FILE, Operation::Write { offset: 4000, from, stable, patient: false });
                let completion = wait(engine.as_mut());
                assert_eq!((completion.tag, completion.result.unwrap()), (tag, 4096));
            }
            engine.submit(1, FILE, Operation::Sync);
            assert_eq!(wait(engine.as_mut()).result.unwrap(), 0);
        }
        let mut written = vec![0; 4096];
        rig.file.read_exact_at(&mut written, 4000).unwrap();
        assert_eq!(written[..2192], pattern(8192)[6000..]);
        assert!(written[2192..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn errors_of_the_kernel_come_back_under_their_tag() {
    for kind in KINDS {
        let rig = rig(kind, &pattern(4096));
        let mut engine = rig.engine(4);
        let segments = [Segment::new(std::ptr::without_provenance_mut(1), 512)];
        let from = Segments::of(&segments);
        let operations = [
            (Operation::Write { offset: 0, from, stable: false, patient: false }, libc::EFAULT),
            (Operation::Allocate { mode: 0x4000, offset: 0, length: 1 }, libc::EOPNOTSUPP),
            (Operation::DiscardDevice { offset: 0, length: 512 }, libc::ENOTTY),
            (Operation::Allocate { mode: 0, offset: 0, length: 0 }, libc::EINVAL),
        ];
        for (tag, (operation, errno)) in operations.into_iter().enumerate() {
            // SAFETY: the kernel finds out that the memory is not there.
            unsafe { engine.submit(tag as u32, FILE, operation) };
            let completion = wait(engine.as_mut());
            assert_eq!(completion.tag, tag as u32);
            assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(errno), "{operation:?} {kind:?}");
        }
        // SAFETY: no memory is involved.
        unsafe { engine.submit(0, FileIndex(7), Operation::Sync) };
        assert_eq!(wait(engine.as_mut()).result.unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}

#[test]
fn the_event_is_raised_when_armed_and_only_then() {
    for kind in KINDS {
        let rig = rig(kind, &pattern(4096));
        let mut engine = rig.engine(4);
        assert!(!engine.arm(), "nothing is over");
        assert!(!readable(engine.as_ref()));
        // SAFETY: no memory is involved.
        unsafe { engine.submit(0, FILE, Operation::Sync) };
        engine.kick();
        while !readable(engine.as_ref()) {
            std::thread::yield_now();
        }
        assert!(engine.has_work());
        engine.disarm();
        assert!(!readable(engine.as_ref()), "the event was consumed");
        assert_eq!(engine.complete().unwrap().tag, 0);

        // SAFETY: as above.
        unsafe { engine.submit(1, FILE, Operation::Sync) };
        engine.kick();
        while !engine.has_work() {
            std::thread::yield_now();
        }
        assert!(!readable(engine.as_ref()), "who is awake needs no event");
        assert!(engine.arm(), "who wants to sleep is told that there is work");
        assert_eq!(engine.complete().unwrap().tag, 1);
    }
}

#[test]
fn dropping_an_engine_waits_for_its_operations() {
    for kind in KINDS {
        let rig = rig(kind, &[]);
        let mut memory = Memory { bytes: pattern(64 * 4096) };
        let segments: Vec<_> = (0..64).map(|i| memory.segments(i * 4096, &[4096])).collect();
        let mut engine = rig.engine(64);
        for (tag, segments) in segments.iter().enumerate() {
            let from = Segments::of(segments);
            let write = Operation::Write { offset: tag as u64 * 4096, from, stable: true, patient: false };
            // SAFETY: memory and segments outlive the engine.
            unsafe { engine.submit(tag as u32, FILE, write) };
        }
        drop(engine);
        let mut written = vec![0; 64 * 4096];
        rig.file.read_exact_at(&mut written, 0).unwrap();
        assert!(written == memory.bytes, "{kind:?}");
    }
}

#[test]
fn an_engine_moves_between_threads_with_operations_in_flight() {
    for kind in KINDS {
        let rig = rig(kind, &pattern(4096));
        let mut engine = rig.engine(8);
        for thread in 0..8 {
            engine = std::thread::scope(|scope| {
                let own = scope.spawn(move || {
                    // SAFETY: no memory is involved.
                    unsafe { engine.submit(thread, FILE, Operation::Sync) };
                    engine.kick();
                    engine
                });
                own.join().unwrap()
            });
        }
        let ended: BTreeSet<_> = (0..8).map(|_| wait(engine.as_mut()).tag).collect();
        assert_eq!(ended, (0..8).collect());
    }
}

#[test]
fn each_thread_that_is_started_says_so_first() {
    let started = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&started);
    let start: ThreadStart = Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let path = TempFile::new(4096);
    let file = Arc::new(File::open(path.path()).unwrap());
    let engines = Engines::new(EngineKind::Threads, false, Some(start)).unwrap();
    let files = || vec![EngineFile { file: file.clone(), direct: false }];
    let mut some: Vec<_> = (0..8).map(|_| engines.engine(files(), 4).unwrap()).collect();
    for engine in &mut some {
        // SAFETY: no memory is involved.
        unsafe { engine.submit(0, FILE, Operation::Sync) };
        wait(engine.as_mut()).result.unwrap();
    }
    while started.load(Ordering::SeqCst) < 16 {
        std::thread::yield_now();
    }
    assert_eq!(started.load(Ordering::SeqCst), 16, "the number of threads is limited");
}

/// Lets this thread, and those it starts, no longer make a system call: it fails as not permitted.
fn forbid(call: libc::c_long) {
    // From linux/filter.h and linux/seccomp.h: load the call's number; if it is the one, fail; else allow.
    let statement = |code: u16, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        statement((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, call as u32),
        statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is valid while it is passed.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}

#[test]
fn threads_take_over_where_io_uring_is_not_allowed() {
    let restricted = std::thread::spawn(|| {
        forbid(libc::SYS_io_uring_setup);
        let error = Engines::new(EngineKind::IoUring, false, None).err().expect("io_uring is not to be had");
        assert!(
            error.to_string().starts_with("io_uring cannot be used here: Operation not permitted"),
            "{error}"
        );
        let rig = rig(EngineKind::Auto, &pattern(512));
        let mut engine = rig.engine(1);
        assert_eq!(engine.name(), "threads");
        // SAFETY: no memory is involved.
        unsafe { engine.submit(0, FILE, Operation::Sync) };
        wait(engine.as_mut()).result.unwrap();
    });
    restricted.join().unwrap();
}

#[test]
fn a_ring_that_stops_working_fails_its_operations_and_does_not_hang() {
    let rig = rig(EngineKind::IoUring, &[]);
    let mut engine = rig.engine(4);
    let restricted = std::thread::spawn(move || {
        forbid(libc::SYS_io_uring_enter);
        for _ in 0..2 {
            for tag in 0..4 {
                // SAFETY: no memory is involved.
                unsafe { engine.submit(tag, FILE, Operation::Sync) };
            }
            let ended: BTreeSet<_> = (0..4)
                .map(|_| {
                    let completion = wait(engine.as_mut());
                    assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(libc::EPERM));
                    completion.tag
                })
                .collect();
            assert_eq!(ended.len(), 4);
        }
    });
    restricted.join().unwrap();
}
