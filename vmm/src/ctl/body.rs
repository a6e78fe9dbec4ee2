//! Bodies from the command line: the same syntax as the options of `vivarium` have.

use crate::api::request::{
    Coredump, DeviceQueueAffinity, Opening, RemoveDevice, Resize, ResizeDisk, ResizeZone, SetAffinity,
    SetLink, SetRateLimit, SetThrottle, SwitchPorts,
};
use crate::cli::UsageError;
use crate::config::options::{ByteSize, Field};
use crate::config::rate_limit::RATE_LIMIT_KEYS;
use crate::config::{
    BalloonConfig, ChannelConfig, ConsoleConfig, CpusConfig, DiskConfig, IvshmemConfig, MemConfig, NetConfig,
    Options, PciPortConfig, PmemConfig, PvpanicConfig, RateLimiterConfig, RngConfig, RtcConfig, VmConfig,
    VsockConfig, WatchdogConfig,
};
use crate::machine::throttle::MOST;
use anyhow::{Context, Result, anyhow, bail};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, ValueHint};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A request's body and the descriptors that go with it.
pub(super) type Body = (Option<String>, Vec<OwnedFd>);

/// The option of `vivarium` whose keys a body of this kind has, if there is one.
pub(super) fn option_of(kind: &str) -> Option<&'static str> {
    let name = match kind {
        "AddPort" => "pci-port".to_owned(),
        _ => kind.strip_prefix("Add")?.to_lowercase(),
    };
    crate::config_help::entry(&name).map(|entry| entry.name)
}

/// The keys that a body of this kind is written with, if it is.
pub(super) fn keys_of(kind: &str) -> Option<&'static [Field]> {
    match kind {
        "SetRateLimit" => Some(RATE_LIMIT_KEYS),
        _ => option_of(kind).and_then(crate::config_help::entry).map(|entry| entry.fields),
    }
}

/// The fields of a body of this kind that the command line has under another name, and that.
pub(super) fn fields(kind: &str) -> &'static [(&'static str, &'static str)] {
    match kind {
        "Resize" => {
            &[("desired_vcpus", "--cpus"), ("desired_ram", "--memory"), ("desired_balloon", "--balloon")]
        }
        "ResizeDisk" => &[("desired_size", "--size")],
        "ResizeZone" => &[("desired_ram", "--size")],
        "SetAffinity" => &[("cpus", "--cpus"), ("queues", "--queues")],
        _ => &[],
    }
}

