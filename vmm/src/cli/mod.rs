//! The command line: flags as cloud-hypervisor names them.
//!
//! Each flag's value is read by the configuration struct it belongs to ([`crate::config`]).

mod errors;
mod flags;

pub use errors::{UsageError, failure};
pub(crate) use errors::{one_line, one_line_of, reason};
pub use flags::flags;
pub(crate) use flags::{COMMANDS, arguments, command, shape, synopsis};

use crate::api::event_monitor::EventMonitorConfig;
use crate::api::socket::ApiSocketConfig;
use crate::config::several::Repeated;
use crate::config::{
    BalloonConfig, ChannelOption, ConsoleConfig, CpusConfig, CrashConfig, DebugConsoleConfig, DiskConfig,
    FwCfgConfig, GdbConfig, IvshmemConfig, LandlockConfig, MemConfig, MemoryConfig, MemoryZoneConfig,
    NetConfig, NumaConfig, Options, PayloadConfig, PciSegmentConfig, PlatformConfig, PmemConfig,
    PvpanicConfig, RateLimitGroupConfig, RngConfig, RtcConfig, VmConfig, VsockConfig, WatchdogConfig,
    channel, console,
};
use crate::config::{Mems, PciPlaceConfig, PciPortConfig, Several};
use crate::log::{Format, Levels, LogOptions};
use clap::FromArgMatches;
use clap::error::ErrorKind;
use flags::Flags;
use std::ffi::OsString;
use std::path::PathBuf;

/// The arguments, which start with the program's name, where `help COMMAND` is written `COMMAND --help`.
pub fn with_help_as_flag(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_some_and(|word| word == "help") {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    arguments
}

/// What a forbidden system call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// Ends the process.
    Enforce,
    /// Is reported by the kernel's audit log, and done.
    Log,
    /// Is done.
    Off,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Run a machine.
    Run(Box<Run>),
    /// Print this and end with success.
    Print(String),
}

/// A machine to run, and how.
#[derive(Debug)]
pub struct Run {
    /// The machine; none when it is to be created over the API.
    pub config: Option<VmConfig>,
    /// Where the API is served, if it is.
    pub api_socket: Option<ApiSocketConfig>,
    /// Where events are written, if they are.
    pub event_monitor: Option<EventMonitorConfig>,
    /// Where a debugger comes in.
    pub gdb: Option<GdbConfig>,
    /// What is logged, where and how.
    pub log: LogOptions,
    /// What a forbidden system call does.
    pub seccomp: Seccomp,
}

/// Reads the command line. `arguments` starts with the program's name.
///
/// # Errors
/// When it cannot be understood; the text names the option and the value and says what to do.
// What it needs of the stack would be kept as long as the machine runs, if it were a part of its caller.
#[inline(never)]
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // A path that is not could be opened, but not be told in JSON.
    if let Some(argument) = arguments.iter().skip(1).find(|argument| argument.to_str().is_none()) {
        return Err(UsageError(format!("{argument:?} is not valid UTF-8; give it a name that is")));
    }
    let matches = match command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            return Ok(Command::Print(error.to_string()));
        }
        Err(error) => return Err(UsageError(one_line(&error))),
    };
    let flags = Flags::from_arg_matches(&matches).map_err(|error| UsageError(one_line(&error)))?;
    if flags.version {
        return Ok(Command::Print(version(arguments.first())));
    }
    if let Some(option) = &flags.help_option {
        return super::config_help::option(option.trim_start_matches('-')).map(Command::Print).ok_or_else(
            || {
                let names = super::config_help::names().join(", ");
                UsageError(format!(
                    "--help-option {option}: no option of that name has keys; those that do are {names}"
                ))
            },
        );
    }
    let seccomp = match flags.seccomp.as_str() {
        "true" => Seccomp::Enforce,
        "log" => Seccomp::Log,
        "false" => Seccomp::Off,
        other => return Err(UsageError(format!("--seccomp {other}: write true, log or false"))),
    };
    let api_socket = maybe::<ApiSocketConfig>("--api-socket", flags.api_socket.as_deref())?;
    let event_monitor = maybe::<EventMonitorConfig>("--event-monitor", flags.event_monitor.as_deref())?;
    let api = api_socket.as_ref().map(|socket| ("--api-socket", socket.path.is_some(), socket.fd.is_some()));
    let events =
        event_monitor.as_ref().map(|events| ("--event-monitor", events.path.is_some(), events.fd.is_some()));
    for (flag, path, fd) in api.into_iter().chain(events) {
        match (path, fd) {
            (true, true) => return Err(UsageError(format!("{flag}: has both path and fd; give one"))),
            (false, false) => {
                return Err(UsageError(format!(
                    "{flag}: says nothing; write {flag} path=<path>, or fd=<number>"
                )));
            }
            _ => {}
        }
    }
    let config = if api_socket.is_some() && flags.kernel.is_none() && !describes_a_machine(&matches) {
        None
    } else {
        let config = config(&flags)?;
        config.validate_start()?;
        Some(config)
    };
    let log = log_options(&flags)?;
    let gdb = match flags.gdb.as_deref() {
        None => None,
        Some(text) => {
            let gdb: GdbConfig = one("--gdb", Some(text))?;
            if gdb.path.as_os_str().is_empty() {
                return Err(UsageError(format!("--gdb {text}: path is missing; write --gdb path=SOCKET")));
            }
            Some(gdb)
        }
    };
    Ok(Command::Run(Box::new(Run { config, api_socket, event_monitor, gdb, log, seccomp })))
}

