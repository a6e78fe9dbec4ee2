//! Opening, locking, and how raw images do what is asked of them.

use super::stream::Layout;
use super::testing::{Fault, Memory, ScriptedEngine, TempFile};
use super::*;
use crate::engine::EngineKind;
use crate::host::{self, DirectAlignment};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

fn options(path: &Path) -> OpenOptions {
    OpenOptions { path: path.into(), ..OpenOptions::default() }
}

fn error(options: &OpenOptions) -> String {
    match open(options) {
        Ok(_) => panic!("{options:?} opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn each_wrong_path_has_its_own_error() {
    assert!(error(&options(Path::new("/nonexistent/a.raw"))).starts_with("no such file"));
    assert!(error(&options(Path::new("/dev/null/a.raw"))).starts_with("no such file"));
    assert!(error(&options(Path::new("/"))).contains("is a directory"));
    assert!(error(&options(Path::new("/dev/null"))).contains("a character device"));

    let file = TempFile::new(511);
    assert!(error(&options(file.path())).contains("has 511 bytes"));

    let fifo = file.path().with_extension("fifo");
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: the name is a C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let text = error(&options(&fifo));
    fs::remove_file(&fifo).unwrap();
    assert!(text.contains("a FIFO"), "{text}");
}

#[test]
fn a_file_without_write_permission_needs_readonly() {
    let file = TempFile::new(4096);
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o444)).unwrap();
    // Also for the superuser, whom the permission would not keep from writing.
    let text = error(&options(file.path()));
    assert!(text.contains("readonly=on"), "{text}");
    let image = open(&OpenOptions { read_only: true, ..options(file.path()) }).unwrap();
    assert!(image.read_only());
}

#[test]
fn what_does_not_fill_a_sector_is_not_seen() {
    let file = TempFile::new(5 * 512 + 100);
    assert_eq!(open(&options(file.path())).unwrap().size(), 5 * 512);
}

#[test]
fn two_disks_of_one_process_cannot_write_one_image() {
    let file = TempFile::new(4096);
    let writer = open(&options(file.path())).unwrap();
    assert_eq!(
        error(&options(file.path())),
        "image is already open for writing as another disk of this machine; give each disk its own"
    );
    let reading = OpenOptions { read_only: true, ..options(file.path()) };
    assert!(error(&reading).contains("open for writing"));
    drop(writer);
    let _readers = (open(&reading).unwrap(), open(&reading).unwrap());
    assert!(error(&options(file.path())).contains("open for reading"));
    assert!(open(&OpenOptions { no_lock: true, ..options(file.path()) }).is_ok());
}

#[test]
fn locks_of_qemu_are_understood() {
    let file = TempFile::new(4096);
    let reading = OpenOptions { read_only: true, ..options(file.path()) };
    // What it locks, from its documentation: byte 100 to read, 101 to write, 201 not to bear a writer.
    let qemu = File::options().read(true).write(true).open(file.path()).unwrap();
    assert!(
        host::try_lock(&qemu, false, (100, 1)).unwrap() && host::try_lock(&qemu, false, (201, 1)).unwrap()
    );
    assert!(open(&reading).is_ok());
    assert!(error(&options(file.path())).contains("open for reading"));
    assert!(host::try_lock(&qemu, false, (101, 1)).unwrap());
    assert!(error(&reading).contains("open for writing"));
    assert!(error(&options(file.path())).contains("open for writing"));
    drop(qemu);

    // It looks for a lock that stands against each of these before it reads or writes.
    let qemu = File::options().read(true).write(true).open(file.path()).unwrap();
    let reader = open(&reading).unwrap();
    assert_eq!(host::lock_holder(&qemu, (200, 1)), None, "it may read");
    assert!(host::lock_holder(&qemu, (201, 1)).is_some(), "it may not write");
    drop(reader);
    let _writer = open(&options(file.path())).unwrap();
    assert!(!host::try_lock(&qemu, false, (100, 1)).unwrap());
}

#[test]
fn same_images_are_found_behind_links() {
    let (a, b) = (TempFile::new(512), TempFile::new(512));
    let link = a.path().with_extension("link");
    std::os::unix::fs::symlink(a.path(), &link).unwrap();
    assert!(same_image(a.path(), &link));
    assert!(!same_image(a.path(), b.path()));
    assert!(!same_image(Path::new("/nonexistent"), Path::new("/nonexistent")));
    fs::remove_file(link).unwrap();
}

const HOLD: &str = "VIVARIUM_TEST_HOLD_IMAGE";

