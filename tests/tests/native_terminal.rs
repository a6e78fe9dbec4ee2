//! The terminal that a monitor runs on.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use vivarium_tests::MonitorBuilder;
use vivarium_tests::terminal::Terminal;

/// A monitor on a terminal, whose guest has spoken and halts; ended by `signal`.
fn end_by(signal: i32) -> std::process::ExitStatus {
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    assert!(before.is_cooked());
    let mut command = MonitorBuilder::bare("hello end=halt").command();
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    terminal.wait_for("@@ done rc=0");
    assert!(!terminal.modes().is_cooked(), "the guest gets every key");
    // SAFETY: the child was not waited for, so its id is still its own.
    unsafe { libc::kill(child.id().cast_signed(), signal) };
    let status = child.wait().unwrap();
    assert_eq!(terminal.modes(), before, "after signal {signal}");
    status
}

#[test]
fn the_terminal_is_given_back_after_every_kind_of_end() {
    let ask_it_to_end = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGXCPU];
    for signal in ask_it_to_end {
        assert_eq!(end_by(signal).code(), Some(0), "after signal {signal}");
    }
    let leave_it = [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH, libc::SIGCONT];
    let stop_it = [libc::SIGKILL, libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    // One presses the power button, the other tells of a system call that is forbidden.
    let heard = [libc::SIGUSR1, libc::SIGSYS];
    let others = [&ask_it_to_end[..], &leave_it, &stop_it, &heard].concat();
    // The first real-time signal kicks CPUs.
    let real_time = [libc::SIGRTMIN() + 1, libc::SIGRTMAX()];
    for signal in (1..32).filter(|signal| !others.contains(signal)).chain(real_time) {
        assert_eq!(end_by(signal).signal(), Some(signal), "it ends as the signal says");
    }
}

#[test]
fn the_terminal_is_given_back_when_the_guest_ends() {
    for (task, status) in [("hello", 0), ("hello end=triple", 1)] {
        let mut terminal = Terminal::new();
        let before = terminal.modes();
        let mut command = MonitorBuilder::bare(task).command();
        terminal.attach(&mut command);
        let mut child = command.spawn().unwrap();
        terminal.wait_for("@@ hello");
        assert_eq!(child.wait().unwrap().code(), Some(status));
        assert_eq!(terminal.modes(), before);
    }
}

#[test]
fn the_escape_ends_the_monitor() {
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    let mut command = MonitorBuilder::bare("hello end=halt").command();
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    terminal.wait_for("@@ done rc=0");
    terminal.type_in("\x1d\x1d\x1d");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(terminal.modes(), before);
}

#[test]
fn a_pseudo_terminal_is_announced_and_carries_the_console() {
    let mut command = MonitorBuilder::bare("console text=ready read=3 secs=60")
        .replace("--serial", "null")
        .replace("--console", "pty")
        .command();
    // Its own process group: what is typed must not reach this one.
    command.process_group(0).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut errors = std::io::BufReader::new(child.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut errors, &mut line).unwrap();
    let path =
        line.trim().strip_prefix("vivarium: --console is at ").unwrap_or_else(|| panic!("{line}")).to_owned();
    let mut terminal = Terminal::open(path.as_ref());
    terminal.wait_for("ready");
    terminal.type_in("abc");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