/// Adds the arguments that make up a body of this kind.
pub(super) fn with_arguments(kind: &str, command: Command) -> Command {
    let keys = |fields: &[Field]| {
        let list = fields.iter().map(|field| field.key).collect::<Vec<_>>().join(", ");
        Arg::new("keys")
            .value_name("KEYS")
            .required(true)
            .help(match option_of(kind) {
                Some(option) => {
                    format!("key=value,...; the keys are {list}. vivarium --help-option {option} tells what each means.")
                }
                None => format!("key=value,...; the keys are {list}."),
            })
    };
    let id = |help: &'static str| Arg::new("id").value_name("ID").required(true).help(help);
    let size = |name: &'static str, help: &'static str| {
        let parser = |text: &str| text.parse::<ByteSize>();
        Arg::new(name).long(name).value_name("SIZE").value_parser(parser).help(help)
    };
    match kind {
        "VmConfig" => command
            .arg(
                Arg::new("path")
                    .value_name("PATH")
                    .default_value("-")
                    .value_hint(ValueHint::FilePath)
                    .help("A file with the machine as JSON; - for standard input."),
            )
            .arg(
                Arg::new("flags")
                    .value_name("FLAGS")
                    .last(true)
                    .num_args(1..)
                    .allow_hyphen_values(true)
                    .help("The machine as vivarium's own flags, such as -- --kernel vmlinuz --cpus boot=2."),
            ),
        "AddDisk" => command.arg(keys(DiskConfig::FIELDS)).arg(opening()),
        "AddNet" => command.arg(keys(NetConfig::FIELDS)).arg(opening()),
        "AddPmem" => command.arg(keys(PmemConfig::FIELDS)).arg(opening()),
        "AddVsock" => command.arg(keys(VsockConfig::FIELDS)).arg(opening()),
        "AddRng" => command.arg(keys(RngConfig::FIELDS).required(false)).arg(opening()),
        "AddIvshmem" => command.arg(keys(IvshmemConfig::FIELDS)).arg(opening()),
        "AddWatchdog" => command.arg(keys(WatchdogConfig::FIELDS).required(false)).arg(opening()),
        "AddPvpanic" => command.arg(keys(PvpanicConfig::FIELDS).required(false)).arg(opening()),
        "AddMem" => command.arg(keys(MemConfig::FIELDS).required(false)).arg(opening()),
        "AddBalloon" => command.arg(keys(BalloonConfig::FIELDS).required(false)).arg(opening()),
        "AddConsole" => {
            let channels = keys(ChannelConfig::FIELDS).id("channel").long("channel").required(false);
            let channels = channels.value_name("KEYS").action(ArgAction::Append);
            command.arg(keys(ConsoleConfig::FIELDS).required(false)).arg(channels).arg(opening())
        }
        "AddPort" => {
            let ports = keys(PciPortConfig::FIELDS).id("port").long("port").required(false);
            let ports = ports.value_name("KEYS").action(ArgAction::Append);
            command.arg(keys(PciPortConfig::FIELDS)).arg(ports)
        }
        "AddRtc" => command.arg(keys(RtcConfig::FIELDS).required(false)).arg(opening()),
        "SetAffinity" => command
            .arg(Arg::new("cpus").long("cpus").value_name("LIST").help(
                "Host CPUs each CPU may run on: [CPU@[HOST CPU,...],...]. [0@[1,2],1@[3-5]] has CPU 0 on 1 and 2, and CPU 1 on 3 to 5.",
            ))
            .arg(Arg::new("device").long("device").value_name("ID").requires("queues").help("The device whose queues --queues is about."))
            .arg(
                Arg::new("queues")
                    .long("queues")
                    .value_name("LIST")
                    .requires("device")
                    .help("Host CPUs each of its queues' workers may run on, in the same form."),
            )
            .group(any_of(&["cpus", "queues"]))
            .arg_required_else_help(true),
        "SetThrottle" => command.arg(
            Arg::new("percent")
                .value_name("PERCENT")
                .required(true)
                .value_parser(clap::value_parser!(u8).range(0..=i64::from(MOST)))
                .help("The share of the time in which CPUs are held; 0 lets them run."),
        ),
        "Coredump" => command.arg(
            Arg::new("path")
                .value_name("PATH")
                .required(true)
                .value_hint(ValueHint::FilePath)
                .help("The file to write, or its file:// address."),
        ),
        "RemoveDevice" => command
            .arg(id("The device."))
            .arg(
                Arg::new("force")
                    .long("force")
                    .action(ArgAction::SetTrue)
                    .help("Take it away without waiting for the guest to release it."),
            )
            .arg(
                Arg::new("timeout")
                    .long("timeout")
                    .value_name("MILLISECONDS")
                    .value_parser(clap::value_parser!(u64))
                    .help("How long the guest may take to release it."),
            ),
        "Resize" => command
            .arg(
                Arg::new("cpus")
                    .long("cpus")
                    .value_name("N")
                    .value_parser(clap::value_parser!(u32))
                    .help("How many CPUs there shall be."),
            )
            .arg(size("memory", "How much memory there shall be."))
            .arg(size("balloon", "How much of it the balloon shall take."))
            .group(any_of(&["cpus", "memory", "balloon"]))
            .arg_required_else_help(true),
        "ResizeDisk" => command
            .arg(Arg::new("disk").long("disk").value_name("ID").required(true).help("The disk."))
            .arg(size("size", "Its new size.").required(true)),
        "ResizeZone" => command
            .arg(Arg::new("id").long("id").value_name("ID").required(true).help("The zone."))
            .arg(size("size", "Its new size.").required(true)),
        "SetRateLimit" => command
            .arg(id("The disk, network interface or rate limit group."))
            .arg(keys(RATE_LIMIT_KEYS).required(false)).after_help("Without KEYS there is no limit; a group always has one."),
        "SetLink" => command
            .arg(id("The network interface."))
            .arg(Arg::new("link").value_name("up|down").required(true).value_parser(["up", "down"])),
        _ => command.arg(
            Arg::new("json")
                .value_name("JSON")
                .required(true)
                .help("The body, as JSON, as the API takes it."),
        ),
    }
}

