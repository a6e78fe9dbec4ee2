//! The command line: flags as cloud-hypervisor names them.
//!
//! Each flag's value is read by the configuration struct it belongs to ([`crate::config`]); this file only says
//! which flags there are.

use crate::api::event_monitor::EventMonitorConfig;
use crate::api::socket::ApiSocketConfig;
use crate::config::{
    BalloonConfig, ConfigError, CpusConfig, CrashConfig, DebugConsoleConfig, DiskConfig, FwCfgConfig,
    GdbConfig, IvshmemConfig, LandlockConfig, MemoryConfig, MemoryZoneConfig, NetConfig, NumaConfig, Options,
    PayloadConfig, PciSegmentConfig, PlatformConfig, PmemConfig, RateLimitGroupConfig, RngConfig, RtcConfig,
    VmConfig, VsockConfig, WatchdogConfig, console,
};
use crate::config::{PciPlaceConfig, PciPortConfig};
use crate::log::{Format, Levels, LogOptions};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

/// Shown by `--help` before anything else.
const EXAMPLES: &str = "\
Examples:
  Boot a kernel with an initial RAM file system, on this terminal:
    vivarium --kernel vmlinuz --initramfs initrd.img --cmdline console=hvc0 --console tty

  Boot a disk with 4 CPUs, 8 GiB and a network:
    vivarium --kernel vmlinuz --cmdline \"root=/dev/vda console=hvc0\" --console tty \\
        --cpus boot=4 --memory size=8G --disk path=root.img --net tap=tap0

  See every key of an option:
    vivarium --help-option disk";

