//! Which flags there are.

use clap::{ArgAction, CommandFactory, Parser};
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
    help_template = "{about}\n\n{before-help}{usage-heading} {usage}\n\n{all-args}{after-help}",
    override_usage = "vivarium [OPTIONS]\n       vivarium COMMAND ...",
    max_term_width = 100
)]
pub(super) struct Flags {
    /// The firmware that the machine starts in, such as AAVMF_CODE.fd (Arm).
    #[arg(long, value_name = "PATH")]
    pub(super) firmware: Option<PathBuf>,
    /// The file in which the firmware keeps its variables, such as a copy of AAVMF_VARS.fd.
    #[arg(long, value_name = "PATH")]
    pub(super) firmware_vars: Option<PathBuf>,
    /// The kernel: a bzImage, or an uncompressed ELF.
    #[arg(long, value_name = "PATH")]
    pub(super) kernel: Option<PathBuf>,
    /// The initial RAM file system.
    #[arg(long, value_name = "PATH")]
    pub(super) initramfs: Option<PathBuf>,
    /// The kernel's command line, such as "console=hvc0 root=/dev/vda".
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) cmdline: Option<String>,
    /// A firmware configuration device, by which the guest finds data by name.
    #[arg(long, value_name = "KEYS", num_args = 0..=1, default_missing_value = "")]
    pub(super) fw_cfg_config: Option<String>,
    /// The CPUs [default: boot=1].
    #[arg(long, value_name = "KEYS")]
    pub(super) cpus: Option<String>,
    /// The memory [default: size=512M].
    #[arg(long, value_name = "KEYS")]
    pub(super) memory: Option<String>,
    /// A part of the memory with properties of its own.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) memory_zone: Vec<String>,
    /// A NUMA node of the guest.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) numa: Vec<String>,
    /// A disk; several, or the option several times, for several.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) disk: Vec<String>,
    /// A network interface on a tap.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) net: Vec<String>,
    /// A source of entropy [default: src=/dev/urandom].
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) rng: Vec<String>,
    /// A real-time clock, by which the guest follows the host's clocks.
    #[arg(long, value_name = "KEYS", num_args = 0..=1, default_missing_value = "")]
    pub(super) rtc: Option<String>,
    /// A device by which memory comes and goes [default: one for each zone that can grow].
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) mem: Vec<String>,
    /// A memory balloon.
    #[arg(long, value_name = "KEYS")]
    pub(super) balloon: Option<String>,
    /// Persistent memory: a file that the guest has as memory.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) pmem: Vec<String>,
    /// Memory shared with other machines and programs on the host.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) ivshmem: Vec<String>,
    /// Sockets between the guest and programs on the host.
    #[arg(long, value_name = "KEYS")]
    pub(super) vsock: Option<String>,
    /// A virtio console: off, null, tty, pty, file=PATH or socket=PATH [default: tty].
    #[arg(long, value_name = "MODE", action = ArgAction::Append)]
    pub(super) console: Vec<String>,
    /// Channels between programs in the guest and on the host, such as to a guest agent.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) channel: Vec<String>,
    /// The serial port: off, null, tty, pty, file=PATH or socket=PATH [default: null].
    #[arg(long, value_name = "MODE")]
    pub(super) serial: Option<String>,
    /// The debug console: off, null, tty, pty or file=PATH, and iobase=PORT [default: off].
    #[arg(long, value_name = "MODE")]
    pub(super) debug_console: Option<String>,
    /// Add a pvpanic device, by which the guest reports its panics.
    #[arg(long, value_name = "KEYS", num_args = 0..=1, default_missing_value = "")]
    pub(super) pvpanic: Option<String>,
    /// What is done when the guest's kernel panics or a CPU cannot go on: a core dump, a restart.
    #[arg(long, value_name = "KEYS")]
    pub(super) on_crash: Option<String>,
    /// Add a watchdog, which restarts a guest that hangs, or does with it what action=ACTION says.
    #[arg(long, value_name = "KEYS", num_args = 0..=1, default_missing_value = "", action = ArgAction::Append)]
    pub(super) watchdog: Vec<String>,
    /// The machine's identity and number of PCI segments.
    #[arg(long, value_name = "KEYS")]
    pub(super) platform: Option<String>,
    /// A PCI segment's bus numbers, and its share of the address space for devices.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) pci_segment: Vec<String>,
    /// A PCI Express port, which devices are below that name it with bus=.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) pci_port: Vec<String>,
    /// Where on PCI a device is that is part of the machine, such as the console.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) pci_place: Vec<String>,
    /// A rate limit that several disks share.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) rate_limit_group: Vec<String>,
    /// A socket for GDB, for which the machine waits before its first instruction.
    #[arg(long, value_name = "KEYS")]
    pub(super) gdb: Option<String>,
    /// Let the machine reach only the files that its options name.
    #[arg(long)]
    pub(super) landlock: bool,
    /// A file or folder that a machine with --landlock may reach as well.
    #[arg(long, value_name = "KEYS", num_args = 1.., action = ArgAction::Append)]
    pub(super) landlock_rules: Vec<String>,
    /// Serve the REST API on this UNIX socket; without --kernel, vm.create makes the machine.
    #[arg(long, value_name = "KEYS")]
    pub(super) api_socket: Option<String>,
    /// Write every event here, as a line of JSON.
    #[arg(long, value_name = "KEYS")]
    pub(super) event_monitor: Option<String>,
    /// Write the log here instead of to standard error.
    #[arg(long, value_name = "PATH")]
    pub(super) log_file: Option<PathBuf>,
    /// Write each line of the log as text or as JSON.
    #[arg(long, value_name = "text|json", default_value = "text")]
    pub(super) log_format: String,
    /// Levels of single parts, such as virtio=debug,block=trace; the others are as -v says.
    #[arg(long, value_name = "PART=LEVEL,...")]
    pub(super) log_levels: Option<String>,
    /// Log more: -v for information, -vv for debugging, -vvv for everything.
    #[arg(short, action = ArgAction::Count)]
    pub(super) verbosity: u8,
    /// What a forbidden system call does: true ends the process, log reports it, false allows all.
    #[arg(long, value_name = "true|log|false", default_value = "true")]
    pub(super) seccomp: String,
    /// Show every key of one option, such as cpus.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub(super) help_option: Option<String>,
    /// Show the version.
    #[arg(short = 'V', long)]
    pub(super) version: bool,
}

