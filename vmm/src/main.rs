//! `vivarium`: runs a virtual machine, or drives one that runs.

use std::io::Write;
use std::process::ExitCode;
use vmm::cli::{self, Command};
use vmm::ctl;
use vmm::jail::{self, Asked};
use vmm::log;

fn main() -> ExitCode {
    let arguments = cli::with_help_as_flag(std::env::args_os().collect());
    if let Some(arguments) = ctl::arguments(&arguments) {
        return ctl::run(&arguments);
    }
    if arguments.get(1).is_some_and(|word| word == "jail") {
        return run_in_jail(arguments.into_iter().skip(1).collect());
    }
    match cli::parse(arguments) {
        Ok(Command::Print(text)) => {
            // Who asked may have seen enough, and left.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Command::Run(run)) => match vmm::run(*run) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                log::last_words(&cli::failure(&error));
                ExitCode::from(1)
            }
        },
        Err(error) => {
            eprintln!("vivarium: {}", error.0);
            ExitCode::from(2)
        }
    }
}

#[inline(never)]
fn run_in_jail(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    match jail::parse(arguments) {
        Ok(Asked::Print(text)) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Asked::Run(jail, run)) => match jail::run(&jail, *run) {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                eprintln!("vivarium: {}", cli::failure(&error));
                ExitCode::from(1)
            }
        },
        Err(error) => {
            eprintln!("vivarium: {}", error.0);
            ExitCode::from(2)
        }
    }
}