/// Every flag, with its raw value.
#[derive(Debug, Parser)]
#[command(
    name = "vivarium",
    about = "A virtual machine monitor for Linux KVM.",
    before_help = EXAMPLES,
    disable_version_flag = true,
    help_template = "{about}\n\n{before-help}{usage-heading} {usage}\n\n{all-args}",
    override_usage = "vivarium [OPTIONS]",
    max_term_width = 100
)]
struct Flags {
    /// The firmware that the machine starts in, such as AAVMF_CODE.fd (Arm).
    #[arg(long, value_name = "PATH")]
    firmware: Option<PathBuf>,
    /// The file in which the firmware keeps its variables, such as a copy of AAVMF_VARS.fd.
    #[arg(long, value_name = "PATH")]
    firmware_vars: Option<PathBuf>,
    /// The kernel: a bzImage, or an uncompressed ELF.
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// The initial RAM file system.
    #[arg(long, value_name = "PATH")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line, such as "console=hvc0 root=/dev/vda".
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// A firmware configuration device, by which the guest finds data by name.
    #[arg(long, value_name = "KEYS", num_args = 0..=1, default_missing_value = "")]
    fw_cfg_config: Option<String>,
    /// The CPUs [default: boot=1].
    #[arg(long, value_name = "KEYS")]
    cpus: Option<String>,
    /// The memory [default: size=512M].
    #[arg(long, value_name = "KEYS")]
    memory: Option<String>,
    /// A part of the memory with properties of its own.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    memory_zone: Vec<String>,
    /// A NUMA node of the guest.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    numa: Vec<String>,
    /// A disk; several, or the option several times, for several.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    disk: Vec<String>,
    /// A network interface on a tap.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    net: Vec<String>,
    /// The entropy source [default: src=/dev/urandom].
    #[arg(long, value_name = "KEYS")]
    rng: Option<String>,
    /// A real-time clock, by which the guest follows the host's clocks.
    #[arg(long, value_name = "KEYS", num_args = 0..=1, default_missing_value = "")]
    rtc: Option<String>,
    /// A memory balloon.
    #[arg(long, value_name = "KEYS")]
    balloon: Option<String>,
    /// Persistent memory: a file that the guest has as memory.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pmem: Vec<String>,
    /// Memory shared with other machines and programs on the host.
    #[arg(long, value_name = "KEYS")]
    ivshmem: Option<String>,
    /// Sockets between the guest and programs on the host.
    #[arg(long, value_name = "KEYS")]
    vsock: Option<String>,
    /// The virtio console: off, null, tty, pty, file=PATH or socket=PATH [default: tty].
    #[arg(long, value_name = "MODE")]
    console: Option<String>,
    /// The serial port: off, null, tty, pty, file=PATH or socket=PATH [default: null].
    #[arg(long, value_name = "MODE")]
    serial: Option<String>,
    /// The debug console: off, null, tty, pty or file=PATH, and iobase=PORT [default: off].
    #[arg(long, value_name = "MODE")]
    debug_console: Option<String>,
    /// Add a pvpanic device, by which the guest reports its panics.
    #[arg(long)]
    pvpanic: bool,
    /// What is done when the guest's kernel panics or a CPU cannot go on: a core dump, a restart.
    #[arg(long, value_name = "KEYS")]
    on_crash: Option<String>,
    /// Add a watchdog, which restarts a guest that hangs, or does with it what action=ACTION says.
    #[arg(long, value_name = "KEYS", num_args = 0..=1, default_missing_value = "")]
    watchdog: Option<String>,
    /// The machine's identity and number of PCI segments.
    #[arg(long, value_name = "KEYS")]
    platform: Option<String>,
    /// How a PCI segment weighs when address space is shared out.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pci_segment: Vec<String>,
    /// A PCI Express port, which devices are below that name it with bus=.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pci_port: Vec<String>,
    /// Where on PCI a device is that is part of the machine, such as the console.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pci_place: Vec<String>,
    /// A rate limit that several disks share.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    rate_limit_group: Vec<String>,
    /// A socket for GDB, for which the machine waits before its first instruction.
    #[arg(long, value_name = "KEYS")]
    gdb: Option<String>,
    /// Let the machine reach only the files that its options name.
    #[arg(long)]
    landlock: bool,
    /// A file or folder that a machine with --landlock may reach as well.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    landlock_rules: Vec<String>,
    /// Serve the REST API on this UNIX socket; without --kernel, vm.create makes the machine.
    #[arg(long, value_name = "KEYS")]
    api_socket: Option<String>,
    /// Write every event here, as a line of JSON.
    #[arg(long, value_name = "KEYS")]
    event_monitor: Option<String>,
    /// Write the log here instead of to standard error.
    #[arg(long, value_name = "PATH")]
    log_file: Option<PathBuf>,
    /// Write each line of the log as text or as JSON.
    #[arg(long, value_name = "text|json", default_value = "text")]
    log_format: String,
    /// Levels of single parts, such as virtio=debug,block=trace; the others are as -v says.
    #[arg(long, value_name = "PART=LEVEL,...")]
    log_levels: Option<String>,
    /// Log more: -v for information, -vv for debugging, -vvv for everything.
    #[arg(short, action = ArgAction::Count)]
    verbosity: u8,
    /// What a forbidden system call does: true ends the process, log reports it, false allows all.
    #[arg(long, value_name = "true|log|false", default_value = "true")]
    seccomp: String,
    /// Show every key of one option, such as cpus.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    help_option: Option<String>,
    /// Show the version.
    #[arg(short = 'V', long)]
    version: bool,
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

/// A command line that cannot be understood: one line for the user.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(pub String);

impl From<ConfigError> for UsageError {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}

/// Reads the command line. `arguments` starts with the program's name.
///
/// # Errors
/// When it cannot be understood; the text names the option and the value and says what to do.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // A path that is not could be opened, but not be told in JSON.
    if let Some(argument) = arguments.iter().skip(1).find(|argument| argument.to_str().is_none()) {
        return Err(UsageError(format!("{argument:?} is not valid UTF-8; give it a name that is")));
    }
    let matches = match Flags::command().try_get_matches_from(&arguments) {
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
        config.validate()?;
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
    let watchdog = maybe::<WatchdogConfig>("--watchdog", flags.watchdog.as_deref())?;
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
        rng: one::<RngConfig>("--rng", flags.rng.as_deref())?,
        rtc: maybe::<RtcConfig>("--rtc", flags.rtc.as_deref())?,
        balloon: maybe::<BalloonConfig>("--balloon", flags.balloon.as_deref())?,
        pmem: many::<PmemConfig>("--pmem", &flags.pmem)?,
        ivshmem: maybe::<IvshmemConfig>("--ivshmem", flags.ivshmem.as_deref())?,
        vsock: maybe::<VsockConfig>("--vsock", flags.vsock.as_deref())?,
        serial: console("--serial", flags.serial.as_deref().unwrap_or("null"))?,
        console: console("--console", flags.console.as_deref().unwrap_or("tty"))?,
        debug_console: console::<DebugConsoleConfig>(
            "--debug-console",
            flags.debug_console.as_deref().unwrap_or("off"),
        )?,
        pvpanic: flags.pvpanic,
        on_crash: maybe::<CrashConfig>("--on-crash", flags.on_crash.as_deref())?,
        watchdog: watchdog.is_some(),
        watchdog_action: watchdog.as_ref().map(|watchdog| watchdog.action).unwrap_or_default(),
        watchdog_model: watchdog.map(|watchdog| watchdog.model).unwrap_or_default(),
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

fn console<T: Options + console::Console>(flag: &str, text: &str) -> Result<T, UsageError> {
    console::parse(text).map_err(|error| UsageError(format!("{flag} {text}: {error}")))
}

/// Whether a flag is given that says something of the machine, not of the process.
fn describes_a_machine(matches: &clap::ArgMatches) -> bool {
    const OF_THE_PROCESS: [&str; 7] =
        ["api_socket", "event_monitor", "log_file", "log_format", "log_levels", "verbosity", "seccomp"];
    matches.ids().any(|id| {
        let given = matches.value_source(id.as_str()) == Some(clap::parser::ValueSource::CommandLine);
        given && id != "Flags" && !OF_THE_PROCESS.contains(&id.as_str())
    })
}

/// The version; under the name `cloud-hypervisor`, a string that its clients accept.
fn version(program: Option<&OsString>) -> String {
    let name = program.map(|path| PathBuf::from(path).file_name().unwrap_or_default().to_owned());
    if name.is_some_and(|name| name == "cloud-hypervisor") {
        return "cloud-hypervisor v48.0.0\n".into();
    }
    concat!("vivarium v", env!("CARGO_PKG_VERSION"), "\n").into()
}

/// A usage error on one line, with the remedy.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let argument = context(ContextKind::InvalidArg);
    // `--cpus <KEYS>`: the flag, and what follows it.
    let flag = argument.split_whitespace().next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with('-') => match nearest(argument) {
            Some(near) => format!("{argument}: there is no such option; did you mean {near}?"),
            None => format!("{argument}: there is no such option; vivarium --help lists them"),
        },
        ErrorKind::UnknownArgument => {
            format!(
                "{argument}: is not the value of any option; put it after one, or leave it out (see vivarium --help)"
            )
        }
        ErrorKind::ArgumentConflict => format!("{flag}: is given twice; give it once"),
        ErrorKind::InvalidValue => {
            format!(
                "{flag}: needs a value; write {}",
                argument.replace(['<', '>'], "").trim_end_matches("...")
            )
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(missing)) => missing.join(" "),
                _ => String::new(),
            };
            format!("{} is missing", missing.replace(['<', '>'], ""))
        }
        ErrorKind::TooManyValues => {
            format!("{flag} {}: takes no value; write {flag} alone", context(ContextKind::InvalidValue))
        }
        _ => {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage"));
            lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
        }
    }
}

