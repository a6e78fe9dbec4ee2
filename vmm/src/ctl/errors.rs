//! What is said of a command line of `vivarium ctl` that cannot be understood: the thing, the reason, the remedy, in one line.

use crate::api::routes::{ROUTES, Serves, Takes};
use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;

/// A usage error on one line. `verb` is the one that it is about.
pub(super) fn one_line(error: &Error, verb: Option<&str>) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    };
    let help = verb.map_or("vivarium ctl --help".into(), |verb| format!("vivarium ctl {verb} --help"));
    let arguments: Vec<_> = context(ContextKind::InvalidArg).iter().map(|text| plain(text)).collect();
    let argument = arguments.join(", ");
    let value = context(ContextKind::InvalidValue).join(", ");
    // `--cpus N`: what is wrong is the value behind the flag.
    let flag =
        if argument.starts_with('-') { argument.split(' ').next().unwrap_or_default() } else { &argument };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let verb = context(ContextKind::InvalidSubcommand).join(", ");
            let near = nearest(&verb).map(|near| format!("did you mean {near}? ")).unwrap_or_default();
            format!("{verb}: there is no such verb; {near}vivarium ctl --help lists them")
        }
        ErrorKind::UnknownArgument => match verb {
            Some(verb) => format!("{argument}: {verb} takes no such argument; {help} lists what it takes"),
            None => format!("{argument}: there is no such option; {help} lists them"),
        },
        // One of a group.
        ErrorKind::MissingRequiredArgument if argument.contains("|--") => {
            let verb = verb.unwrap_or_default();
            format!("{verb}: nothing is given; {help} lists what it takes")
        }
        ErrorKind::MissingRequiredArgument if arguments.len() > 1 => {
            format!("{} are missing; {help} says what they are", arguments.join(" and "))
        }
        ErrorKind::MissingRequiredArgument => format!("{argument} is missing; {help} says what it is"),
        ErrorKind::ArgumentConflict => format!("{argument}: is given twice; give it once"),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation if value.is_empty() => {
            format!("{flag}: needs a value; write {argument}")
        }
        ErrorKind::InvalidValue => match context(ContextKind::ValidValue) {
            valid if valid.is_empty() => format!("{flag} {value}: is no such value; {help} says more"),
            valid => format!("{flag} {value}: is not one of {}", valid.join(", ")),
        },
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("{flag} {value}: {}; {help} says what it can be", crate::cli::reason(&reason))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => match verb {
            Some(verb) => format!("{verb}: nothing is given; {help} lists what it takes"),
            None => format!("no verb is given; {help} lists them"),
        },
        _ => crate::cli::one_line(error),
    }
}

/// The verb that arguments, which start with the program's name, have.
pub(super) fn verb_among(arguments: &[OsString]) -> Option<String> {
    let command = super::command("vivarium ctl");
    let mut words = arguments.iter().skip(1).filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        if word == "--api-socket" {
            words.next();
        } else if !word.starts_with('-') {
            let verb = command.find_subcommand(word).filter(|verb| !verb.is_hide_set());
            return verb.map(|verb| verb.get_name().to_owned());
        }
    }
    None
}

/// What the monitor says of a request, in the words of the verb's command line and not of its body.
pub(super) fn in_the_words_of(verb: &str, told: &str) -> String {
    let route = ROUTES.iter().find(|route| super::verb(route) == verb);
    let fields = match route.map(|route| &route.serves) {
        Some(Serves::Call(Takes::Body(kind, _))) => super::body::fields(kind),
        _ => &[],
    };
    let mut told = told.to_owned();
    for (field, option) in fields {
        match told.split_once(": ") {
            // An item of a list: the command line has no number for it.
            Some((place, reason)) if place.starts_with(&format!("{field}[")) => {
                told = format!("{option}: {reason}")
            }
            // `desired_vcpus=9: ...` is what is said of a value.
            _ if field.contains('_') => {
                told = told.replace(&format!("{field}="), &format!("{option} ")).replace(field, option);
            }
            _ => {}
        }
    }
    // Longer names first: `vm.resize-disk` is not a `vm.resize`.
    let mut routes: Vec<_> = ROUTES.iter().filter(|route| route.name.starts_with("vm")).collect();
    routes.sort_by_key(|route| std::cmp::Reverse(route.name.len()));
    for route in routes {
        told = told.replace(route.name, &format!("vivarium ctl {}", super::verb(route)));
    }
    told
}

