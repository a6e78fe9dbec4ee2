//! Driving a monitor by `vivarium ctl`.

use crate::required;
use std::path::Path;
use std::process::{Command, Output};

/// Says something to the monitor at `socket`.
///
/// # Panics
/// When the program cannot be started.
pub fn ctl(socket: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(required("VIVARIUM_BIN"));
    let output = command.arg("ctl").arg("--api-socket").arg(socket).args(words).output();
    output.expect("vivarium can be started")
}

/// As [`ctl`]; the monitor does it. Returns what was answered.
///
/// # Panics
/// When it does not.
pub fn done(socket: &Path, words: &[&str]) -> String {
    let output = ctl(socket, words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{words:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}