fn log_options(flags: &Flags) -> Result<LogOptions, UsageError> {
    let format = match flags.log_format.as_str() {
        "text" => Format::Text,
        "json" => Format::Json,
        other => return Err(UsageError(format!("--log-format {other}: write text or json"))),
    };
    let levels = match flags.log_levels.as_deref() {
        None => Levels::default(),
        Some(text) => text.parse().map_err(|()| {
            let parts = crate::log::PARTS.join(", ");
            UsageError(format!(
                "--log-levels {text}: write PART=LEVEL, PART being one of {parts}, and LEVEL off, error, warn, info, debug or trace"
            ))
        })?,
    };
    Ok(LogOptions { file: flags.log_file.clone(), verbosity: flags.verbosity, levels, format })
}

fn config(flags: &Flags) -> Result<VmConfig, UsageError> {
    let mut memory: MemoryConfig = one("--memory", flags.memory.as_deref())?;
    let zones: Vec<MemoryZoneConfig> = many("--memory-zone", &flags.memory_zone)?;
    if !zones.is_empty() {
        memory.zones = Some(zones);
    }
    if flags.kernel.is_none() && flags.firmware.is_none() {
        return Err(UsageError("--kernel is missing; give the kernel to boot: --kernel PATH".into()));
    }
    Ok(VmConfig {
        cpus: one::<CpusConfig>("--cpus", flags.cpus.as_deref())?,
        memory,
        payload: PayloadConfig {
            firmware: flags.firmware.clone(),
            firmware_vars: flags.firmware_vars.clone(),
            kernel: flags.kernel.clone(),
            initramfs: flags.initramfs.clone(),
            cmdline: flags.cmdline.clone(),
            fw_cfg_config: maybe::<FwCfgConfig>("--fw-cfg-config", flags.fw_cfg_config.as_deref())?,
        },
        rate_limit_groups: many::<RateLimitGroupConfig>("--rate-limit-group", &flags.rate_limit_group)?,
        disks: many::<DiskConfig>("--disk", &flags.disk)?,
        net: many::<NetConfig>("--net", &flags.net)?,
        rng: several::<RngConfig>("--rng", &flags.rng)?,
        rtc: maybe::<RtcConfig>("--rtc", flags.rtc.as_deref())?,
        mem: if flags.mem.is_empty() {
            Mems::default()
        } else {
            many::<MemConfig>("--mem", &flags.mem)?.into()
        },
        balloon: maybe::<BalloonConfig>("--balloon", flags.balloon.as_deref())?,
        pmem: many::<PmemConfig>("--pmem", &flags.pmem)?,
        ivshmem: several::<IvshmemConfig>("--ivshmem", &flags.ivshmem)?,
        vsock: maybe::<VsockConfig>("--vsock", flags.vsock.as_deref())?,
        serial: console("--serial", flags.serial.as_deref().unwrap_or("null"))?,
        console: consoles(&flags.console, many::<ChannelOption>("--channel", &flags.channel)?)?,
        debug_console: console::<DebugConsoleConfig>(
            "--debug-console",
            flags.debug_console.as_deref().unwrap_or("off"),
        )?,
        pvpanic: maybe::<PvpanicConfig>("--pvpanic", flags.pvpanic.as_deref())?,
        on_crash: maybe::<CrashConfig>("--on-crash", flags.on_crash.as_deref())?,
        watchdog: several::<WatchdogConfig>("--watchdog", &flags.watchdog)?,
        numa: many::<NumaConfig>("--numa", &flags.numa)?,
        platform: one::<PlatformConfig>("--platform", flags.platform.as_deref())?,
        pci_segments: many::<PciSegmentConfig>("--pci-segment", &flags.pci_segment)?,
        landlock_enable: flags.landlock,
        landlock_rules: many::<LandlockConfig>("--landlock-rules", &flags.landlock_rules)?,
        pci_ports: many::<PciPortConfig>("--pci-port", &flags.pci_port)?,
        pci_places: many::<PciPlaceConfig>("--pci-place", &flags.pci_place)?,
    })
}