/// A failure with its causes and what can be done, for the user; a cause that a message before it tells already is left out.
pub fn failure(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    // Who knew more than the host's answer has said what to do.
    let answer = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    if let Some(remedy) = answer.and_then(remedy).filter(|_| !text.contains("; ")) {
        text = format!("{text}; {remedy}");
    }
    text
}

/// What a user can do where the host gave this answer about a file, a socket or a descriptor of theirs.
fn remedy(answer: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    Some(match answer.kind() {
        ErrorKind::NotFound => "correct the path, or make what is missing of it",
        ErrorKind::PermissionDenied => "give this user the right to it, or give another path",
        ErrorKind::IsADirectory => "give a file",
        ErrorKind::NotADirectory => "correct the path: a part of it is a file",
        ErrorKind::AddrInUse => "end the program that listens there, or give another path",
        ErrorKind::ReadOnlyFilesystem => "give a path on a file system that can be written to",
        ErrorKind::StorageFull => "free some space, or give another path",
        // Only a socket's path can be that.
        ErrorKind::InvalidInput if answer.raw_os_error().is_none() => "give a path of at most 107 bytes",
        _ if answer.raw_os_error() == Some(libc::EBADF) => {
            "start this process with that descriptor open, or give another one"
        }
        _ => return None,
    })
}

/// The flag that is spelt most like `argument`, if one is close.
fn nearest(argument: &str) -> Option<String> {
    flags()
        .into_iter()
        .map(|(name, _, _)| (crate::config::key_value::distance(argument, &name), name))
        .filter(|(distance, _)| *distance <= argument.len() / 4)
        .min()
        .map(|(_, name)| name)
}

/// All flags.
pub(crate) fn command() -> clap::Command {
    Flags::command()
}

