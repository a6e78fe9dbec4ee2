//! What can stand at a place of the command line, for completion in a shell: from the definitions of the options, as they are at the
//! moment. The shells' scripts ask for it with `vivarium ctl complete`.

use super::body::keys_of;
use crate::api::routes::{ROUTES, Serves, Takes};
use crate::cli;
use crate::config::options::Field;
use crate::config_help::{self, ENTRIES};
use clap::{Arg, Command, ValueHint};

/// One thing that can stand there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// This word, and what it means. Nothing follows it at once unless it ends with `=`.
    Word(String, String),
    /// A file's path, behind this part of the word.
    File(String),
}

/// What can be the last of `words`, of which it may be the beginning. The first is that behind the program's name.
pub(super) fn offers(words: &[String]) -> Vec<Offer> {
    let Some((current, before)) = words.split_last() else { return Vec::new() };
    let mut all = match before.split_first() {
        Some((first, rest)) if first == "ctl" => client(rest, current),
        Some((first, rest)) if first == "jail" => jail(rest, current),
        Some((first, rest)) if first == "help" => help(rest),
        Some(_) => flags(&cli::command(), before, current),
        None => {
            let commands = cli::COMMANDS.iter().map(|(name, about)| word(name, about));
            let mut all: Vec<_> = commands.chain([word("help", "Shows the help of a command.")]).collect();
            all.extend(flags(&cli::command(), before, current));
            all
        }
    };
    all.retain(|offer| match offer {
        Offer::Word(text, _) => text.starts_with(current.as_str()),
        Offer::File(_) => true,
    });
    all
}

fn word(text: &str, help: &str) -> Offer {
    Offer::Word(text.to_owned(), help.to_owned())
}

fn help(before: &[String]) -> Vec<Offer> {
    match before {
        [] => cli::COMMANDS.iter().map(|(name, about)| word(name, about)).collect(),
        [first] if first == "ctl" => verbs(&super::command("vivarium ctl")),
        _ => Vec::new(),
    }
}

fn jail(before: &[String], current: &str) -> Vec<Offer> {
    match before.iter().position(|word| word == "--") {
        Some(at) => flags(&cli::command(), before.get(at + 1..).unwrap_or_default(), current),
        None => flags(&built(crate::jail::command()), before, current),
    }
}

fn client(before: &[String], current: &str) -> Vec<Offer> {
    let command = built(super::command("vivarium ctl"));
    let mut words = before.iter().enumerate();
    while let Some((at, word)) = words.next() {
        if word == "--api-socket" {
            words.next();
        } else if !word.starts_with('-') {
            let rest = before.get(at + 1..).unwrap_or_default();
            return command.find_subcommand(word).map_or(Vec::new(), |verb| match word.as_str() {
                "help" if rest.is_empty() => verbs(&command),
                _ => self::verb(verb, rest, current),
            });
        }
    }
    let mut all = flags(&command, before, current);
    if !all.iter().any(|offer| matches!(offer, Offer::File(_))) {
        all.extend(verbs(&command));
    }
    all
}

fn verbs(command: &Command) -> Vec<Offer> {
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    verbs.map(|verb| word(verb.get_name(), &text(verb.get_about()))).collect()
}

fn verb(verb: &Command, before: &[String], current: &str) -> Vec<Offer> {
    if let Some(at) = before.iter().position(|word| word == "--") {
        // The machine to create.
        return flags(&cli::command(), before.get(at + 1..).unwrap_or_default(), current);
    }
    let mut all = flags(verb, before, current);
    if current.starts_with('-') || value_of(verb, before).is_some() {
        return all;
    }
    // Words that no flag takes are the verb's own, in their order.
    let given = (0..before.len()).filter(|at| {
        let is_flag = before.get(*at).is_some_and(|word| word.starts_with('-'));
        !is_flag && value_of(verb, before.get(..*at).unwrap_or_default()).is_none()
    });
    let mut own = verb.get_positionals().filter(|argument| !argument.is_last_set());
    if let Some(argument) = own.nth(given.count()) {
        let route = ROUTES.iter().find(|route| super::verb(route) == verb.get_name());
        let fields = match route.map(|route| &route.serves) {
            Some(Serves::Call(Takes::Body(kind, _))) if argument.get_id() == "keys" => keys_of(kind),
            _ => None,
        };
        all.extend(match fields {
            Some(fields) => keys(fields, "", current),
            None => values(argument, "", current),
        });
    }
    all
}

