//! Completions for shells and manual pages, from the definitions of the options.

use super::command;
use anyhow::{Context, Result};
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;
use std::path::PathBuf;

/// `completions`.
pub(super) fn command_for_completions() -> Command {
    Command::new("completions")
        .about("Write completions for a shell to standard output.")
        .arg(Arg::new("shell").value_name("SHELL").required(true).value_parser(clap::value_parser!(Shell)))
}

/// `man`.
pub(super) fn command_for_man() -> Command {
    Command::new("man").about("Write the manual pages into a folder.").arg(
        Arg::new("folder")
            .value_name("FOLDER")
            .required(true)
            .value_parser(clap::value_parser!(PathBuf))
            .help("Such as /usr/local/share/man/man1."),
    )
}

/// All that the program understands.
fn whole() -> Command {
    crate::cli::command()
        .args_conflicts_with_subcommands(true)
        .subcommand(command("ctl"))
        .subcommand(crate::jail::command().name("jail"))
}

pub(super) fn print(matches: &ArgMatches) -> Result<()> {
    let shell: Shell = *matches.get_one("shell").context("no shell is given")?;
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut whole(), "vivarium", &mut text);
    super::print(&String::from_utf8_lossy(&text))
}

pub(super) fn write_man_pages(matches: &ArgMatches) -> Result<()> {
    let folder: &PathBuf = matches.get_one("folder").context("no folder is given")?;
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    for (name, text) in super::man::pages() {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_know_flags_and_verbs() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut whole(), "vivarium", &mut text);
            let text = String::from_utf8(text).unwrap();
            for word in ["api-socket", "memory-zone", "add-disk", "remove-device", "netns"] {
                assert!(text.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn the_commands_are_well_formed() {
        whole().debug_assert();
    }
}
