//! `--serial`, `--console` and `--debug-console`.

use super::VmConfig;
use super::options::{Options, Setting, options};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where a console ends on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ConsoleMode {
    /// There is no device.
    #[default]
    #[serde(alias = "off")]
    Off,
    /// There is a device; its output is lost.
    #[serde(alias = "null")]
    Null,
    /// The terminal the monitor was started on.
    #[serde(alias = "tty")]
    Tty,
    /// A pseudo-terminal of its own.
    #[serde(alias = "pty")]
    Pty,
    /// A file, for output.
    #[serde(alias = "file")]
    File,
    /// A UNIX socket that clients connect to.
    #[serde(alias = "socket")]
    Socket,
}

impl Setting for ConsoleMode {
    const HINT: &'static str = "off|null|tty|pty";
    fn show(&self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

options! {
    /// A console of the guest: off, null, tty, pty, file=PATH or socket=PATH.
    pub struct ConsoleConfig {
        /// Where it ends on the host.
        ["mode" bare] mode: ConsoleMode = ConsoleMode::Off,
        /// Write the output to this file.
        ["file"] file: Option<PathBuf> = None,
        /// Listen on this UNIX socket.
        ["socket"] socket: Option<PathBuf> = None,
    }
}

options! {
    /// The serial port: off, null, tty, pty, file=PATH or socket=PATH.
    pub struct SerialConfig {
        /// Where it ends on the host.
        ["mode" bare] mode: ConsoleMode = ConsoleMode::Off,
        /// Write the output to this file.
        ["file"] file: Option<PathBuf> = None,
        /// Listen on this UNIX socket.
        ["socket"] socket: Option<PathBuf> = None,
        /// What kind of port the guest sees. Default: a PL011 on Arm, and a 16550 on a PC, which has no other.
        ["model"] model: Option<SerialModel> = None,
    }
}

/// A kind of serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum SerialModel {
    /// Arm's PL011.
    #[serde(rename = "pl011")]
    Pl011,
    /// National Semiconductor's 16550A.
    #[serde(rename = "16550")]
    Uart16550,
}

impl Setting for SerialModel {
    const HINT: &'static str = "pl011|16550";
    fn show(&self) -> String {
        match self {
            Self::Pl011 => "pl011",
            Self::Uart16550 => "16550",
        }
        .into()
    }
}

options! {
    /// The debug console (output only): off, null, tty, pty or file=PATH.
    pub struct DebugConsoleConfig {
        /// Where it ends on the host.
        ["mode" bare] mode: ConsoleMode = ConsoleMode::Off,
        /// Write the output to this file.
        ["file"] file: Option<PathBuf> = None,
        /// The I/O port.
        ["iobase"] iobase: u16 = 0xe9,
    }
}

impl VmConfig {
    /// Tells where pseudo-terminals are: in `file`, where clients look for it.
    pub fn set_terminals(&mut self, by_option: &BTreeMap<&'static str, PathBuf>, console: Option<PathBuf>) {
        let of = |option| by_option.get(option).cloned();
        for (mode, file, terminal) in [
            (self.serial.mode, &mut self.serial.file, of("--serial")),
            (self.console.mode, &mut self.console.file, console),
            (self.debug_console.mode, &mut self.debug_console.file, of("--debug-console")),
        ] {
            if mode == ConsoleMode::Pty {
                *file = terminal;
            }
        }
    }
}

/// Reads the command line's form of a console, in which a path alone says the mode.
///
/// # Errors
/// As [`Options::parse`].
pub fn parse<T: Options + Console>(text: &str) -> Result<T, super::key_value::Error> {
    let mut console = T::parse(text)?;
    let (file, socket) = console.paths();
    match (file, socket) {
        (true, true) => {
            return Err(super::key_value::Error {
                key: None,
                message: "has both a file and a socket; give one".into(),
            });
        }
        (true, false) => console.set_mode(ConsoleMode::File),
        (false, true) => console.set_mode(ConsoleMode::Socket),
        (false, false) => {}
    }
    Ok(console)
}

/// What all kinds of consoles have in common.
pub trait Console {
    /// Whether a file and a socket are given.
    fn paths(&self) -> (bool, bool);
    /// Sets where it ends.
    fn set_mode(&mut self, mode: ConsoleMode);
}

impl Console for ConsoleConfig {
    fn paths(&self) -> (bool, bool) {
        (self.file.is_some(), self.socket.is_some())
    }
    fn set_mode(&mut self, mode: ConsoleMode) {
        self.mode = mode;
    }
}

impl Console for SerialConfig {
    fn paths(&self) -> (bool, bool) {
        (self.file.is_some(), self.socket.is_some())
    }
    fn set_mode(&mut self, mode: ConsoleMode) {
        self.mode = mode;
    }
}

impl Console for DebugConsoleConfig {
    fn paths(&self) -> (bool, bool) {
        (self.file.is_some(), false)
    }
    fn set_mode(&mut self, mode: ConsoleMode) {
        self.mode = mode;
    }
}