/// What a command's flags allow.
fn flags(command: &Command, before: &[String], current: &str) -> Vec<Offer> {
    // `--flag=VALUE`
    if let Some((name, value)) = current.split_once('=').filter(|(name, _)| name.starts_with("--")) {
        let argument = argument(command, name);
        return argument.map_or(Vec::new(), |argument| values(argument, &format!("{name}="), value));
    }
    let mut all = Vec::new();
    if let Some(argument) = value_of(command, before) {
        all.extend(values(argument, "", current));
        let last = before.last().is_some_and(|word| word.starts_with('-'));
        let may_be_none = argument.get_num_args().is_some_and(|number| number.min_values() == 0);
        if last && !may_be_none {
            return all;
        }
    }
    for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
        if let Some(name) = cli::shape(argument).0.filter(|_| current.starts_with('-')) {
            all.push(word(&name, &text(argument.get_help())));
        }
    }
    all
}

/// The flag whose value comes behind `before`, if one can.
fn value_of<'a>(command: &'a Command, before: &[String]) -> Option<&'a Arg> {
    let at = before.iter().rposition(|word| word.starts_with('-'))?;
    let argument = argument(command, before.get(at)?)?;
    let many = argument.get_num_args().map_or(1, |number| number.max_values());
    let taken = before.len() - at - 1;
    (argument.get_action().takes_values() && taken < many).then_some(argument)
}

fn argument<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| cli::shape(argument).0.as_deref() == Some(name))
}

/// The values of an argument. `prefix` is what stands before in the same word.
fn values(argument: &Arg, prefix: &str, current: &str) -> Vec<Offer> {
    let flag = argument.get_long().unwrap_or_default();
    if let Some(entry) = ENTRIES.iter().find(|entry| entry.name == flag)
        // A verb's flag may have the name of an option with keys.
        && argument.get_value_names().is_some_and(|names| names.iter().any(|name| name == "KEYS" || name == "MODE"))
    {
        return keys(entry.fields, prefix, current);
    }
    let valid = argument.get_possible_values();
    if !valid.is_empty() {
        return valid.iter().map(|value| word(&format!("{prefix}{}", value.get_name()), "")).collect();
    }
    match flag {
        "help-option" => {
            config_help::names().iter().map(|name| word(&format!("{prefix}{name}"), "")).collect()
        }
        "log-levels" => levels(prefix, current),
        "api-socket" => vec![Offer::File(prefix.to_owned())],
        _ => {
            let hint = argument.get_value_names().unwrap_or_default().join(" ");
            match argument.get_value_hint() {
                ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath => {
                    vec![Offer::File(prefix.to_owned())]
                }
                _ => choices(&hint, prefix),
            }
        }
    }
}

/// The words of a form such as `true|log|false`.
fn choices(hint: &str, prefix: &str) -> Vec<Offer> {
    let form = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || "-_0123456789".contains(c))
    };
    let words: Vec<_> = hint.split('|').collect();
    if words.len() < 2 || !words.iter().all(|word| form(word)) {
        return Vec::new();
    }
    words.into_iter().map(|choice| word(&format!("{prefix}{choice}"), "")).collect()
}

/// `key=value,...`: keys that are not there yet, or values of the last one.
fn keys(fields: &[Field], prefix: &str, current: &str) -> Vec<Offer> {
    let start = current.rfind(',').map_or(0, |comma| comma + 1);
    let (earlier, last) = current.split_at(start);
    let prefix = format!("{prefix}{earlier}");
    if let Some((key, _)) = last.split_once('=') {
        let field = fields.iter().find(|field| field.key == key);
        return field.map_or(Vec::new(), |field| value(field, &format!("{prefix}{key}=")));
    }
    let given: Vec<_> = earlier.split(',').filter_map(|pair| pair.split('=').next()).collect();
    let mut all = Vec::new();
    for field in fields.iter().filter(|field| !given.contains(&field.key)) {
        // A word alone is a value only at the start.
        if field.bare && earlier.is_empty() {
            all.extend(value(field, &prefix));
        }
        let is_mode = field.bare && field.hint.contains('|');
        if !is_mode {
            all.push(word(&format!("{prefix}{}=", field.key), field.doc.trim()));
        }
    }
    all
}

