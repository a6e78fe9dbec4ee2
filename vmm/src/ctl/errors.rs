//! What is said of a command line of `vivarium ctl` that cannot be understood: the thing, the reason, the remedy, in one line.

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// A usage error on one line.
pub(super) fn one_line(error: &Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let (argument, value) = (plain(&context(ContextKind::InvalidArg)), context(ContextKind::InvalidValue));
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let verb = context(ContextKind::InvalidSubcommand);
            let near = nearest(&verb).map(|near| format!("did you mean {near}? ")).unwrap_or_default();
            format!("{verb}: there is no such verb; {near}vivarium ctl --help lists them")
        }
        ErrorKind::UnknownArgument => {
            format!(
                "{argument}: the verb takes no such argument; vivarium ctl <verb> --help lists what it takes"
            )
        }
        ErrorKind::MissingRequiredArgument => {
            format!("{argument} is missing; vivarium ctl <verb> --help says what it is")
        }
        ErrorKind::ArgumentConflict => format!("{argument}: is given twice; give it once"),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation if value.is_empty() => {
            format!("{argument}: needs a value; write one after it")
        }
        ErrorKind::InvalidValue => match context(ContextKind::ValidValue) {
            valid if valid.is_empty() => {
                format!("{argument} {value}: is no such value; vivarium ctl <verb> --help says more")
            }
            valid => format!("{argument} {value}: is not one of {valid}"),
        },
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("{argument} {value}: {reason}; vivarium ctl <verb> --help says what it can be")
        }
        _ => crate::cli::one_line(error),
    }
}

/// The verb that is spelt most like `word`, if one is close.
fn nearest(word: &str) -> Option<String> {
    let command = super::command("vivarium ctl");
    let verbs = command.get_subcommands().map(clap::Command::get_name);
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
            ("bogus", "bogus: there is no such verb; vivarium ctl --help lists them"),
            (
                "info --foo",
                "--foo: the verb takes no such argument; vivarium ctl <verb> --help lists what it takes",
            ),
            ("add-disk", "KEYS is missing; vivarium ctl <verb> --help says what it is"),
            ("--api-socket", "--api-socket PATH: needs a value; write one after it"),
            ("set-link a maybe", "up|down maybe: is not one of up, down"),
            (
                "set-throttle 500",
                "PERCENT 500: 500 is not in 0..=99; vivarium ctl <verb> --help says what it can be",
            ),
            (
                "resize --cpus x",
                "--cpus N x: invalid digit found in string; vivarium ctl <verb> --help says what it can be",
            ),
        ] {
            let arguments = std::iter::once("vivarium ctl").chain(words.split(' '));
            let error = super::super::command("vivarium ctl").try_get_matches_from(arguments).unwrap_err();
            assert_eq!(one_line(&error), told, "{words}");
        }
    }
}
