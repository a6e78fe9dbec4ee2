//! `vivarium`: runs a virtual machine.

use std::process::ExitCode;
use vmm::cli::{self, Command};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Command::Print(text)) => {
            print!("{text}");
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