fn value(field: &Field, prefix: &str) -> Vec<Offer> {
    match field.hint {
        "<path>" => vec![Offer::File(prefix.to_owned())],
        hint => choices(hint, prefix),
    }
}

/// `PART=LEVEL,...`.
fn levels(prefix: &str, current: &str) -> Vec<Offer> {
    let start = current.rfind(',').map_or(0, |comma| comma + 1);
    let (earlier, last) = current.split_at(start);
    match last.split_once('=') {
        Some((part, _)) => choices("off|error|warn|info|debug|trace", &format!("{prefix}{earlier}{part}=")),
        None => crate::log::PARTS.iter().map(|part| word(&format!("{prefix}{earlier}{part}="), "")).collect(),
    }
}

/// A command with the arguments that all have.
fn built(mut command: Command) -> Command {
    command.build();
    command
}

fn text(styled: Option<&clap::builder::StyledStr>) -> String {
    styled.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is offered at the end of `line`.
    fn at_the_end_of(line: &str) -> Vec<String> {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let told = |offer| match offer {
            Offer::Word(text, _) => text,
            Offer::File(prefix) => format!("{prefix}<file>"),
        };
        offers(&words).into_iter().map(told).collect()
    }

    #[test]
    fn each_place_offers_what_can_stand_there() {
        for (line, expected) in [
            ("jai", &["jail"][..]),
            ("--ker", &["--kernel"]),
            ("--kernel ", &["<file>"]),
            ("--kernel /b", &["<file>"]),
            ("--seccomp ", &["true", "log", "false"]),
            ("--seccomp=l", &["--seccomp=log"]),
            ("--log-format ", &["text", "json"]),
            ("--console pt", &["pty"]),
            ("--console file=/t", &["file=<file>"]),
            ("--help-option net", &["net"]),
            ("--log-levels blo", &["block="]),
            ("--log-levels block=de", &["block=debug"]),
            ("--disk pa", &["path=", "packed="]),
            ("--disk path=/x,reado", &["path=/x,readonly="]),
            ("--disk path=/x,readonly=", &["path=/x,readonly=on", "path=/x,readonly=off"]),
            ("--disk path=/x path=", &["path=<file>"]),
            ("--disk=path=/x,ser", &["--disk=path=/x,serial="]),
            ("--cpus boot=", &[]),
            ("--cpus boot=1 ", &[]),
            ("ctl add-d", &["add-disk", "add-device"]),
            ("ctl --api-socket ", &["<file>"]),
            ("ctl --api-socket s add-rt", &["add-rtc"]),
            ("ctl help set-l", &["set-link"]),
            ("ctl set-link n0 ", &["up", "down"]),
            ("ctl set-link ", &[]),
            ("ctl add-disk --timeout 5 pa", &["path=", "packed="]),
            ("ctl set-rate-limit d0 bw_s", &["bw_size="]),
            ("ctl add-disk --ti", &["--timeout"]),
            ("ctl create ", &["<file>"]),
            ("ctl create -- --ker", &["--kernel"]),
            ("ctl create -- --disk pa", &["path=", "packed="]),
            ("ctl completions ", &["bash", "zsh", "fish"]),
            ("ctl man ", &["<file>"]),
            ("ctl resize-disk --disk ", &[]),
            ("jail --ne", &["--netns"]),
            ("jail --netns ", &["<file>"]),
            ("jail --id a -- --ker", &["--kernel"]),
            ("help ja", &["jail"]),
            ("help ctl ping", &["ping"]),
        ] {
            assert_eq!(at_the_end_of(line), expected, "{line}");
        }
    }
}
