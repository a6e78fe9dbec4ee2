//! A running monitor, and its guest's console.

use crate::{Form, Kernel, Report, native, required};
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A guest that says nothing for this long is taken for dead. Not a limit on how fast it must be: the runner has
/// its own for a whole test.
const SILENCE: Duration = Duration::from_secs(150);

/// Has the bare-metal guest power off, where nothing before it says how to end: a 16-bit write whose upper byte goes to the sleep control register.
const BARE_POWER_OFF: &str = "end=s5:0x600:0x3400";

/// How a monitor ended.
#[derive(Debug)]
pub struct Exit {
    /// The exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// All it wrote to standard output: the guest's console, unless that goes elsewhere.
    pub output: String,
    /// All it wrote to standard error.
    pub errors: String,
}

/// Says how a monitor is run.
pub struct MonitorBuilder {
    arguments: Vec<OsString>,
    cmdline: Vec<String>,
    console: &'static str,
}

impl MonitorBuilder {
    /// A stock Linux guest, whose console is the monitor's standard output.
    pub fn linux(kernel: Kernel, form: Form) -> Self {
        // The 6.1 cloud kernel has its virtio console in a module, so it can only speak through the serial port
        // from the start.
        let builder = Self { arguments: Vec::new(), cmdline: Vec::new(), console: "hvc0" };
        let builder = builder.arg("--kernel").arg(kernel.path(form));
        let builder = match kernel {
            Kernel::V6_1 => builder.on_serial(),
            Kernel::V6_12 | Kernel::V6_12Generic => builder.args(["--serial", "off", "--console", "tty"]),
        };
        builder.cmdline("quiet panic=-1 random.trust_cpu=on").initramfs(kernel.initramfs().as_os_str())
    }

    /// The bare-metal guest, told to do `task`; its console is the monitor's standard output. It powers off at the end,
    /// unless `task` says otherwise.
    pub fn bare(task: &str) -> Self {
        let builder = Self { arguments: Vec::new(), cmdline: Vec::new(), console: "" };
        builder
            .arg("--kernel")
            .arg(required("VIVARIUM_BARE_GUEST"))
            .args(["--serial", "tty", "--console", "off", "--memory", "size=128M"])
            .cmdline(&format!("{task} {BARE_POWER_OFF}"))
    }

    /// Adds an argument of the monitor.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments of the monitor.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Gives an option another value, whether or not it has one already.
    #[must_use]
    pub fn replace(mut self, option: &str, value: impl AsRef<OsStr>) -> Self {
        match self.arguments.iter().position(|argument| argument == option) {
            Some(at) => self.arguments[at + 1] = value.as_ref().to_owned(),
            None => self = self.arg(option).arg(value),
        }
        self
    }

    /// Has the guest speak through its serial port, and leaves out the virtio console.
    #[must_use]
    pub fn on_serial(self) -> Self {
        self.replace("--serial", "tty").replace("--console", "off").console(native().serial())
    }

    /// Uses another initial RAM file system.
    #[must_use]
    pub fn initramfs(self, path: &OsStr) -> Self {
        self.replace("--initramfs", path)
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline.push(words.to_owned());
        self
    }

    /// Has the guest run a shell script, print `@@RC` and its result, and power off.
    #[must_use]
    pub fn script(self, script: &str) -> Self {
        self.cmdline(&format!("viv.run={}", base64(script.as_bytes())))
    }

    /// Has the guest speak through another of its consoles (`hvc0`, `ttyS0`) than the kernel's usual one.
    #[must_use]
    pub fn console(mut self, console: &'static str) -> Self {
        self.console = console;
        self
    }

    /// The command that starts the monitor.
    pub fn command(mut self) -> Command {
        if !self.console.is_empty() {
            self.cmdline.insert(0, format!("console={}", self.console));
        }
        let mut command = Command::new(required("VIVARIUM_BIN"));
        command.args(&self.arguments).arg("--cmdline").arg(self.cmdline.join(" "));
        command
    }

