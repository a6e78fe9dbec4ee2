//! `vivarium jail`: runs a machine with as little of the host as it needs.
//!
//! The process that runs the machine has a root folder with nothing in it but the files that its options name and the devices a
//! machine needs; mount, process, message and, unless it has network interfaces, network namespaces of its own; a user
//! namespace in which nobody but its user exists; a control group with limits; no capabilities, and no way to get any. It is the
//! first process of its namespaces, so nothing of it outlives it. The process that was started waits for it, passes signals
//! on, and cleans up.

mod cgroup;
mod namespace;
mod privileges;
mod root;

use crate::cli::{self, Command, Run, UsageError};
use anyhow::{Context, Result, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{FromArgMatches, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

/// What it does.
pub const ABOUT: &str = "Runs a machine with as little of the host as it needs.";

const EXAMPLE: &str = "\
Example:
  Run a machine as user 1000 with at most two CPUs' worth of time and 2 GiB of memory:
    vivarium jail --id web1 --uid 1000 --gid 1000 --cgroup cpu.max='200000 100000' \\
        --cgroup memory.max=2G -- --kernel /boot/vmlinuz --disk path=/srv/web1.img --console off

  The user must be allowed to read and write the disk; /dev/kvm and /dev/net/tun are given to it.
  A tap has to be there already and to belong to the user: ip tuntap add tap0 mode tap user 1000";

/// How a machine is confined.
#[derive(Debug, Parser)]
#[command(
    name = "vivarium jail",
    about = ABOUT,
    version = concat!("v", env!("CARGO_PKG_VERSION")),
    after_help = EXAMPLE,
    override_usage = "vivarium jail --id ID --uid UID --gid GID [OPTIONS] -- RUN FLAGS"
)]
pub struct Jail {
    /// Name of the jail: letters, digits and hyphens.
    #[arg(long)]
    id: String,
    /// User the machine runs as: a number, or a name in /etc/passwd.
    #[arg(long, value_parser = |text: &str| named(text, "/etc/passwd"))]
    uid: u32,
    /// Group the machine runs as: a number, or a name in /etc/group.
    #[arg(long, value_parser = |text: &str| named(text, "/etc/group"))]
    gid: u32,
    /// A limit of the control group, as a file of cgroup v2 and what is written to it; may be given several times.
    #[arg(long, value_name = "FILE=VALUE")]
    cgroup: Vec<String>,
    /// Control group below which the jail's is made.
    #[arg(long, value_name = "NAME", default_value = "vivarium")]
    parent_cgroup: String,
    /// Network namespace to join, such as /run/netns/web1.
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// Most files the machine may have open.
    #[arg(long, value_name = "NUMBER", default_value_t = 4096)]
    open_files: u64,
    /// Largest file it may write, in bytes.
    #[arg(long, value_name = "BYTES")]
    file_size: Option<u64>,
    /// Folder in which the jail's root is mounted.
    #[arg(long, value_name = "PATH", default_value = "/run/vivarium/jail")]
    base: PathBuf,
    /// The flags of the machine.
    #[arg(last = true, value_name = "RUN FLAGS")]
    flags: Vec<OsString>,
}

/// What a command line after `jail` asks for.
pub enum Asked {
    /// Run a machine so.
    Run(Box<Jail>, Box<Run>),
    /// Print this.
    Print(String),
}

/// All that can be said before `--`.
pub(crate) fn command() -> clap::Command {
    <Jail as clap::CommandFactory>::command()
}

/// Reads the command line. `arguments` starts with the word `jail`.
///
/// # Errors
/// When it cannot be understood.
pub fn parse(arguments: Vec<OsString>) -> Result<Asked, UsageError> {
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Asked::Print(error.to_string()));
        }
        Err(error) => return Err(UsageError(format!("jail: {}", refusal(&error)))),
    };
    let jail = Jail::from_arg_matches(&matches).map_err(|error| UsageError(error.to_string()))?;
    let named = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if jail.id.is_empty() || jail.id.len() > 64 || !jail.id.chars().all(named) {
        let id = &jail.id;
        return Err(UsageError(format!(
            "jail --id {id}: is no name for a jail; write 1 to 64 letters, digits and hyphens"
        )));
    }
    for (option, number) in [("--uid", jail.uid), ("--gid", jail.gid)] {
        if number == 0 {
            return Err(UsageError(format!(
                "jail {option} 0: a machine in a jail is not run as root; name a user and a group of its own"
            )));
        }
    }
    let flags = std::iter::once("vivarium".into()).chain(jail.flags.iter().cloned());
    match cli::parse(flags)? {
        Command::Run(run) => Ok(Asked::Run(Box::new(jail), run)),
        _ => {
            Err(UsageError("jail: after -- come the flags of a machine to run, such as --kernel PATH".into()))
        }
    }
}