/// Not a test of its own: what the other process of the next test runs.
#[test]
fn holds_an_image_when_told_to() {
    let Some(path) = std::env::var_os(HOLD) else { return };
    let _image = open(&options(Path::new(&path))).unwrap();
    println!("held");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn another_process_that_has_the_image_is_named() {
    let file = TempFile::new(4096);
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image::tests::holds_an_image_when_told_to", "--nocapture"])
        .env(HOLD, file.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("held")), "the other process got the image");

    let text = error(&options(file.path()));
    drop(holder.stdin.take());
    let pid = holder.id();
    assert!(holder.wait().unwrap().success());
    assert_eq!(
        text,
        format!(
            "image is already open for writing by another process (pid {pid}); end that one, or give another image"
        )
    );
    open(&options(file.path())).unwrap();
}

#[test]
fn an_image_grows_and_never_shrinks() {
    let file = TempFile::new(4096);
    let image = open(&options(file.path())).unwrap();
    assert!(matches!(image.resize(2048), Err(ResizeError::Smaller { from: 4096, to: 2048 })));
    assert!(matches!(image.resize(4097), Err(ResizeError::Unaligned(4097))));
    image.resize(8192).unwrap();
    assert_eq!((image.size(), file.path().metadata().unwrap().len()), (8192, 8192));
    drop(image);
    let image = open(&OpenOptions { read_only: true, ..options(file.path()) }).unwrap();
    assert!(matches!(image.resize(16384), Err(ResizeError::ReadOnly)));
}

/// Runs one request to its end.
fn run(stream: &mut RawStream, request: Request<'_>) -> io::Result<()> {
    // SAFETY: the request's memory outlives this function, and the request does not.
    unsafe { stream.submit(0, request) };
    stream.kick();
    let completed = stream.complete().expect("the scripted engine never waits");
    assert_eq!(completed.tag, 0);
    assert!(stream.complete().is_none(), "a request ends once");
    completed.result
}

