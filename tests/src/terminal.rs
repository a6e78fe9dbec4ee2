//! A terminal for a program under test: a pseudo-terminal of which the test holds the user's side.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// As [`crate::monitor`]: nothing for this long is taken for the end.
const SILENCE: Duration = Duration::from_secs(150);

/// A terminal.
pub struct Terminal {
    user: File,
    program: Option<OwnedFd>,
    /// The file that is read, and what came of it.
    arrived: Receiver<Vec<u8>>,
    seen: String,
}

/// What a terminal does with input and output (`termios`), in a form to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes {
    flags: [u32; 4],
    control: Vec<u8>,
}

impl Modes {
    /// Whether the terminal gathers lines and shows what is typed, as a shell leaves it.
    pub fn is_cooked(&self) -> bool {
        let local = self.flags[3];
        local & libc::ICANON != 0 && local & libc::ECHO != 0
    }
}

fn get_modes(file: &impl AsRawFd) -> Modes {
    let mut modes = MaybeUninit::<libc::termios>::zeroed();
    // SAFETY: the call fills the structure it is given; zeroes are valid ones too.
    let modes = unsafe {
        assert_eq!(libc::tcgetattr(file.as_raw_fd(), modes.as_mut_ptr()), 0, "it is a terminal");
        modes.assume_init()
    };
    Modes {
        flags: [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag],
        control: modes.c_cc.to_vec(),
    }
}

impl Terminal {
    /// A new terminal of 80 columns and 25 rows.
    ///
    /// # Panics
    /// When the host has none left.
    pub fn new() -> Self {
        let (mut user, mut program) = (-1, -1);
        let size = libc::winsize { ws_row: 25, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: both descriptors are written, the size is read, and the rest may be null.
        let made =
            unsafe { libc::openpty(&mut user, &mut program, std::ptr::null_mut(), std::ptr::null(), &size) };
        assert_eq!(made, 0, "a pseudo-terminal can be had");
        // SAFETY: openpty gave both descriptors, which nothing else owns.
        let (user, program) = unsafe { (File::from_raw_fd(user), OwnedFd::from_raw_fd(program)) };
        let arrived = read_on(user.try_clone().expect("a descriptor can be duplicated"));
        Self { user, program: Some(program), arrived, seen: String::new() }
    }

    /// The user's side of a terminal that another program made.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Self {
        let user = File::options().read(true).write(true).open(path);
        let user = user.unwrap_or_else(|error| panic!("opening {}: {error}", path.display()));
        let arrived = read_on(user.try_clone().expect("a descriptor can be duplicated"));
        Self { user, program: None, arrived, seen: String::new() }
    }

    /// Gives a program this terminal as its input and output.
    ///
    /// # Panics
    /// When this is not a terminal of the test's own.
    pub fn attach(&self, command: &mut Command) {
        let copy = || {
            Stdio::from(
                self.program.as_ref().expect("own").try_clone().expect("a descriptor can be duplicated"),
            )
        };
        command.stdin(copy()).stdout(copy());
    }

    /// The terminal's modes.
    pub fn modes(&self) -> Modes {
        get_modes(&self.user)
    }

    /// Gives the window another size.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the call reads the structure.
        let done = unsafe { libc::ioctl(self.user.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(done, 0, "the terminal is there");
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_in(&mut self, text: &str) {
        self.user.write_all(text.as_bytes()).expect("the terminal is there");
    }

    /// Waits until `what` is shown, after what was waited for before.
    ///
    /// # Panics
    /// When nothing more comes before; shows all that came.
    pub fn wait_for(&mut self, what: &str) {
        loop {
            if let Some(at) = self.seen.find(what) {
                self.seen.drain(..at + what.len());
                return;
            }
            match self.arrived.recv_timeout(SILENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("the terminal does not show \"{what}\"; it shows:\n{}", self.seen),
            }
        }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a file until its end, on a thread of its own.
pub(crate) fn read_on(mut file: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, arrived) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = file.read(&mut buffer) {
            if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    arrived
}
