//! `vivarium ctl`: drives a running monitor over its API. Under the name `ch-remote` it behaves as that program does.
//!
//! There is a verb for each of the API's paths ([`ROUTES`]); `body` says how the command line's form of a verb becomes its
//! body.

mod body;
mod client;
mod completions;
mod errors;
mod man;
mod offers;
mod show;
mod top;

use crate::api::routes::{PREFIX, ROUTES, Route, Serves, Takes};
use crate::api::socket::ApiSocketConfig;
use crate::cli::UsageError;
use crate::config::Options;
use anyhow::{Context, Result, bail};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use client::{Client, Refused};
use std::ffi::OsString;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What it does.
pub const ABOUT: &str = "Drives a running monitor over its API.";

const EXAMPLES: &str = "\
Examples:
  Look at a machine, and at one of its queues:
    vivarium ctl --api-socket /run/vm.sock info
    vivarium ctl --api-socket /run/vm.sock inspect pci/0000:00:03.0

  Add a disk while it runs, and take it away:
    vivarium ctl --api-socket /run/vm.sock add-disk path=data.img,id=data
    vivarium ctl --api-socket /run/vm.sock remove-device data

  Watch it:
    vivarium ctl --api-socket /run/vm.sock events
    vivarium ctl --api-socket /run/vm.sock top";

/// The program's name if it is to behave as cloud-hypervisor's client.
const COMPATIBLE_NAME: &str = "ch-remote";

/// The arguments if `arguments`, which start with the program's name, are for this and not for running a machine.
pub fn arguments(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let program = arguments.first().map(|path| Path::new(path).file_name().unwrap_or_default().to_owned());
    if program.as_deref().is_some_and(|name| name == COMPATIBLE_NAME) {
        let rest = arguments.iter().skip(1).cloned();
        return Some(std::iter::once(COMPATIBLE_NAME.into()).chain(rest).collect());
    }
    if arguments.get(1).is_some_and(|verb| verb == "ctl") {
        let rest = arguments.iter().skip(2).cloned();
        return Some(std::iter::once("vivarium ctl".into()).chain(rest).collect());
    }
    None
}

/// Does what the arguments say.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let compatible = arguments.first().is_some_and(|name| name == COMPATIBLE_NAME);
    let json = arguments.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    let told = |text: &str| match json {
        true => eprintln!("{}", serde_json::json!([text])),
        false => eprintln!("vivarium ctl: {text}"),
    };
    let command = command(if compatible { COMPATIBLE_NAME } else { "vivarium ctl" });
    let matches = match command.try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error)
            if error.use_stderr()
                && (json || error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand) =>
        {
            told(&errors::one_line(&error, errors::verb_among(arguments).as_deref()));
            return ExitCode::from(2);
        }
        Err(error) => {
            // Help and versions: where they go, and what they look like, is clap's to say.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match perform(&matches, json || compatible) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<Refused>() {
                Some(refused) if json || compatible => eprintln!("{}", refused.body),
                Some(refused) => {
                    let verb = matches.subcommand_name().unwrap_or_default();
                    told(&errors::in_the_words_of(verb, &refused.to_string()));
                }
                None => told(&crate::cli::failure(&error)),
            }
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

/// The verb of a route.
fn verb(route: &Route) -> &'static str {
    match route.name {
        "vmm.shutdown" => "shutdown-vmm",
        "vmm.ping" => "ping",
        "openapi.json" => "openapi",
        name => name.strip_prefix("vm.").unwrap_or(name).trim_start_matches('/'),
    }
}