fn stream(engine: &ScriptedEngine, layout: Layout) -> RawStream {
    RawStream::new(Box::new(engine.clone()), 8, layout, layout.alignment.is_none().then(Arc::default))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn short_transfers_go_on_where_they_ended() {
    let faults = [Fault::Short(100), Fault::Short(1), Fault::Short(923), Fault::Short(1)];
    let engine = ScriptedEngine::new(pattern(8192), &faults);
    let mut memory = Memory { bytes: vec![0; 4096] };
    let into = memory.segments(0, &[100, 900, 0, 24, 1024, 2048]);
    run(&mut stream(&engine, Layout::default()), Request::Read { offset: 512, into: &into }).unwrap();
    assert_eq!(memory.bytes, pattern(8192)[512..4608]);
    let offsets = ["read 512 in 5", "read 612 in 4", "read 613 in 4", "read 1536 in 2", "read 1537 in 2"];
    assert_eq!(engine.log(), offsets);

    let engine = ScriptedEngine::new(vec![0; 8192], &[Fault::Short(513), Fault::Short(2)]);
    let from = memory.segments(0, &[1024, 1024]);
    let write = Request::Write { offset: 4096, from: &from, stable: true };
    run(&mut stream(&engine, Layout::default()), write).unwrap();
    assert_eq!(engine.bytes()[4096..6144], pattern(8192)[512..2560]);
    assert_eq!(engine.log(), ["write 4096 in 2 stable", "write 4609 in 2 stable", "write 4611 in 2 stable"]);
}

#[test]
fn a_file_that_ends_early_is_an_error_and_not_a_loop() {
    let engine = ScriptedEngine::new(pattern(700), &[]);
    let mut memory = Memory { bytes: vec![0; 1024] };
    let into = memory.segments(0, &[1024]);
    let result = run(&mut stream(&engine, Layout::default()), Request::Read { offset: 0, into: &into });
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn what_the_host_puts_off_is_tried_again_patiently_and_not_for_ever() {
    let again = Fault::Error(libc::EAGAIN);
    let engine = ScriptedEngine::new(pattern(1024), &[again, Fault::Short(512), again]);
    let mut memory = Memory { bytes: vec![0; 1024] };
    let into = memory.segments(0, &[1024]);
    run(&mut stream(&engine, Layout::default()), Request::Read { offset: 0, into: &into }).unwrap();
    assert_eq!(memory.bytes, pattern(1024));
    assert_eq!(
        engine.log(),
        ["read 0 in 1", "read 0 in 1 patient", "read 512 in 1", "read 512 in 1 patient"]
    );

    let engine = ScriptedEngine::new(pattern(1024), &[again; 100]);
    let result = run(&mut stream(&engine, Layout::default()), Request::Read { offset: 0, into: &into });
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
}

#[test]
fn errors_of_the_host_end_the_request() {
    for errno in [libc::EIO, libc::ENOSPC, libc::EINVAL, libc::EOPNOTSUPP] {
        let engine = ScriptedEngine::new(vec![0; 1024], &[Fault::Short(512), Fault::Error(errno)]);
        let mut memory = Memory { bytes: pattern(1024) };
        let from = memory.segments(0, &[1024]);
        let mut stream = stream(&engine, Layout::default());
        let write = Request::Write { offset: 0, from: &from, stable: false };
        assert_eq!(run(&mut stream, write).unwrap_err().raw_os_error(), Some(errno));
        run(&mut stream, write).unwrap();
        assert_eq!(engine.bytes(), pattern(1024), "the stream goes on after an error");
    }
}

/// The kernel drops what it could not write back, and tells one sync of it.
#[test]
fn a_flush_that_failed_is_not_made_good_by_the_next_one() {
    let engine = || ScriptedEngine::new(vec![0; 4096], &[Fault::Error(libc::EIO)]);
    let errno = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    let mut buffered = stream(&engine(), Layout::default());
    assert_eq!(errno(run(&mut buffered, Request::Flush)), Some(libc::EIO));
    assert_eq!(errno(run(&mut buffered, Request::Flush)), Some(libc::EIO));

    // Another queue's flush is the first that the kernel tells.
    let cache = Some(Arc::default());
    let of_cache = |engine| RawStream::new(Box::new(engine), 8, Layout::default(), Option::clone(&cache));
    assert!(run(&mut of_cache(engine()), Request::Flush).is_err());
    assert!(run(&mut of_cache(ScriptedEngine::new(Vec::new(), &[])), Request::Flush).is_err());

    let alignment = Some(DirectAlignment { memory: 512, offset: 512 });
    let mut direct = stream(&engine(), Layout { alignment, ..Layout::default() });
    assert!(run(&mut direct, Request::Flush).is_err());
    run(&mut direct, Request::Flush).expect("direct I/O leaves nothing in the cache");
}

#[test]
fn more_segments_than_a_system_call_takes_are_transferred_in_turns() {
    let lengths = [512; 2500];
    let engine = ScriptedEngine::new(pattern(2500 * 512), &[]);
    let mut memory = Memory { bytes: vec![0; 2500 * 512] };
    let into = memory.segments(0, &lengths);
    run(&mut stream(&engine, Layout::default()), Request::Read { offset: 0, into: &into }).unwrap();
    assert_eq!(memory.bytes, pattern(2500 * 512));
    assert_eq!(engine.log(), ["read 0 in 1024", "read 524288 in 1024", "read 1048576 in 452"]);
}

#[test]
fn zeroing_falls_back_to_writing_zeroes() {
    let unsupported = Fault::Error(libc::EOPNOTSUPP);
    let length = (1 << 20) + 4096;
    let zeroes = |unmap, stable| Request::WriteZeroes { offset: 512, length, unmap, stable };
    let filled = vec![0xff; length as usize + 1024];
    let mut expected = filled.clone();
    expected[512..512 + length as usize].fill(0);

    let engine = ScriptedEngine::new(filled.clone(), &[unsupported, unsupported]);
    let mut stream = stream(&engine, Layout::default());
    run(&mut stream, zeroes(true, true)).unwrap();
    assert_eq!(engine.bytes(), expected);
    let range = format!("512+{length}");
    let written = ["write 512 in 16 stable", "write 1049088 in 1 stable"];
    assert_eq!(engine.log()[..2], [format!("punch {range}"), format!("zero {range}")]);
    assert_eq!(engine.log()[2..], written);

    // What cannot be done is not tried again.
    run(&mut stream, zeroes(true, false)).unwrap();
    assert_eq!(engine.log()[4..], ["write 512 in 16", "write 1049088 in 1"]);

    for (unmap, first) in [(true, "punch"), (false, "zero")] {
        let engine = ScriptedEngine::new(filled.clone(), &[]);
        run(&mut self::stream(&engine, Layout::default()), zeroes(unmap, true)).unwrap();
        assert_eq!(engine.bytes(), expected);
        assert_eq!(engine.log(), [format!("{first} {range}"), "sync".to_owned()]);
    }

    // A range that a device refuses for its alignment is written; the next one is tried as ever.
    let engine = ScriptedEngine::new(filled, &[Fault::Error(libc::EINVAL), Fault::Error(libc::EINVAL)]);
    let mut stream = self::stream(&engine, Layout::default());
    run(&mut stream, zeroes(true, false)).unwrap();
    assert_eq!(engine.bytes(), expected);
    run(&mut stream, zeroes(true, false)).unwrap();
    assert!(engine.log().last().unwrap().starts_with("punch"));
}

#[test]
fn zeroing_that_fails_for_good_says_so() {
    let engine = ScriptedEngine::new(vec![1; 1024], &[Fault::Error(libc::ENOSPC)]);
    let zeroes = Request::WriteZeroes { offset: 0, length: 1024, unmap: false, stable: false };
    let result = run(&mut stream(&engine, Layout::default()), zeroes);
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn discarding_is_a_hint() {
    let engine = ScriptedEngine::new(vec![1; 65536], &[Fault::Error(libc::EOPNOTSUPP)]);
    let mut stream = stream(&engine, Layout { device: true, logical_block: 4096, ..Layout::default() });
    // Only whole blocks within the range are thrown away.
    for (offset, length) in [(512, 8192), (4096, 4096), (4608, 3584)] {
        run(&mut stream, Request::Discard { offset, length }).unwrap();
    }
    assert_eq!(
        engine.log(),
        ["discard 4096+4096"],
        "neither partial blocks, nor again what is not supported"
    );
    assert!(engine.bytes().iter().all(|byte| *byte == 1));
}

#[test]
fn direct_io_bounces_what_is_not_aligned_and_nothing_else() {
    let alignment = DirectAlignment { memory: 512, offset: 512 };
    let layout = Layout { alignment: Some(alignment), logical_block: 512, device: false };
    let mut memory = Memory { bytes: vec![0; 600 << 10] };
    let start = memory.bytes.as_ptr().align_offset(512);

    let engine = ScriptedEngine::new(pattern(1 << 20), &[]);
    let mut stream = stream(&engine, layout);
    let into = memory.segments(start, &[512, 4096]);
    run(&mut stream, Request::Read { offset: 512, into: &into }).unwrap();
    assert_eq!(engine.log(), ["read 512 in 2"]);

    // Misaligned by address, and by a length in the middle; larger than the bounce buffer.
    let length = (512 << 10) + 512;
    for lengths in [vec![length], vec![100, length - 612, 512]] {
        memory.bytes.fill(0);
        let skew = usize::from(lengths.len() == 1);
        let into = memory.segments(start + skew, &lengths);
        run(&mut stream, Request::Read { offset: 1024, into: &into }).unwrap();
        let read = &memory.bytes[start + skew..][..length];
        assert!(*read == pattern(1 << 20)[1024..][..length]);
        assert!(memory.bytes[..start + skew].iter().all(|byte| *byte == 0));
        assert!(memory.bytes[start + skew + length..].iter().all(|byte| *byte == 0));
    }
    let calls = ["read 1024 in 1", "read 263168 in 1", "read 525312 in 1"];
    assert_eq!(engine.log()[1..4], calls);

    memory.bytes = pattern(600 << 10);
    let from = memory.segments(start + 3, &[length]);
    run(&mut stream, Request::Write { offset: 2048, from: &from, stable: true }).unwrap();
    assert!(engine.bytes()[2048..][..length] == pattern(600 << 10)[start + 3..][..length]);
    assert!(engine.log().last().unwrap().ends_with("stable"));
}

#[test]
fn requests_wait_their_turn_for_the_bounce_buffer() {
    let alignment = DirectAlignment { memory: 512, offset: 512 };
    let layout = Layout { alignment: Some(alignment), logical_block: 512, device: false };
    let engine = ScriptedEngine::new(pattern(8192), &[Fault::Error(libc::EIO)]);
    let mut stream = stream(&engine, layout);
    let mut memory = Memory { bytes: vec![0; 8192] };
    let start = memory.bytes.as_ptr().align_offset(512) + 1;
    for tag in 0..5_u16 {
        let into = memory.segments(start + usize::from(tag) * 1024, &[1024]);
        // SAFETY: the memory outlives the stream.
        unsafe { stream.submit(tag, Request::Read { offset: u64::from(tag) * 1024, into: &into }) };
    }
    assert_eq!(engine.log().len(), 1, "one at a time");
    let mut ended: Vec<_> =
        std::iter::from_fn(|| stream.complete()).map(|c| (c.tag, c.result.is_ok())).collect();
    ended.sort_unstable();
    assert_eq!(ended, [(0, false), (1, true), (2, true), (3, true), (4, true)]);
    assert_eq!(memory.bytes[start + 1024..][..4096], pattern(8192)[1024..5120]);
}

#[test]
fn direct_io_refuses_what_does_not_fill_blocks() {
    let alignment = DirectAlignment { memory: 4, offset: 4096 };
    let layout = Layout { alignment: Some(alignment), logical_block: 4096, device: false };
    let engine = ScriptedEngine::new(vec![0; 16384], &[]);
    let mut stream = stream(&engine, layout);
    let mut memory = Memory { bytes: vec![0; 8192] };
    for (offset, length) in [(512, 4096), (0, 512), (4096, 4608)] {
        let from = memory.segments(0, &[length]);
        let result = run(&mut stream, Request::Write { offset, from: &from, stable: false });
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL), "{offset}+{length}");
    }
    assert!(engine.log().is_empty());
}

#[test]
fn a_real_file_does_direct_io() {
    let file = TempFile::new(0);
    File::options().write(true).open(file.path()).unwrap().write_all(&pattern(1 << 20)).unwrap();
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        let image = match open(&OpenOptions { direct: true, engine, ..options(file.path()) }) {
            Err(OpenError::DirectUnsupported) => {
                println!("not tested: {} has no direct I/O", std::env::temp_dir().display());
                return;
            }
            image => image.unwrap(),
        };
        let mut stream = image.stream(4).unwrap();
        let mut memory = Memory { bytes: vec![0; 64 << 10] };
        // Aligned nowhere.
        let start = memory.bytes.as_ptr().align_offset(4096) + 1;
        let into = memory.segments(start, &[8192]);
        // SAFETY: the memory outlives the request.
        unsafe { stream.submit(3, Request::Read { offset: 4096, into: &into }) };
        assert_eq!(wait(stream.as_mut()).tag, 3);
        assert!(memory.bytes[start..][..8192] == pattern(1 << 20)[4096..][..8192]);
    }
}