/// At least one of these is to be given.
fn any_of(arguments: &[&'static str]) -> ArgGroup {
    ArgGroup::new("any").args(arguments).required(true).multiple(true)
}

/// The body of this kind that the arguments say.
pub(super) fn of(kind: &str, matches: &ArgMatches) -> Result<Body> {
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let size = |name: &str| matches.get_one::<ByteSize>(name).copied();
    match kind {
        "VmConfig" => create(&text("path"), matches),
        "AddDisk" => addition(&options::<DiskConfig>("add-disk", &text("keys"))?, matches),
        "AddPmem" => addition(&options::<PmemConfig>("add-pmem", &text("keys"))?, matches),
        "AddVsock" => addition(&options::<VsockConfig>("add-vsock", &text("keys"))?, matches),
        "AddRng" => addition(&options::<RngConfig>("add-rng", &text("keys"))?, matches),
        "AddIvshmem" => addition(&options::<IvshmemConfig>("add-ivshmem", &text("keys"))?, matches),
        "AddWatchdog" => addition(&options::<WatchdogConfig>("add-watchdog", &text("keys"))?, matches),
        "AddPvpanic" => addition(&options::<PvpanicConfig>("add-pvpanic", &text("keys"))?, matches),
        "AddMem" => addition(&options::<MemConfig>("add-mem", &text("keys"))?, matches),
        "AddBalloon" => addition(&options::<BalloonConfig>("add-balloon", &text("keys"))?, matches),
        "AddConsole" => {
            let text = text("keys");
            let mut console: ConsoleConfig = crate::config::console::parse(&text)
                .map_err(|error| anyhow!("add-console {text}: {error}"))?;
            for text in matches.get_many::<String>("channel").into_iter().flatten() {
                console.channels.push(options("add-console --channel", text)?);
            }
            addition(&console, matches)
        }
        "AddPort" => {
            let port: PciPortConfig = options("add-port", &text("keys"))?;
            let below = matches.get_many::<String>("port").into_iter().flatten();
            let ports = below.map(|text| options("add-port --port", text)).collect::<Result<_>>()?;
            beside(&port, &SwitchPorts { ports })
        }
        "AddRtc" => addition(&options::<RtcConfig>("add-rtc", &text("keys"))?, matches),
        "SetAffinity" => {
            let cpus = affinity::<CpusConfig>("--cpus", "affinity", &text("cpus"))?.affinity;
            let disk = affinity::<DiskConfig>("--queues", "queue_affinity", &text("queues"))?;
            let queues = disk.queue_affinity.into_iter().map(|queue| DeviceQueueAffinity {
                id: text("device"),
                queue_index: queue.queue_index,
                host_cpus: queue.host_cpus,
            });
            json(&SetAffinity { cpus, queues: queues.collect() })
        }
        "SetThrottle" => {
            json(&SetThrottle { percent: matches.get_one("percent").copied().unwrap_or_default() })
        }
        "AddNet" => {
            let mut net: NetConfig = options("add-net", &text("keys"))?;
            // Their numbers mean nothing to the monitor: the descriptors themselves are sent.
            let files = net.fds.take().unwrap_or_default();
            let files = files.into_iter().map(descriptor).collect::<Result<_>>()?;
            Ok((addition(&net, matches)?.0, files))
        }
        "Coredump" => {
            let path = text("path");
            let destination_url = if path.starts_with("file://") {
                path
            } else if path.contains("://") {
                return Err(
                    UsageError(format!("coredump {path}: a dump goes to a file; give its path")).into()
                );
            } else {
                format!("file://{}", std::path::absolute(&path)?.display())
            };
            json(&Coredump { destination_url })
        }
        "RemoveDevice" => json(&RemoveDevice {
            id: text("id"),
            force: matches.get_flag("force"),
            timeout_ms: matches.get_one("timeout").copied(),
        }),
        "Resize" => json(&Resize {
            desired_vcpus: matches.get_one("cpus").copied(),
            desired_ram: size("memory"),
            desired_balloon: size("balloon"),
        }),
        "ResizeDisk" => {
            json(&ResizeDisk { id: text("disk"), desired_size: size("size").context("--size is missing")? })
        }
        "ResizeZone" => {
            json(&ResizeZone { id: text("id"), desired_ram: size("size").context("--size is missing")? })
        }
        "SetRateLimit" => {
            let limits: Limits = crate::config::key_value::from_str(&text("keys"), RATE_LIMIT_KEYS)
                .map_err(|error| UsageError(format!("set-rate-limit {}: {error}", text("keys"))))?;
            json(&SetRateLimit { id: text("id"), rate_limiter_config: limits.rate_limiter_config })
        }
        "SetLink" => json(&SetLink { id: text("id"), up: text("link") == "up" }),
        _ => {
            let body = text("json");
            serde_json::from_str::<serde::de::IgnoredAny>(&body).map_err(|error| {
                UsageError(format!("{body}: is no JSON: {error}; write it as the API takes it"))
            })?;
            Ok((Some(body), Vec::new()))
        }
    }
}

/// Rate limits in the command line's form.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Limits {
    rate_limiter_config: Option<RateLimiterConfig>,
}

fn create(path: &str, matches: &ArgMatches) -> Result<Body> {
    if let Some(flags) = matches.get_many::<String>("flags") {
        let machine = crate::cli::machine(flags.map(Into::into));
        return json::<VmConfig>(&machine.map_err(|error| UsageError(format!("create: {error}")))?);
    }
    let mut body = String::new();
    if path == "-" {
        std::io::stdin().read_to_string(&mut body).context("reading the machine from standard input")?;
    } else {
        body = std::fs::read_to_string(path).with_context(|| format!("reading the machine from {path}"))?;
    }
    serde_json::from_str::<serde::de::IgnoredAny>(&body).map_err(|error| match path {
        "-" => anyhow!("create: standard input is no JSON: {error}; give the machine as JSON, or behind --"),
        path => anyhow!("create {path}: is no JSON: {error}; give the machine as JSON, or behind --"),
    })?;
    Ok((Some(body), Vec::new()))
}