/// All flags.
pub fn command() -> clap::Command {
    let commands = COMMANDS.map(|(name, about)| format!("\n  {name:<8} {about}")).concat();
    Flags::command().after_help(format!("Commands, each with a --help of its own:{commands}"))
}

/// The commands beside running a machine, and what each does.
pub const COMMANDS: [(&str, &str); 2] = [("ctl", crate::ctl::ABOUT), ("jail", crate::jail::ABOUT)];

/// Every argument of `command` with its value and its help, in the order of `--help`, for the reference page.
pub fn arguments(command: &clap::Command) -> Vec<(String, String, String)> {
    command
        .get_arguments()
        .filter_map(|argument| {
            let (flag, value) = shape(argument);
            let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let default: Vec<_> =
                argument.get_default_values().iter().map(|word| word.to_string_lossy()).collect();
            if argument.get_action().takes_values() && !default.is_empty() {
                help = format!("{help} [default: {}]", default.join(" "));
            }
            Some((flag?, value.unwrap_or_default(), help))
        })
        .collect()
}

/// Every flag with its help, in the order of `--help`.
pub fn flags() -> Vec<(String, String, String)> {
    arguments(&Flags::command())
}

/// How an argument is written: its flag, if it has one, and what follows it.
pub fn shape(argument: &clap::Arg) -> (Option<String>, Option<String>) {
    let flag = match (argument.get_long(), argument.get_short()) {
        (Some(long), _) => Some(format!("--{long}")),
        (None, short) => short.map(|short| format!("-{short}")),
    };
    let values = argument.get_value_names().unwrap_or_default();
    let value = argument.get_action().takes_values().then(|| {
        if values.is_empty() { argument.get_id().as_str().to_uppercase() } else { values.join(" ") }
    });
    (flag, value)
}

/// How a command is written: its name and its own arguments, those that may be left out in brackets.
pub fn synopsis(command: &clap::Command) -> String {
    let mut text = command.get_name().to_owned();
    for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
        let (flag, value) = shape(argument);
        if matches!(flag.as_deref(), Some("--help" | "--version")) {
            continue;
        }
        let behind = argument.is_last_set().then(|| "--".to_owned());
        let word = behind.into_iter().chain(flag).chain(value).collect::<Vec<_>>().join(" ");
        let word = if argument.is_required_set() { word } else { format!("[{word}]") };
        text.push(' ');
        text.push_str(&word);
    }
    text
}
