//! `--serial`, `--console` and `--debug-console`.

use super::device::device_options;
use super::options::{NO_KEYS, Options, Setting, options};
use super::several::Repeated;
use super::{ChannelConfig, ConfigError, VmConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;
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

device_options! {
    /// A console of the guest, with the channels that are further ports of it: off, null, tty, pty, file=PATH or socket=PATH.
    pub struct ConsoleConfig is "console" first |_| "__console".into(), told by socket, file, mode {
        /// Where it ends on the host.
        ["mode" bare] mode: ConsoleMode = ConsoleMode::Off,
        /// Write the output to this file.
        ["file"] file: Option<PathBuf> = None,
        /// Listen on this UNIX socket.
        ["socket"] socket: Option<PathBuf> = None,
        /// The channels between programs in the guest and on the host.
        [nested NO_KEYS] channels: Vec<ChannelConfig> = Vec::new(),
    }
}

impl Repeated for ConsoleConfig {
    fn is_there(&self) -> bool {
        // The first port of a device is a console in any case.
        self.mode != ConsoleMode::Off || !self.channels.is_empty()
    }

    /// One that is off, as clients of cloud-hypervisor know it.
    fn short_form(all: &[Self]) -> Option<Value> {
        if all.is_empty() { serde_json::to_value(Self::default()).ok() } else { None }
    }
}

impl ConsoleConfig {
    /// Checks that there is something of it.
    ///
    /// # Errors
    /// When it is off.
    pub fn check_there(&self) -> Result<(), ConfigError> {
        if self.is_there() {
            return Ok(());
        }
        let reason =
            "is off; say where it ends by a mode (null, pty, tty, file, socket), or give it channels";
        Err(ConfigError { option: "--console".into(), reason: reason.into() })
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
    /// Tells where pseudo-terminals are, by the options and by the names of consoles: in `file`, where clients look for it.
    pub fn set_terminals(
        &mut self,
        by_option: &BTreeMap<&'static str, PathBuf>,
        by_console: &BTreeMap<String, PathBuf>,
    ) {
        let of = |option| by_option.get(option).cloned();
        for (mode, file, terminal) in [
            (self.serial.mode, &mut self.serial.file, of("--serial")),
            (self.debug_console.mode, &mut self.debug_console.file, of("--debug-console")),
        ] {
            if mode == ConsoleMode::Pty {
                *file = terminal;
            }
        }
        for console in self.console.iter_mut().filter(|console| console.mode == ConsoleMode::Pty) {
            console.file = console.id.as_ref().and_then(|id| by_console.get(id)).cloned();
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