    /// Starts the monitor.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(self) -> Monitor {
        Monitor::start(self.command())
    }
}

/// A running monitor. It is killed when this is dropped.
pub struct Monitor {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: String,
    errors: Option<std::thread::JoinHandle<String>>,
    started: Instant,
}

impl Monitor {
    /// Starts a monitor by a command of its own.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        let (sender, lines) = channel();
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
                if sender.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });
        let mut errors = child.stderr.take().expect("piped");
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let input = child.stdin.take();
        Self { child, input, lines, seen: String::new(), errors: Some(errors), started: Instant::now() }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types on the guest's console.
    ///
    /// # Panics
    /// When the monitor has closed its input.
    pub fn type_in(&mut self, text: &str) {
        let input = self.input.as_mut().expect("the monitor's input is open");
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).expect("the monitor reads its input");
    }

    /// Closes the monitor's standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits for a line that contains `what`, and returns it.
    ///
    /// # Panics
    /// When the monitor ends first, or the guest falls silent; shows all it printed.
    pub fn wait_for(&mut self, what: &str) -> String {
        loop {
            match self.lines.recv_timeout(SILENCE) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                    if line.contains(what) {
                        return line;
                    }
                }
                Err(reason) => {
                    let reason = match reason {
                        RecvTimeoutError::Timeout => "the guest fell silent",
                        RecvTimeoutError::Disconnected => "the monitor ended",
                    };
                    let _ = self.child.kill();
                    let errors = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
                    panic!(
                        "{reason} before \"{what}\"; it printed:\n{}\nand as errors:\n{errors}",
                        self.seen
                    );
                }
            }
        }
    }

    /// What the guest printed so far, as far as it was waited for.
    pub fn output(&self) -> &str {
        &self.seen
    }

    /// Time since the monitor was started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sends the monitor a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child was not waited for, so its id is still its own.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// Waits for the monitor to end.
    ///
    /// # Panics
    /// When the guest falls silent without ending.
    pub fn wait(mut self) -> Exit {
        loop {
            match self.lines.recv_timeout(SILENCE) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the guest fell silent and the monitor did not end; it printed:\n{}", self.seen)
                }
            }
        }
        let status = self.child.wait().expect("the monitor can be waited for");
        let errors = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
        Exit {
            status: status.code(),
            signal: status.signal(),
            output: std::mem::take(&mut self.seen),
            errors,
        }
    }

    /// Waits for the bare-metal guest to do all its tasks with success and power off, and returns what it reported.
    ///
    /// # Panics
    /// When a task failed, or the monitor did not end with success; shows all that was printed.
    pub fn complete(self) -> Report {
        let exit = self.wait();
        assert!(
            exit.status == Some(0) && exit.output.contains("@@ done rc=0"),
            "the guest's tasks failed (monitor: status {:?}, signal {:?}); it printed:\n{}\nand as errors:\n{}",
            exit.status,
            exit.signal,
            exit.output,
            exit.errors
        );
        Report::new(&exit.output)
    }

    /// Waits for a guest that runs a script to power off, and returns what it printed.
    ///
    /// # Panics
    /// When the script failed, or the monitor did not end with success; shows all that was printed.
    pub fn succeed(self) -> String {
        let exit = self.wait();
        assert!(
            exit.status == Some(0) && exit.output.contains("@@RC 0"),
            "the guest's script failed (monitor: status {:?}, signal {:?}); it printed:\n{}\nand as errors:\n{}",
            exit.status,
            exit.signal,
            exit.output,
            exit.errors
        );
        exit.output
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Base64 (RFC 4648), which the kernel's command line carries unharmed.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let symbol = ALPHABET[(word >> (18 - 6 * digit)) as usize & 63];
            text.push(if digit <= chunk.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(super::base64(plain.as_bytes()), coded);
        }
    }
}