/// The number of a user or group: as it is written, or that of the name in `file`, whose lines have the name first and the number
/// third (passwd(5), group(5)).
fn named(text: &str, file: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let lines =
        std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}; write its number"))?;
    let number = lines.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(text)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    number.ok_or_else(|| format!("is not in {file}; write its number"))
}

/// Why what is before `--` cannot be understood, in one line.
fn refusal(error: &clap::Error) -> String {
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if error.kind() == ErrorKind::UnknownArgument => word,
        _ => "",
    };
    if cli::flags().iter().any(|(flag, _, _)| flag == unknown && flag != "-v") {
        return format!("{unknown}: is an option of the machine; put it after --");
    }
    let line = cli::one_line_of(error, "vivarium jail", &cli::arguments(&command()));
    if line.contains("; ") { line } else { format!("{line}; vivarium jail --help shows an example") }
}

/// Runs the machine, and returns its exit status.
///
/// # Errors
/// When the host refuses some part of the jail; nothing is left behind then.
pub fn run(jail: &Jail, run: Run) -> Result<u8> {
    if privileges::effective_user() != 0 {
        bail!("jail: only root can make a jail; run it with sudo, or run the machine without one");
    }
    let root = jail.base.join(&jail.id);
    let files = needed_files(&run)?;
    let folder = root::Folder::make(&root).with_context(|| format!("jail --id {}", jail.id))?;
    let lock = folder.descriptor();
    let group = cgroup::Group::make(&jail.parent_cgroup, &jail.id, &jail.cgroup).context("jail --cgroup")?;
    group.enter().context("jail --cgroup: entering it")?;
    if let Some(path) = &jail.netns {
        namespace::join_network(path).with_context(|| format!("jail --netns {}", path.display()))?;
    }
    // With a tap, the machine stays in the network namespace that the tap is in.
    let own_network = jail.netns.is_none() && run.config.as_ref().is_none_or(|config| config.net.is_empty());
    namespace::leave(own_network).context("jail: making namespaces")?;
    namespace::run_first_process(move |parent| {
        privileges::close(lock);
        let mut kept = named_descriptors(&run);
        kept.push(parent.descriptor());
        let confined = privileges::close_descriptors(&kept)
            .context("jail: closing descriptors")
            .and_then(|()| {
                root::enter(&root, &files, jail.uid, jail.gid).context("jail: making the root folder")
            })
            .and_then(|()| {
                privileges::limit(libc::RLIMIT_NOFILE, jail.open_files).context("jail --open-files")
            })
            .and_then(|()| match jail.file_size {
                Some(size) => privileges::limit(libc::RLIMIT_FSIZE, size).context("jail --file-size"),
                None => Ok(()),
            })
            .and_then(|()| privileges::limit(libc::RLIMIT_CORE, 0).context("jail: forbidding core dumps"))
            .and_then(|()| privileges::drop_to(jail.uid, jail.gid));
        parent.end_with();
        match confined.and_then(|()| crate::run(run)) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("vivarium: {}", cli::failure(&error));
                1
            }
        }
    })
}

/// The descriptors that the machine's options name.
fn named_descriptors(run: &Run) -> Vec<i32> {
    let nets =
        run.config.iter().flat_map(|config| &config.net).flat_map(|net| net.fds.iter().flatten().copied());
    let api = run.api_socket.as_ref().and_then(|socket| socket.fd);
    let events = run.event_monitor.as_ref().and_then(|monitor| monitor.fd);
    nets.chain(api).chain(events).collect()
}