/// Every flag with its help, in the order of `--help`, for the reference page.
pub fn flags() -> Vec<(String, String, String)> {
    Flags::command()
        .get_arguments()
        .filter_map(|argument| {
            let name = match (argument.get_long(), argument.get_short()) {
                (Some(long), _) => format!("--{long}"),
                (None, Some(short)) => format!("-{short}"),
                (None, None) => return None,
            };
            let values = argument.get_value_names().unwrap_or_default();
            let value = if argument.get_action().takes_values() {
                values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            } else {
                String::new()
            };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            Some((name, value, help))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Run, String> {
        let arguments = std::iter::once("vivarium").chain(line.split_whitespace()).map(OsString::from);
        match parse(arguments).map_err(|error| error.0)? {
            Command::Run(run) => Ok(*run),
            Command::Print(text) => Err(text),
        }
    }

    #[test]
    fn a_full_command_line_becomes_a_configuration() {
        let run = run("--kernel k --initramfs i --cpus boot=2,max=4,topology=1:2:1:2 --memory size=1G,shared=on \
             --disk path=a,readonly=on path=b,num_queues=4 --disk path=c,bw_size=1000,bw_refill_time=100 \
             --net tap=t0,mac=12:34:56:78:9a:bc --serial file=/tmp/s --console off --pvpanic -vv --seccomp log")
        .unwrap();
        let config = run.config.unwrap();
        assert_eq!((config.cpus.boot_vcpus, config.cpus.max_vcpus), (2, Some(4)));
        assert_eq!(config.disks.len(), 3);
        assert_eq!(config.disks[1].num_queues, 4);
        let bucket = config.disks[2].rate_limiter_config.unwrap().bandwidth.unwrap();
        assert_eq!((bucket.size, bucket.refill_time), (1000, 100));
        assert_eq!(config.serial.mode, crate::config::ConsoleMode::File);
        assert_eq!((run.log.verbosity, run.seccomp), (2, Seccomp::Log));
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(json["cpus"]["topology"]["packages"], 2, "the JSON form has cloud-hypervisor's names");
        assert_eq!(serde_json::from_value::<VmConfig>(json).unwrap(), config);
    }

    #[test]
    fn a_bad_command_line_is_refused_in_one_line_that_names_option_and_value() {
        for (line, expected) in [
            ("", "--kernel is missing; give the kernel to boot: --kernel PATH"),
            (
                "--kernel k --firmware-vars v",
                "--firmware-vars v: there is no firmware whose variables they are; add --firmware PATH",
            ),
            ("--firmware f --initramfs i", "--initramfs i: firmware gives it to a kernel only; add --kernel"),
            ("--firmware f --cmdline c", "--cmdline c: firmware gives it to a kernel only; add --kernel"),
            ("--kernel k --wrong 1", "--wrong: there is no such option; vivarium --help lists them"),
            ("--kernel k --disc path=a", "--disc: there is no such option; did you mean --disk?"),
            ("--kernel k extra", "extra: is not the value of any option; put it after one"),
            ("--kernel k --cpus boot=1 --cpus boot=2", "--cpus: is given twice; give it once"),
            ("--kernel", "--kernel: needs a value; write --kernel PATH"),
            ("--kernel k --disk", "--disk: needs a value; write --disk KEYS"),
            ("--kernel k --pvpanic=on", "--pvpanic on: takes no value; write --pvpanic alone"),
            (
                "--help-option kernel",
                "--help-option kernel: no option of that name has keys; those that do are cpus",
            ),
            ("--kernel k --cpus 4", "--cpus 4: \"4\" is not of the form key=value; the keys are boot, max"),
            (
                "--kernel k --net ip=1.2.3",
                "--net ip=1.2.3: ip: \"1.2.3\": invalid IP address syntax; write one like 192.168.0.1",
            ),
            ("--kernel k --net tap=0123456789abcdef", "--net tap=0123456789abcdef: the name is too long"),
            (
                "--kernel k --net tap=t,ip=10.0.0.1,mask=255.0.255.0",
                "--net tap=t: mask=255.0.255.0 is no network mask: its bits are set from the left",
            ),
            ("--kernel k --disk path=", "--disk: has no path; add path=<image>"),
            ("--kernel k --serial file", "--serial file: needs a path; write --serial file=<path>"),
            ("--kernel k --serial socket=", "--serial socket: needs a path; write --serial socket=<path>"),
            (
                "--kernel k --disk path=a,id=x --net id=x",
                "--net id=x: is given to two devices; names must differ",
            ),
            (
                "--kernel k --watchdog action=bark",
                "--watchdog action=bark: action: \"bark\" is not one of reset, poweroff, pause, none",
            ),
            ("--kernel k --pmem size=2M", "--pmem: has no file; add file=<path>"),
            ("--kernel k --vsock cid=3", "--vsock cid=3: has no socket; add socket=<path>"),
            (
                "--kernel k --vsock cid=2,socket=/s",
                "--vsock cid=2,socket=/s: cid: 2 is out of range: it can be 3 to 4294967294",
            ),
            ("--kernel k --rate-limit-group id=a", "--rate-limit-group id=a: limits nothing; give bw_size"),
            (
                "--kernel k --debug-console tty",
                "--debug-console tty: --console has the terminal already (that is its default)",
            ),
            ("--kernel k --cpus boot=0", "--cpus boot=0: a machine needs at least one CPU"),
            ("--kernel k --cpus boot=x", "--cpus boot=x: boot: \"x\" is not a whole number"),
            ("--kernel k --cpus bots=1", "--cpus bots=1: unknown key \"bots\"; did you mean \"boot\"?"),
            (
                "--kernel k --cpus boot=4,max=2",
                "--cpus max=2: is less than boot=4; raise max or leave it out",
            ),
            (
                "--kernel k --cpus boot=4,topology=1:1:1:1",
                "--cpus topology=1:1:1:1: makes 1 CPUs, and the machine has 4; the product must be max",
            ),
            (
                "--kernel k --memory size=0",
                "--memory size=0: the memory has no size; write size=1G or the like",
            ),
            ("--kernel k --memory size=1", "--memory size=1: is not a multiple of 4K"),
            ("--kernel k --memory size=32M", "--memory size=32M: the least a machine can have is 64M"),
            (
                "--kernel k --disk path=/x path=/x",
                "--disk path=/x: the same disk is given twice; two disks writing one image would destroy it",
            ),
            (
                "--kernel k --disk path=/x,queue_size=100",
                "--disk path=/x: queue_size=100 is not a power of two",
            ),
            (
                "--kernel k --disk path=/x,num_queues=257",
                "--disk path=/x,num_queues=257: num_queues: 257 is out of range: it can be 1 to 256",
            ),
            (
                "--kernel k --ivshmem size=1M",
                "--ivshmem: has no path; add path=<file>, or socket=<path> of a server",
            ),
            (
                "--kernel k --ivshmem socket=/s,path=/p",
                "--ivshmem socket=/s: has a path too; leave that out, since the server has the memory",
            ),
            ("--kernel k --seccomp maybe", "--seccomp maybe: write true, log or false"),
            (
                "--kernel k --serial tty --console tty",
                "--console tty: --serial has the terminal already; give one of them off, null or pty",
            ),
            (
                "--kernel k --serial loud",
                "--serial loud: mode: \"loud\" is not one of off, null, tty, pty, file, socket",
            ),
        ] {
            let error = run(line).unwrap_err();
            assert!(error.starts_with(expected), "{line}\n  expected: {expected}\n  got: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn a_path_that_json_cannot_tell_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let arguments = ["vivarium", "--kernel"].map(OsString::from).into_iter();
        let error = parse(arguments.chain([OsString::from_vec(b"a\xffb".to_vec())])).unwrap_err();
        assert_eq!(error.0, r#""a\xFFb" is not valid UTF-8; give it a name that is"#);
    }

    #[test]
    fn a_failure_tells_each_cause_once() {
        let cause = std::io::Error::from_raw_os_error(2);
        let told = anyhow::Error::new(cause).context("opening /x: No such file or directory (os error 2)");
        let text = failure(&told.context("--serial"));
        assert_eq!(
            text,
            "--serial: opening /x: No such file or directory (os error 2); correct the path, or make what is missing of it"
        );
        let told =
            anyhow::Error::new(std::io::Error::from_raw_os_error(2)).context("--rng: wrong; leave it out");
        assert_eq!(failure(&told), "--rng: wrong; leave it out: No such file or directory (os error 2)");
    }

    #[test]
    fn help_shows_three_examples_before_the_options() {
        let help = run("--help").unwrap_err();
        let (examples, options) = help.split_once("Options:").unwrap();
        assert_eq!(examples.matches("\n    vivarium ").count(), 3, "{help}");
        assert!(options.contains("--memory-zone"));
    }

    #[test]
    fn the_version_is_cloud_hypervisors_under_its_name() {
        let text = |name: &str| match parse([name, "--version"].map(OsString::from)).unwrap() {
            Command::Print(text) => text,
            Command::Run(_) => String::new(),
        };
        assert!(text("/usr/bin/vivarium").starts_with("vivarium v"));
        assert!(text("/usr/bin/cloud-hypervisor").starts_with("cloud-hypervisor v"));
    }
}