/// Waits for a request to end.
pub(crate) fn wait(stream: &mut dyn Stream) -> Completed {
    loop {
        stream.kick();
        if let Some(completed) = stream.complete() {
            completed.result.as_ref().unwrap();
            return completed;
        }
        if !stream.arm() {
            let mut ready = libc::pollfd { fd: stream.event(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one `pollfd` is passed.
            assert_eq!(unsafe { libc::poll(&raw mut ready, 1, 10_000) }, 1, "the request ends");
        }
        stream.disarm();
    }
}

#[test]
fn discarded_and_zeroed_ranges_give_their_space_back() {
    use std::os::unix::fs::MetadataExt;
    let file = TempFile::new(0);
    File::options().write(true).open(file.path()).unwrap().write_all(&pattern(4 << 20)).unwrap();
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        let image = open(&OpenOptions { engine, ..options(file.path()) }).unwrap();
        let mut stream = image.stream(4).unwrap();
        image.flush().unwrap();
        let before = file.path().metadata().unwrap().blocks();
        let base = if engine == EngineKind::IoUring { 0 } else { 2 << 20 };
        let zeroes = Request::WriteZeroes { offset: base, length: 1 << 20, unmap: true, stable: true };
        let keep =
            Request::WriteZeroes { offset: base + (1 << 20), length: 4096, unmap: false, stable: true };
        for request in [zeroes, keep, Request::Discard { offset: base + (1 << 20) + 65536, length: 65536 }] {
            // SAFETY: these requests have no memory.
            unsafe { stream.submit(0, request) };
            wait(stream.as_mut());
        }
        let freed = before - file.path().metadata().unwrap().blocks();
        // The first and the last, give or take what the file system needs for itself.
        assert!((2150..=2200).contains(&freed), "{freed} sectors freed");
        let bytes = fs::read(file.path()).unwrap();
        let base = base as usize;
        assert!(bytes[base..base + (1 << 20) + 4096].iter().all(|byte| *byte == 0));
        assert_eq!(
            bytes[base + (1 << 20) + 4096..][..4096],
            pattern(4 << 20)[base + (1 << 20) + 4096..][..4096]
        );
    }
}

#[test]
fn images_are_shared_by_threads() {
    fn shared<T: Send + Sync + ?Sized>(_: &T) {}
    let file = TempFile::new(4096);
    let image: Arc<dyn Image> = open(&options(file.path())).unwrap();
    shared(&*image);
}
