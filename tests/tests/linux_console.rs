//! Consoles: a login on each kind, and what of the terminal the guest sees.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;
use vivarium_tests::host::Folder;
use vivarium_tests::terminal::Terminal;
use vivarium_tests::{Architecture, Feature, Form, Kernel, MonitorBuilder, lacks, native};

/// The shell's prompt.
const PROMPT: &str = "vivarium:/root# ";

/// Sees that a shell listens, and has it power off.
fn use_shell(terminal: &mut Terminal) {
    terminal.wait_for(PROMPT);
    terminal.type_in("echo $((6 * 7))and\r");
    terminal.wait_for("42and");
    terminal.type_in("exit\r");
}

#[test]
fn a_shell_on_the_serial_port_listens() {
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    let kernel = *Kernel::all().last().expect("there is a kernel");
    let mut command = MonitorBuilder::linux(kernel, Form::Elf).on_serial().command();
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    use_shell(&mut terminal);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(terminal.modes(), before);
}

#[test]
fn a_shell_on_the_virtio_console_listens_and_sees_the_window() {
    let mut terminal = Terminal::new();
    let mut command = MonitorBuilder::linux(Kernel::V6_12, Form::Elf).command();
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    terminal.wait_for(PROMPT);
    terminal.type_in("stty size\r");
    terminal.wait_for("25 80");
    terminal.resize(132, 43);
    // The kernel is told by an interrupt, which may come after what is typed next.
    terminal.type_in("until stty size | grep '43 132'; do sleep 0.1; done\r");
    terminal.wait_for("\n43 132");
    use_shell(&mut terminal);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Starts a monitor whose consoles are told of on standard error, and returns the path it tells.
fn announced(option: &str, builder: MonitorBuilder) -> (std::process::Child, String) {
    let mut child =
        builder.command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut errors = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut errors, &mut line).unwrap();
    let path =
        line.trim().strip_prefix(&format!("vivarium: {option} is at ")).unwrap_or_else(|| panic!("{line}"));
    (child, path.to_owned())
}

#[test]
fn a_channel_carries_what_programs_say() {
    let folder = Folder::new();
    let socket = folder.join("agent");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .arg("--channel")
        .arg(format!("name=org.example.agent,socket={}", socket.display()))
        .arg(format!("name=org.example.other,socket={}", folder.join("other").display()))
        .script(
            r#"set -e; cd /sys/class/virtio-ports
            for port in *; do [ "$(cat $port/name)" != org.example.agent ] || device=/dev/$port; done
            exec 3<>$device; echo "@@OPEN"
            # While nobody is there, a read finds the end of the file.
            for round in 1 2; do
                until read -r line <&3; do :; done
                echo "$round: $line" >&3; echo "$round: $line"
            done"#,
        )
        .start();
    monitor.wait_for("@@OPEN");
    // One program after the other, to which what was said to the one before is not said again.
    for (round, said) in [(1, "hello"), (2, "again")] {
        let mut program = UnixStream::connect(&socket).unwrap();
        program.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        writeln!(program, "{said}").unwrap();
        let answer = format!("{round}: {said}\n");
        let mut got = vec![0; answer.len()];
        program.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), answer);
    }
    let output = monitor.succeed();
    assert!(output.contains("1: hello") && output.contains("2: again"), "{output}");
}

