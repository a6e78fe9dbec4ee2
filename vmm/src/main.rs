//! `vivarium`: runs a virtual machine.

use std::io::Write;
use std::process::ExitCode;
use vmm::cli::{self, Command};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Command::Print(text)) => {
            // Who asked may have seen enough, and left.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Command::Run(run)) => match vmm::run(*run) {
            Ok(()) => ExitCode::SUCCESS,
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