/// The verb that is spelt most like `word`, if one is close.
fn nearest(word: &str) -> Option<String> {
    let command = super::command("vivarium ctl");
    let shown = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    let verbs = shown.map(clap::Command::get_name);
    let distances = verbs.map(|verb| (crate::config::key_value::distance(word, verb), verb));
    let near = distances.filter(|(distance, _)| *distance <= 1 + word.len() / 6).min();
    near.map(|(_, verb)| verb.to_owned())
}

/// An argument without the marks around its name.
fn plain(argument: &str) -> String {
    argument.replace(['<', '>'], "").trim_end_matches("...").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_in_one_line_with_the_remedy() {
        for (words, told) in [
            ("infos", "infos: there is no such verb; did you mean info? vivarium ctl --help lists them"),
            ("complet", "complet: there is no such verb; vivarium ctl --help lists them"),
            ("complete --bogus", "--bogus: there is no such option; vivarium ctl --help lists them"),
            ("resize", "resize: nothing is given; vivarium ctl resize --help lists what it takes"),
            ("resize --json", "resize: nothing is given; vivarium ctl resize --help lists what it takes"),
            (
                "--json set-affinity",
                "set-affinity: nothing is given; vivarium ctl set-affinity --help lists what it takes",
            ),
            ("bogus", "bogus: there is no such verb; vivarium ctl --help lists them"),
            ("--bogus", "--bogus: there is no such option; vivarium ctl --help lists them"),
            (
                "info --foo",
                "--foo: info takes no such argument; vivarium ctl info --help lists what it takes",
            ),
            ("add-disk", "KEYS is missing; vivarium ctl add-disk --help says what it is"),
            ("set-link", "ID and up|down are missing; vivarium ctl set-link --help says what they are"),
            ("--api-socket", "--api-socket: needs a value; write --api-socket PATH"),
            ("set-link a maybe", "up|down maybe: is not one of up, down"),
            (
                "--api-socket info set-throttle 500",
                "PERCENT 500: it can be 0 to 99; vivarium ctl set-throttle --help says what it can be",
            ),
            (
                "resize --cpus x",
                "--cpus x: is not a whole number; vivarium ctl resize --help says what it can be",
            ),
            (
                "events --count 0",
                "--count 0: it can be 1 and more; vivarium ctl events --help says what it can be",
            ),
        ] {
            let arguments: Vec<OsString> =
                std::iter::once("vivarium ctl").chain(words.split(' ')).map(Into::into).collect();
            let command = super::super::command("vivarium ctl");
            let error = command.try_get_matches_from(&arguments).unwrap_err();
            assert_eq!(one_line(&error, verb_among(&arguments).as_deref()), told, "{words}");
        }
    }

    #[test]
    fn what_the_monitor_refuses_is_told_in_the_words_of_the_verb() {
        for (verb, told, expected) in [
            ("resize", "desired_vcpus=9: there are 4 at most", "--cpus 9: there are 4 at most"),
            ("set-affinity", "queues[0].queue_index: x has 1", "--queues: x has 1"),
            (
                "coredump",
                "it runs; pause it with vm.pause first, or vm.resize-disk",
                "it runs; pause it with vivarium ctl pause first, or vivarium ctl resize-disk",
            ),
        ] {
            assert_eq!(in_the_words_of(verb, told), expected);
        }
    }
}
