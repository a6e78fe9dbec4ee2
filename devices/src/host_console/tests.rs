use super::system::wait_readable;
use super::*;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A path of this test's own, removed at its end.
struct Place(PathBuf);

fn place(name: &str) -> Place {
    Place(std::env::temp_dir().join(format!("vivarium-host-console-{}-{name}", std::process::id())))
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Longer than any machine takes; reached only by a test that fails.
const LONG: Duration = Duration::from_secs(20);

/// Services the console, waiting for its events, until `done`.
fn drive(console: &mut HostConsole, mut done: impl FnMut(&mut HostConsole) -> bool) {
    loop {
        console.service();
        if done(console) {
            return;
        }
        assert!(
            wait_readable(console.fd(), LONG),
            "the console's descriptor never told: {}",
            console.inspect()
        );
    }
}

/// Reads exactly `count` bytes of input.
fn input(console: &mut HostConsole, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    drive(console, |console| {
        let mut buffer = [0; 100];
        let got = console.read(&mut buffer);
        all.extend_from_slice(&buffer[..got]);
        all.len() >= count
    });
    all
}

/// Reads exactly `count` bytes from a descriptor, waiting for them.
fn take<T: AsRawFd>(from: &T, count: usize) -> Vec<u8>
where
    for<'a> &'a T: Read,
{
    let mut from = from;
    let mut all = vec![0; count];
    let mut done = 0;
    while done < count {
        assert!(wait_readable(from.as_raw_fd(), LONG), "only {done} of {count} bytes came");
        done += from.read(&mut all[done..]).unwrap();
    }
    all
}

fn idle(console: &HostConsole) -> bool {
    !wait_readable(console.fd(), Duration::ZERO)
}

#[test]
fn a_file_is_written_to_by_what_carries_it_and_not_by_the_device() {
    let place = place("file");
    std::fs::write(&place.0, "of an earlier run").unwrap();
    let (mut output, pump) = connect(&Mode::File(place.0.clone())).unwrap();
    let mut pump = pump.unwrap();
    output.write(b"one ");
    output.write(b"two\n");
    // The machine may still not come to be.
    assert_eq!(std::fs::read(&place.0).unwrap(), b"of an earlier run");
    pump.begin();
    assert_eq!(std::fs::read(&place.0).unwrap(), b"");
    assert!(wait_readable(pump.fd(), LONG) && pump.console().may_wait());
    pump.ready();
    assert_eq!(std::fs::read(&place.0).unwrap(), b"one two\n");
    output.write(b"three");
    pump.finish();
    assert_eq!(std::fs::read(&place.0).unwrap(), b"one two\nthree");
}

#[test]
fn a_fifo_that_is_full_goes_on_when_it_is_read() {
    let place = place("fifo");
    let path = std::ffi::CString::new(place.0.to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&place.0).unwrap();
    let mut console = HostConsole::open(&Mode::File(place.0.clone())).unwrap();
    for _ in 0..24 {
        console.write(&[b'x'; 4096]);
    }
    assert!(console.backlog() > 0 && idle(&console));
    let mut seen = Vec::new();
    while seen.len() < 24 * 4096 {
        assert!(wait_readable(reader.as_raw_fd(), LONG), "only {} bytes came", seen.len());
        // The end of what is there now.
        let _ = reader.read_to_end(&mut seen);
        console.service();
    }
    assert!(console.backlog() == 0 && idle(&console));
}

#[test]
fn what_cannot_be_opened_is_named() {
    for mode in [
        Mode::File(PathBuf::from("/nonexistent/log")),
        Mode::Socket(PathBuf::from("/nonexistent/console.sock")),
        Mode::File(PathBuf::from("/")),
    ] {
        let error = connect(&mode).err().unwrap();
        assert!(error.to_string().contains(&error.path.display().to_string()), "{error}");
    }
}

#[test]
fn a_full_disk_costs_output_and_nothing_else() {
    let mut console = HostConsole::open(&Mode::File(PathBuf::from("/dev/full"))).unwrap();
    console.write(b"lost");
    assert_eq!((console.backlog(), console.inspect()["bytes_given_up"].clone()), (0, json!(4)));
}

#[test]
fn a_late_client_sees_the_recent_output_first() {
    let place = place("late");
    let mut console = HostConsole::open(&Mode::Socket(place.0.clone())).unwrap();
    let output: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    console.write(&output);
    assert!(idle(&console));
    let client = UnixStream::connect(&place.0).unwrap();
    drive(&mut console, |console| console.has_peer());
    console.write(b"and now");
    let reader = std::thread::spawn(move || take(&client, 65_536 + 7));
    drive(&mut console, |console| console.backlog() == 0);
    let seen = reader.join().unwrap();
    assert_eq!(seen[..65_536], output[100_000 - 65_536..]);
    assert_eq!(&seen[65_536..], b"and now");
    assert_eq!(console.inspect()["bytes_given_up"], 0);
}

#[test]
fn clients_are_served_in_turn_and_their_last_words_kept() {
    let place = place("turn");
    let mut console = HostConsole::open(&Mode::Socket(place.0.clone())).unwrap();
    let mut first = UnixStream::connect(&place.0).unwrap();
    let mut second = UnixStream::connect(&place.0).unwrap();
    drive(&mut console, |console| console.has_peer());
    second.write_all(b"second").unwrap();
    // The guest has no room for input while the first writes and leaves.
    console.want_input(false);
    first.write_all(b"first").unwrap();
    assert!(idle(&console), "input that is not wanted wakes nobody");
    drop(first);
    drive(&mut console, |console| console.inspect()["peer"]["clients"] == 2);
    console.want_input(true);
    assert_eq!(input(&mut console, 11), b"firstsecond");
    drop(second);
    drive(&mut console, |console| !console.has_peer());
    assert!(idle(&console));
}

#[test]
fn a_client_that_has_said_all_still_listens() {
    let place = place("half");
    let mut console = HostConsole::open(&Mode::Socket(place.0.clone())).unwrap();
    let mut client = UnixStream::connect(&place.0).unwrap();
    client.write_all(b"poweroff\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(input(&mut console, 9), b"poweroff\n");
    assert_eq!(console.read(&mut [0; 10]), 0);
    console.service();
    assert!(idle(&console), "the end of input is told once");
    console.write(b"bye");
    assert_eq!(take(&client, 3), b"bye");
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let place = place("dead");
    drop(std::os::unix::net::UnixListener::bind(&place.0).unwrap());
    let console = HostConsole::open(&Mode::Socket(place.0.clone())).unwrap();
    let error = HostConsole::open(&Mode::Socket(place.0.clone())).err().unwrap();
    assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    drop(console);
    assert!(!place.0.exists());
}

#[test]
fn a_slow_client_costs_the_oldest_output() {
    let place = place("slow");
    let mut console = HostConsole::open(&Mode::Socket(place.0.clone())).unwrap();
    let client = UnixStream::connect(&place.0).unwrap();
    drive(&mut console, |console| console.has_peer());
    let piece = [b'x'; 4096];
    for _ in 0..1000 {
        console.write(&piece);
    }
    console.write(b"the end");
    let waiting = console.backlog();
    let given_up = console.inspect()["bytes_given_up"].as_u64().unwrap() as usize;
    assert!(waiting <= 65_536 && given_up > 0);
    let total = 4096 * 1000 + 7 - given_up;
    let reader = std::thread::spawn(move || take(&client, total));
    drive(&mut console, |console| console.backlog() == 0);
    assert_eq!(&reader.join().unwrap()[total - 7..], b"the end");
}

fn open_terminal(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
}

#[test]
fn a_pseudo_terminal_is_linked_attached_and_left() {
    let place = place("pty");
    let mut console = HostConsole::open(&Mode::Pty(Some(place.0.clone()))).unwrap();
    console.write(b"before anybody");
    assert!(!console.has_peer() && idle(&console));
    for round in 0..3 {
        let mut user = open_terminal(&place.0);
        drive(&mut console, |console| console.has_peer());
        let seen = take(&user, 14);
        assert_eq!(seen, b"before anybody", "round {round}");
        user.write_all(b"ls\n").unwrap();
        assert_eq!(input(&mut console, 3), b"ls\n", "unchanged and not echoed");
        drop(user);
        drive(&mut console, |console| !console.has_peer());
        assert!(idle(&console), "a hang-up is told once");
    }
    drop(console);
    assert!(place.0.symlink_metadata().is_err(), "the link goes with the console");
}

#[test]
fn the_next_user_does_not_get_what_the_last_one_left_unread() {
    let place = place("pty-unread");
    let mut console = HostConsole::open(&Mode::Pty(Some(place.0.clone()))).unwrap();
    console.write(b"once");
    let user = open_terminal(&place.0);
    drive(&mut console, |console| console.has_peer());
    assert!(wait_readable(user.as_raw_fd(), LONG));
    drop(user);
    drive(&mut console, |console| !console.has_peer());
    let user = open_terminal(&place.0);
    drive(&mut console, |console| console.has_peer());
    console.write(b", twice");
    assert_eq!(take(&user, 11), b"once, twice");
}

#[test]
fn what_a_user_typed_before_leaving_is_kept() {
    let place = place("pty-leave");
    let mut console = HostConsole::open(&Mode::Pty(Some(place.0.clone()))).unwrap();
    console.want_input(false);
    let mut user = open_terminal(&place.0);
    drive(&mut console, |console| console.has_peer());
    user.write_all(b"halt\n").unwrap();
    drop(user);
    drive(&mut console, |console| !console.has_peer());
    console.want_input(true);
    let mut buffer = [0; 100];
    let count = console.read(&mut buffer);
    assert_eq!(&buffer[..count], b"halt\n");
}

mod pumped {
    use super::*;
    use crate::serial::Serial;
    use machine::bus::BusDevice;
    use machine::doorbell::Doorbell;
    use machine::interrupt::InterruptLine;
    use machine::interrupt::recording::Pins;
    use std::sync::{Arc, Mutex};

    struct Bench {
        serial: Arc<Mutex<Serial>>,
        pump: ConsolePump,
        client: UnixStream,
        _place: Place,
    }

    fn bench(name: &str) -> Bench {
        let place = place(name);
        let (output, pump) = connect(&Mode::Socket(place.0.clone())).unwrap();
        let mut pump = pump.unwrap();
        let room = Doorbell::new().unwrap();
        let line = InterruptLine::new(Arc::new(Pins::default()), 4);
        let serial = Arc::new(Mutex::new(Serial::new(line, output, room.clone())));
        pump.set_input(serial.clone(), room).unwrap();
        let client = UnixStream::connect(&place.0).unwrap();
        pump.ready();
        Bench { serial, pump, client, _place: place }
    }

    impl Bench {
        fn read(&self, offset: u64) -> u8 {
            let mut data = [0];
            self.serial.lock().unwrap().read(offset, &mut data);
            data[0]
        }

        fn write(&self, offset: u64, value: u8) {
            self.serial.lock().unwrap().write(offset, &[value]);
        }
    }

    #[test]
    fn a_line_of_the_guest_reaches_the_client() {
        let mut bench = bench("pump-out");
        for byte in b"login: " {
            bench.write(0, *byte);
        }
        // No line end: the gathering time wakes the pump.
        assert!(wait_readable(bench.pump.fd(), LONG));
        bench.pump.ready();
        assert_eq!(take(&bench.client, 7), b"login: ");
        assert!(!wait_readable(bench.pump.fd(), Duration::ZERO));
    }

    #[test]
    fn a_paste_reaches_the_guest_whole() {
        let mut bench = bench("pump-in");
        let paste: Vec<u8> = (0..10_000_u32).map(|n| (n % 96) as u8 + 32).collect();
        bench.client.write_all(&paste).unwrap();
        bench.pump.ready();
        assert!(
            !wait_readable(bench.pump.fd(), Duration::ZERO),
            "the guest does not listen, so nothing is to do"
        );
        bench.write(2, 1);
        bench.write(4, 2);
        let mut got = Vec::new();
        while got.len() < paste.len() {
            assert!(wait_readable(bench.pump.fd(), LONG));
            bench.pump.ready();
            while bench.read(5) & 1 != 0 {
                got.push(bench.read(0));
            }
        }
        assert_eq!(got, paste);
    }

    #[test]
    fn the_last_output_is_carried_before_the_end() {
        let mut bench = bench("pump-end");
        for byte in b"reboot: Power down" {
            bench.write(0, *byte);
        }
        bench.pump.finish();
        assert_eq!(take(&bench.client, 18), b"reboot: Power down");
    }
}

/// The terminal of this process is tried out in a child that runs the one test below on a pseudo-terminal.
mod terminal {
    use super::*;
    use std::process::{Child, Command, ExitStatus};

    const CHILD: &str = "host_console::tests::terminal::child";
    const VARIABLE: &str = "VIVARIUM_TEST_TERMINAL";

    /// Runs in the child, as the variable says.
    #[test]
    fn child() {
        let Ok(what) = std::env::var(VARIABLE) else { return };
        let mut console = HostConsole::open(&Mode::Tty).unwrap();
        console.write(b"ready\r\n");
        match what.as_str() {
            "drop" => {}
            "panic" => panic!("on purpose"),
            "escape" => {
                let bell = machine::doorbell::Doorbell::new().unwrap();
                console.on_escape(bell.clone());
                drive(&mut console, |console| {
                    console.read(&mut [0; 100]);
                    bell.take()
                });
            }
            "echo" => {
                let typed = input(&mut console, 3);
                assert_eq!(typed, b"a\x03\r", "raw: neither signals nor translation");
                drive(&mut console, |console| console.size() == Some(WindowSize { columns: 99, rows: 33 }));
            }
            _ => loop {
                std::thread::park();
            },
        }
    }

    struct Run {
        master: File,
        child: Child,
        before: String,
    }

    fn modes(master: &File) -> String {
        let modes = system::modes(master.as_raw_fd()).unwrap();
        format!("{:x} {:x} {:x} {:x}", modes.c_iflag, modes.c_oflag, modes.c_lflag, modes.c_cflag)
    }

    /// Starts the child, and returns when it has the terminal.
    fn start(what: &str) -> Run {
        let mut master = OpenOptions::new().read(true).write(true).open("/dev/ptmx").unwrap();
        let number = system::unlock_pseudo_terminal(master.as_raw_fd()).unwrap();
        let slave = open_terminal(Path::new(&format!("/dev/pts/{number}")));
        let before = modes(&master);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CHILD, "--nocapture"])
            .env(VARIABLE, what)
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut seen = Vec::new();
        while !seen.windows(5).any(|window| window == b"ready") {
            assert!(wait_readable(master.as_raw_fd(), LONG), "the child never was ready");
            let mut buffer = [0; 100];
            let count = master.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..count]);
        }
        // The child's is now the only copy that matters; ours keeps the modes to be looked at.
        std::mem::forget(slave);
        Run { master, child, before }
    }

    impl Run {
        fn end(mut self) -> ExitStatus {
            let status = self.child.wait().unwrap();
            assert_eq!(modes(&self.master), self.before, "the terminal was not given back");
            status
        }

        fn signal(&self, signal: libc::c_int) {
            // SAFETY: takes no pointers; the child has not been waited for, so the number is its.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
    }

    #[test]
    fn is_given_back_at_the_end_and_after_a_panic() {
        assert!(start("drop").end().success());
        assert!(!start("panic").end().success());
    }

    #[test]
    fn is_given_back_on_signals() {
        use std::os::unix::process::ExitStatusExt;
        for signal in [libc::SIGTERM, libc::SIGSEGV, libc::SIGABRT, libc::SIGHUP] {
            let run = start("park");
            assert_ne!(modes(&run.master), run.before, "it was not raw");
            run.signal(signal);
            assert_eq!(run.end().signal(), Some(signal));
        }
    }

    #[test]
    fn the_escape_is_three_keys_in_a_row() {
        let mut run = start("escape");
        run.master.write_all(b"\x1d\x1dx\x1d\x1d\x1d").unwrap();
        assert!(run.end().success());
    }

    #[test]
    fn keys_pass_unchanged_and_the_window_size_is_followed() {
        let mut run = start("echo");
        run.master.write_all(b"a\x03\r").unwrap();
        let size = libc::winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the request reads a `winsize`.
        unsafe { libc::ioctl(run.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        // The child has no controlling terminal, so that the signal is not sent by the host.
        run.signal(libc::SIGWINCH);
        assert!(run.end().success());
    }
}