/// The files that the machine's options name. Relative paths mean nothing in another root.
fn needed_files(run: &Run) -> Result<Vec<root::Needed>> {
    let mut needed = Vec::new();
    let machine = run.config.iter().flat_map(|config| config.named_files());
    let machine = machine.map(|file| (file.option, file.path, file.made, file.anew, file.read_only));
    let own = [
        ("--log-file", run.log.file.clone(), false),
        ("--gdb path", run.gdb.as_ref().map(|gdb| gdb.path.clone()), true),
        ("--api-socket path", run.api_socket.as_ref().and_then(|socket| socket.path.clone()), true),
        ("--event-monitor path", run.event_monitor.as_ref().and_then(|monitor| monitor.path.clone()), false),
    ];
    let own = own
        .into_iter()
        .filter_map(|(option, path, anew)| Some((option.to_owned(), path?, true, anew, false)));
    for (option, path, made, anew, read_only) in machine.chain(own) {
        if !path.is_absolute() {
            bail!("{option}={}: in a jail paths are absolute; write where it is from /", path.display());
        }
        if !made {
            std::fs::metadata(&path).with_context(|| format!("{option}={}", path.display()))?;
        }
        // What is made needs the folder it is made in.
        let folder = made && (anew || !path.exists());
        let path = if folder { path.parent().map(PathBuf::from).unwrap_or_default() } else { path };
        if path.as_os_str() == "/" {
            bail!("{option}: would give the jail the host's root folder; make it in a folder of its own");
        }
        needed.push(root::Needed { option, path, read_only: read_only && !folder });
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> String {
        match parse(line.split_whitespace().map(Into::into).collect()) {
            Err(error) => error.0,
            Ok(_) => panic!("{line} was taken"),
        }
    }

    #[test]
    fn a_command_line_that_makes_no_jail_is_refused_with_the_remedy() {
        for (line, expected) in [
            (
                "jail --uid 1 --gid 1 -- --kernel k",
                "jail: --id ID is missing; vivarium jail --help shows an example",
            ),
            ("jail --id a/b --uid 1 --gid 1 -- --kernel k", "jail --id a/b: is no name for a jail"),
            (
                "jail --id a --uid 0 --gid 1 -- --kernel k",
                "jail --uid 0: a machine in a jail is not run as root",
            ),
            ("jail --bogus", "jail: --bogus: there is no such option; vivarium jail --help lists them"),
            ("jail --idd a", "jail: --idd: there is no such option; did you mean --id?"),
            ("jail --id a --kernel k", "jail: --kernel: is an option of the machine; put it after --"),
            ("jail --id a --uid 1 --gid 1", "--kernel is missing"),
            ("jail --id a --uid 1 --gid 1 -- --version", "jail: after -- come the flags of a machine"),
        ] {
            assert!(refused(line).starts_with(expected), "{line}: {}", refused(line));
        }
    }

    #[test]
    fn only_what_is_made_gives_the_jail_the_folder_it_is_in() {
        let flags = "--kernel /proc/version --serial file=/run/nope/log --console file=/proc/uptime \
                     --on-crash coredump=/proc/cmdline";
        let line = format!(
            "jail --id a --uid 1 --gid 1 -- {flags} --log-file /tmp/log --event-monitor path=/proc/loadavg"
        );
        let Ok(Asked::Run(_, run)) = parse(line.split_whitespace().map(Into::into).collect()) else {
            panic!("{line}")
        };
        let needed = needed_files(&run).unwrap();
        let paths: Vec<_> = needed.iter().map(|file| file.path.to_str().unwrap()).collect();
        let expected =
            ["/proc/version", "/run/nope", "/dev/urandom", "/proc/uptime", "/proc", "/tmp", "/proc/loadavg"];
        assert_eq!(paths, expected);
    }

    #[test]
    fn relative_paths_and_the_hosts_root_are_refused() {
        for (flags, expected) in [
            ("--kernel k", "--kernel=k: in a jail paths are absolute"),
            ("--kernel /proc/nope", "--kernel=/proc/nope: No such file"),
            ("--kernel /proc/version --disk path=/proc/nope/x", "--disk path=/proc/nope/x: No such file"),
            (
                "--kernel /proc/version --serial socket=/s",
                "--serial socket: would give the jail the host's root",
            ),
        ] {
            let line = format!("jail --id a --uid 1 --gid 1 -- {flags}");
            let Ok(Asked::Run(_, run)) = parse(line.split_whitespace().map(Into::into).collect()) else {
                panic!("{line}")
            };
            let error = cli::failure(&needed_files(&run).unwrap_err());
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