/// All that can be said.
pub(crate) fn command(name: &'static str) -> Command {
    let verbs = ROUTES.iter().map(|route| {
        let supported = !matches!(route.serves, Serves::Call(Takes::Unsupported(_)));
        let remark = if supported { "" } else { " Not supported: the monitor refuses it." };
        let command = Command::new(verb(route)).about(format!("{}.{remark}", route.summary));
        match &route.serves {
            Serves::Call(Takes::Body(kind, _)) => body::with_arguments(kind, command),
            Serves::Call(Takes::Unsupported(_)) => command.arg(
                Arg::new("config")
                    .value_name("CONFIG")
                    .num_args(0..)
                    .help("Not looked at: this is not supported."),
            ),
            Serves::Call(Takes::Path(_)) => {
                command.arg(Arg::new("path").value_name("PATH").help("Names from the root, separated by /."))
            }
            Serves::Events => command.arg(after()).arg(count()),
            Serves::Call(Takes::Nothing(_)) | Serves::OpenApi => command,
        }
    });
    Command::new(name)
        .about(ABOUT)
        .version(if name == COMPATIBLE_NAME {
            crate::cli::COMPATIBLE_VERSION
        } else {
            concat!("v", env!("CARGO_PKG_VERSION"))
        })
        .after_help(EXAMPLES)
        .max_term_width(100)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("api-socket")
                .long("api-socket")
                .value_name("PATH")
                .global(true)
                .help("The socket of the monitor, as its --api-socket says."),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .global(true)
                .action(ArgAction::SetTrue)
                .help("Write answers as JSON, as they come."),
        )
        .subcommands(verbs)
        .subcommand(top::command())
        .subcommand(completions::command_for_completions())
        .subcommand(completions::command_for_offers())
        .subcommand(completions::command_for_man())
}

fn after() -> Arg {
    Arg::new("after")
        .long("after")
        .value_name("ID")
        .value_parser(clap::value_parser!(u64))
        .help("First those of the last events whose number is above this.")
}

fn count() -> Arg {
    Arg::new("count")
        .long("count")
        .value_name("N")
        .value_parser(clap::value_parser!(u64).range(1..))
        .help("End after so many events.")
}

fn perform(matches: &ArgMatches, json: bool) -> Result<()> {
    let (name, verb_matches) = matches.subcommand().context("no verb is given")?;
    match name {
        "completions" => return completions::print(verb_matches),
        "complete" => return completions::print_offers(verb_matches),
        "man" => return completions::write_man_pages(verb_matches),
        _ => {}
    }
    let socket = &socket(verb_matches.get_one("api-socket"))?;
    if name == "top" {
        return top::run(Client::connect(socket)?, verb_matches, json);
    }
    let route = ROUTES.iter().find(|route| verb(route) == name).context("there is no such verb")?;
    match &route.serves {
        Serves::Events => events(route, socket, verb_matches, json),
        serves => {
            let mut path = route.path();
            let (body, files) = match serves {
                Serves::Call(Takes::Body(kind, _)) => body::of(kind, verb_matches)?,
                Serves::Call(Takes::Path(_)) => {
                    let part = verb_matches.get_one::<String>("path").map_or("", String::as_str);
                    let query: String =
                        form_urlencoded::Serializer::new(String::new()).append_pair("path", part).finish();
                    path = format!("{path}?{query}");
                    (None, Vec::new())
                }
                _ => (None, Vec::new()),
            };
            let answer = Client::connect(socket)?.ask(route.method, &path, body, files)?;
            match answer {
                None => Ok(()),
                Some(text) if json => print(&format!("{}\n", text.trim_end())),
                Some(text) => print(&show::answer(route, &text)),
            }
        }
    }
}

/// Where the monitor listens: what is given is written as the monitor's own option is.
fn socket(given: Option<&String>) -> Result<PathBuf> {
    let missing = || UsageError("--api-socket is missing; give the socket of the monitor".into());
    let text = given.ok_or_else(missing)?;
    let config =
        ApiSocketConfig::parse(text).map_err(|error| UsageError(format!("--api-socket {text}: {error}")))?;
    match config {
        ApiSocketConfig { path: Some(path), fd: None } => Ok(path),
        _ => bail!(UsageError(format!("--api-socket {text}: names no socket; write --api-socket PATH"))),
    }
}

fn events(route: &Route, socket: &Path, matches: &ArgMatches, json: bool) -> Result<()> {
    let mut path = format!("{PREFIX}{}", route.name);
    if let Some(after) = matches.get_one::<u64>("after") {
        path = format!("{path}?after={after}");
    }
    let mut left = matches.get_one::<u64>("count").copied();
    let mut failed = None;
    Client::connect(socket)?.listen(&path, |data| {
        let line = if json { format!("{data}\n") } else { show::event(data) };
        if let Err(error) = print(&line) {
            failed = Some(error);
            return ControlFlow::Break(());
        }
        left = left.map(|left| left.saturating_sub(1));
        if left == Some(0) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    failed.map_or(Ok(()), Err)
}

/// Writes to standard output. Whoever reads it may have seen enough.
fn print(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("writing to standard output"),
    }
}