fn one<T: Options>(flag: &str, text: Option<&str>) -> Result<T, UsageError> {
    let Some(text) = text else { return Ok(T::default()) };
    T::parse(text).map_err(|error| UsageError(format!("{flag} {text}: {error}")))
}

fn maybe<T: Options>(flag: &str, text: Option<&str>) -> Result<Option<T>, UsageError> {
    text.map(|text| one(flag, Some(text))).transpose()
}

fn many<T: Options>(flag: &str, texts: &[String]) -> Result<Vec<T>, UsageError> {
    texts.iter().map(|text| one(flag, Some(text))).collect()
}

/// What is given of a kind; if nothing, what a machine has in any case.
fn several<T: Repeated>(flag: &str, texts: &[String]) -> Result<Several<T>, UsageError> {
    if texts.is_empty() { Ok(Several::default()) } else { many(flag, texts).map(Several::from) }
}

/// The virtio consoles with their channels.
fn consoles(texts: &[String], channels: Vec<ChannelOption>) -> Result<Several<ConsoleConfig>, UsageError> {
    let usual = ["tty".to_owned()];
    let texts = if texts.is_empty() { &usual } else { texts };
    let all = texts.iter().map(|text| console::<ConsoleConfig>("--console", text));
    let mut all: Vec<_> = all.collect::<Result<_, _>>()?;
    channel::share_out(&mut all, channels)?;
    Ok(all.into())
}

fn console<T: Options + console::Console>(flag: &str, text: &str) -> Result<T, UsageError> {
    console::parse(text).map_err(|error| UsageError(format!("{flag} {text}: {error}")))
}

/// Reads the flags of a machine, among which are none of the process that runs it.
///
/// # Errors
/// As [`parse`], and when there is one.
pub fn machine(flags: impl IntoIterator<Item = OsString>) -> Result<VmConfig, UsageError> {
    let arguments = std::iter::once("vivarium".into()).chain(flags);
    let matches = command().try_get_matches_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp => UsageError("--help: describes no machine; leave it out".into()),
        _ => UsageError(one_line(&error)),
    })?;
    let others = given(&matches).filter(|id| OF_THE_PROCESS.contains(id) || ALONE.contains(id));
    let others: Vec<String> = others
        .map(|id| if id == "verbosity" { "-v".into() } else { format!("--{}", id.replace('_', "-")) })
        .collect();
    if !others.is_empty() {
        return Err(UsageError(format!(
            "{}: is not of the machine but of the process that runs it; give it when that is started, and leave it out here",
            others.join(", ")
        )));
    }
    let flags = Flags::from_arg_matches(&matches).map_err(|error| UsageError(one_line(&error)))?;
    let config = config(&flags)?;
    config.validate_start()?;
    Ok(config)
}

/// Flags that say something of the process, not of the machine.
const OF_THE_PROCESS: [&str; 7] =
    ["api_socket", "event_monitor", "log_file", "log_format", "log_levels", "verbosity", "seccomp"];

/// Flags that mean something only where a process is started for one machine.
const ALONE: [&str; 3] = ["gdb", "help_option", "version"];

/// The flags that are given.
fn given(matches: &clap::ArgMatches) -> impl Iterator<Item = &str> {
    matches.ids().map(clap::Id::as_str).filter(|id| {
        *id != "Flags" && matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine)
    })
}

/// Whether a flag is given that says something of the machine, not of the process.
fn describes_a_machine(matches: &clap::ArgMatches) -> bool {
    given(matches).any(|id| !OF_THE_PROCESS.contains(&id))
}

/// The version that is told under cloud-hypervisor's names.
pub(crate) const COMPATIBLE_VERSION: &str = "v48.0.0";

/// The version; under the name `cloud-hypervisor`, a string that its clients accept.
fn version(program: Option<&OsString>) -> String {
    let name = program.map(|path| PathBuf::from(path).file_name().unwrap_or_default().to_owned());
    if name.is_some_and(|name| name == "cloud-hypervisor") {
        return format!("cloud-hypervisor {COMPATIBLE_VERSION}\n");
    }
    concat!("vivarium v", env!("CARGO_PKG_VERSION"), "\n").into()
}

#[cfg(test)]
mod tests;