/// What a list of host CPUs says, which is that key of the option's; the flag has another name.
fn affinity<T: Options>(flag: &str, key: &str, list: &str) -> Result<T> {
    if list.is_empty() {
        return Ok(T::default());
    }
    let wrong = |reason: &str| {
        UsageError(format!(
            "set-affinity {flag} {list}: {reason}; write {flag} [0@[1,2],1@[3-5]] or the like"
        ))
    };
    if has_parts(list) {
        return Err(wrong("is not one list in brackets").into());
    }
    T::parse(&format!("{key}={list}")).map_err(|error| {
        let error = error.to_string();
        wrong(error.strip_prefix(&format!("{key}: ")).unwrap_or(&error)).into()
    })
}

/// Whether there is a comma outside of all brackets: what follows it would be another key of the option.
fn has_parts(list: &str) -> bool {
    let mut depth = 0_i32;
    list.bytes().any(|byte| {
        match byte {
            b'[' => depth += 1,
            b']' => depth -= 1,
            _ => {}
        }
        byte == b',' && depth == 0
    })
}

fn options<T: Options>(verb: &str, text: &str) -> Result<T> {
    T::parse(text).map_err(|error| UsageError(format!("{verb} {text}: {error}")).into())
}

fn json<T: Serialize>(value: &T) -> Result<Body> {
    Ok((Some(serde_json::to_string(value)?), Vec::new()))
}

/// How long the host may take to open a device.
fn opening() -> Arg {
    Arg::new("timeout")
        .long("timeout")
        .value_name("MILLISECONDS")
        .value_parser(clap::value_parser!(u64))
        .help("How long the host may take to open it.")
}

/// A device that is to come.
fn addition<T: Serialize>(device: &T, matches: &ArgMatches) -> Result<Body> {
    beside(device, &Opening { timeout_ms: matches.get_one("timeout").copied() })
}

/// Two objects in one.
fn beside<T: Serialize, U: Serialize>(one: &T, further: &U) -> Result<Body> {
    let (mut body, further) = (serde_json::to_value(one)?, serde_json::to_value(further)?);
    if let (Some(body), serde_json::Value::Object(further)) = (body.as_object_mut(), further) {
        body.extend(further);
    }
    json(&body)
}

/// A copy of a descriptor that this process was started with.
fn descriptor(fd: i32) -> Result<OwnedFd> {
    if fd < 0 {
        bail!(UsageError(format!("add-net fd={fd}: is no descriptor; give the number of an open one")));
    }
    // SAFETY: only borrowed to be duplicated, which fails if it is not open.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    file.try_clone_to_owned().with_context(|| format!("add-net fd={fd}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_goes_to_a_file_and_nowhere_else() {
        let body = |destination: &str| {
            let command = super::super::command("vivarium ctl");
            let matches = command.try_get_matches_from(["vivarium ctl", "coredump", destination]).unwrap();
            of("Coredump", matches.subcommand().unwrap().1).map(|body| body.0.unwrap_or_default())
        };
        for path in ["/a/dump", "file:///a/dump"] {
            assert_eq!(body(path).unwrap(), r#"{"destination_url":"file:///a/dump"}"#);
        }
        let refused = body("http://host/dump").unwrap_err();
        assert!(
            refused.is::<UsageError>() && refused.to_string().contains("coredump http://host/dump"),
            "{refused}"
        );
    }

    #[test]
    fn host_cpus_are_one_list_and_nothing_else_of_the_options() {
        let body = |list: &str| {
            let command = super::super::command("vivarium ctl");
            let words = ["vivarium ctl", "set-affinity", "--device", "d", "--queues", list];
            let matches = command.try_get_matches_from(words).unwrap();
            of("SetAffinity", matches.subcommand().unwrap().1).map(|body| body.0.unwrap_or_default())
        };
        let queues = r#"[{"id":"d","queue_index":0,"host_cpus":[1,2,3]}]"#;
        assert_eq!(body("[0@[1-3]]").unwrap(), format!(r#"{{"cpus":[],"queues":{queues}}}"#));
        for list in ["0@[0],1@[1]", "[0@[0]],foo=1", "[0@[0]],num_queues=2"] {
            let told = format!(
                "set-affinity --queues {list}: is not one list in brackets; write --queues [0@[1,2],1@[3-5]] or the like"
            );
            assert_eq!(body(list).unwrap_err().to_string(), told);
        }
    }
}
