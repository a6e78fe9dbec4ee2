//! What is said of a command line that cannot be understood, and of a machine that cannot be had: the thing, the reason, the
//! remedy.

use super::flags;
use crate::config::ConfigError;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// A command line that cannot be understood: one line for the user.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(pub String);

impl std::error::Error for UsageError {}

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ConfigError> for UsageError {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}

/// A usage error on one line, with the remedy.
pub fn one_line(error: &clap::Error) -> String {
    one_line_of(error, "vivarium", &flags())
}

/// A usage error of `command`, which has these flags, on one line, with the remedy.
pub fn one_line_of(error: &clap::Error, command: &str, flags: &[(String, String, String)]) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let argument = context(ContextKind::InvalidArg);
    // `--cpus <KEYS>`: the flag, and what follows it.
    let flag = argument.split_whitespace().next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with('-') => match nearest(argument, flags) {
            Some(near) => format!("{argument}: there is no such option; did you mean {near}?"),
            None => format!("{argument}: there is no such option; {command} --help lists them"),
        },
        ErrorKind::UnknownArgument => {
            format!(
                "{argument}: is not the value of any option; put it after one, or leave it out (see {command} --help)"
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
                Some(ContextValue::Strings(missing)) => missing.as_slice(),
                _ => &[],
            };
            let verb = if missing.len() > 1 { "are" } else { "is" };
            format!("{} {verb} missing", missing.join(" and ").replace(['<', '>'], ""))
        }
        ErrorKind::TooManyValues => {
            format!("{flag} {}: takes no value; write {flag} alone", context(ContextKind::InvalidValue))
        }
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("{flag} {}: {}", context(ContextKind::InvalidValue), self::reason(&reason))
        }
        _ => {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage"));
            lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
        }
    }
}

/// Why a value cannot be, from what the standard library and clap say of numbers.
pub fn reason(told: &str) -> String {
    if let Some((_, range)) = told.split_once(" is not in ") {
        return match range.split_once("..=").or_else(|| range.split_once("..")) {
            Some((low, high)) if high.is_empty() || high == u64::MAX.to_string() => {
                format!("it can be {low} and more")
            }
            Some((low, high)) => format!("it can be {low} to {high}"),
            None => told.to_owned(),
        };
    }
    match told {
        "invalid digit found in string" => "is not a whole number".into(),
        "number too large to fit in target type" => "is too large a number".into(),
        told => told.to_owned(),
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
        _ if answer.raw_os_error() == Some(libc::ENOSYS) => {
            "use a host with a newer kernel, or do without what the option asks for"
        }
        _ if answer.raw_os_error() == Some(libc::EBADF) => {
            "start this process with that descriptor open, or give another one"
        }
        _ => return None,
    })
}

/// The flag that is spelt most like `argument`, if one is close.
fn nearest(argument: &str, flags: &[(String, String, String)]) -> Option<String> {
    flags
        .iter()
        .map(|(name, _, _)| (crate::config::key_value::distance(argument, name), name))
        .filter(|(distance, _)| *distance <= argument.len() / 4)
        .min()
        .map(|(_, name)| name.clone())
}