#[test]
fn a_shell_on_a_pseudo_terminal_listens() {
    let oldest = *Kernel::all().last().expect("there is a kernel");
    for (builder, option) in [
        (MonitorBuilder::linux(oldest, Form::Elf).on_serial(), "--serial"),
        (MonitorBuilder::linux(Kernel::V6_12, Form::Elf), "--console"),
    ] {
        let builder = builder.replace(option, "pty");
        let (mut child, path) = announced(option, builder);
        let mut terminal = Terminal::open(path.as_ref());
        use_shell(&mut terminal);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_shell_on_a_socket_listens_and_a_late_joiner_sees_what_was_said() {
    let folder = Folder::new();
    let socket = folder.join("console");
    let mut child = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .replace("--console", format!("socket={}", socket.display()))
        .command()
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let connect = |child: &mut std::process::Child| loop {
        assert!(child.try_wait().unwrap().is_none(), "the monitor runs");
        if let Ok(peer) = UnixStream::connect(&socket) {
            peer.set_read_timeout(Some(Duration::from_secs(150))).unwrap();
            break peer;
        }
        std::thread::yield_now();
    };
    let read_until = |peer: &mut UnixStream, what: &str| {
        let (mut text, mut byte) = (String::new(), [0]);
        while !text.contains(what) {
            peer.read_exact(&mut byte)
                .unwrap_or_else(|error| panic!("{error} before \"{what}\", after:\n{text}"));
            text.push(char::from(byte[0]));
        }
    };
    let mut peer = connect(&mut child);
    read_until(&mut peer, PROMPT);
    drop(peer);
    let mut peer = connect(&mut child);
    read_until(&mut peer, "@@UP");
    read_until(&mut peer, PROMPT);
    peer.write_all(b"echo $((6 * 7))and\r").unwrap();
    read_until(&mut peer, "42and");
    peer.write_all(b"exit\r").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists(), "the socket is removed");
}

#[test]
fn output_goes_to_a_file() {
    let folder = Folder::new();
    let (serial, console) = (folder.join("serial"), folder.join("console"));
    let exit = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .replace("--serial", format!("file={}", serial.display()))
        .replace("--console", format!("file={}", console.display()))
        .script(&format!("echo one >/dev/{}; echo two", native().serial()))
        .start()
        .wait();
    assert_eq!(exit.status, Some(0), "{exit:?}");
    assert!(std::fs::read_to_string(&serial).unwrap().contains("one"));
    let text = std::fs::read_to_string(&console).unwrap();
    assert!(text.contains("two") && text.contains("@@RC 0"), "{text}");
}

/// A serial port, and how the guest learns of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Pl011ByDeviceTree,
    Pl011ByAcpi,
    Uart16550ByDeviceTree,
    /// On a PC, the only one.
    Uart16550ByAcpi,
}

impl Port {
    /// Whether machines under test have it; if not, it says so.
    fn is_there(self) -> bool {
        self == Self::Uart16550ByAcpi || !lacks(Feature::SerialPortKinds)
    }

    /// What is appended to `--serial`, the value of `--platform`, and what the kernel calls the port.
    fn options(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Pl011ByDeviceTree => ("", "acpi=off", "ttyAMA0"),
            Self::Pl011ByAcpi => ("", "acpi=on", "ttyAMA0"),
            Self::Uart16550ByDeviceTree => (",model=16550", "acpi=off", "ttyS0"),
            Self::Uart16550ByAcpi if native() == Architecture::X86_64 => ("", "acpi=on", "ttyS0"),
            Self::Uart16550ByAcpi => (",model=16550", "acpi=on", "ttyS0"),
        }
    }

    fn carries_both_ways(self) {
        if !self.is_there() {
            return;
        }
        let (model, platform, name) = self.options();
        let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
            .on_serial()
            .replace("--serial", format!("tty{model}"))
            .args(["--platform", platform])
            .console(name)
            .script(&format!(
                "grep {name} /proc/consoles || exit 1; echo @@listens; read line; echo @@heard $line
                 grep {name} /proc/interrupts || grep -i uart /proc/interrupts || exit 2"
            ))
            .start();
        monitor.wait_for("@@listens");
        monitor.type_in("a line\n");
        monitor.wait_for("@@heard a line");
        monitor.succeed();
    }

    /// What the kernel says before it has drivers comes out of the port by which the kernel is told of it.
    fn is_an_early_console(self) {
        if !self.is_there() {
            return;
        }
        let folder = Folder::new();
        let serial = folder.join("serial");
        let (model, platform, name) = self.options();
        let early = match native() {
            Architecture::X86_64 => "earlycon=uart8250,io,0x3f8",
            Architecture::Aarch64 => "earlycon",
        };
        MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
            .replace("--serial", format!("file={}{model}", serial.display()))
            .args(["--platform", platform])
            // What was said before is shown when the console begins. Notices are enough: each character costs several exits.
            .cmdline(&format!("loglevel=6 {early}"))
            .script("true")
            .start()
            .succeed();
        let text = std::fs::read_to_string(&serial).unwrap();
        // A driver's console on the same port, which SPCR asks for, repeats what was said before it.
        let drivers = usize::from(native() == Architecture::Aarch64 && platform == "acpi=on");
        assert_eq!(text.matches("Linux version").count(), 1 + drivers, "{name}:\n{text}");
    }
}

/// The tests of a port.
macro_rules! tests_of {
    ($module:ident, $port:expr) => {
        mod $module {
            use super::Port;

            #[test]
            fn carries_both_ways() {
                $port.carries_both_ways();
            }

            #[test]
            fn is_an_early_console() {
                $port.is_an_early_console();
            }
        }
    };
}

tests_of!(a_pl011_by_device_tree, Port::Pl011ByDeviceTree);
tests_of!(a_pl011_by_acpi, Port::Pl011ByAcpi);
tests_of!(a_16550_by_device_tree, Port::Uart16550ByDeviceTree);
tests_of!(a_16550_by_acpi, Port::Uart16550ByAcpi);
