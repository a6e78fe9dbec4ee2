//! Completions for shells, and the folder of manual pages.

use super::offers::{Offer, offers};
use anyhow::{Context, Result, bail};
use clap::{Arg, ArgMatches, Command, ValueHint};
use std::path::PathBuf;

/// `completions`.
pub(super) fn command_for_completions() -> Command {
    Command::new("completions")
        .about("Write completions for a shell to standard output.")
        .arg(Arg::new("shell").value_name("SHELL").required(true).value_parser(["bash", "zsh", "fish"]))
}

/// `complete`, which the shells' scripts ask.
pub(super) fn command_for_offers() -> Command {
    Command::new("complete")
        .about("What can be the last of these words, for the completions of shells.")
        .hide(true)
        .arg(Arg::new("words").last(true).num_args(0..).allow_hyphen_values(true))
}

/// `man`.
pub(super) fn command_for_man() -> Command {
    Command::new("man").about("Write the manual pages into a folder.").arg(
        Arg::new("folder")
            .value_name("FOLDER")
            .required(true)
            .value_parser(clap::value_parser!(PathBuf))
            .value_hint(ValueHint::DirPath)
            .help("Such as /usr/local/share/man/man1."),
    )
}

pub(super) fn print(matches: &ArgMatches) -> Result<()> {
    let shell: &String = matches.get_one("shell").context("no shell is given")?;
    super::print(match shell.as_str() {
        "bash" => BASH,
        "zsh" => ZSH,
        "fish" => FISH,
        other => bail!("there are no completions for {other}"),
    })
}

/// A line for each offer: `W`, a word and what it means, or `F` and what stands before a file's path; with tabs between them.
pub(super) fn print_offers(matches: &ArgMatches) -> Result<()> {
    let words: Vec<String> = matches.get_many("words").into_iter().flatten().cloned().collect();
    let lines = offers(&words).into_iter().map(|offer| match offer {
        Offer::Word(text, help) => format!("W\t{text}\t{}\n", help.replace(['\t', '\n'], " ")),
        Offer::File(prefix) => format!("F\t{prefix}\n"),
    });
    super::print(&lines.collect::<String>())
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

/// Bash divides words at `=` and `:` as well, and replaces only what is behind: the words are taken from the line.
const BASH: &str = r#"_vivarium() {
    local line="${COMP_LINE:0:COMP_POINT}" part="${COMP_WORDS[COMP_CWORD]}" kind text help path
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    [[ $part == [=:] ]] && part=""
    local whole="${words[-1]}"
    local kept="${whole%"$part"}"
    COMPREPLY=()
    while IFS=$'\t' read -r kind text help; do
        case $kind in
            F)
                compopt -o filenames
                while read -r path; do
                    path="$text$path"
                    COMPREPLY+=("${path#"$kept"}")
                done < <(compgen -f -- "${whole#"$text"}")
                ;;
            W)
                [[ $text == *= ]] && compopt -o nospace
                COMPREPLY+=("${text#"$kept"}")
                ;;
        esac
    done < <("${words[0]}" ctl complete -- "${words[@]:1}" 2>/dev/null)
}
complete -F _vivarium vivarium
"#;

const ZSH: &str = r#"#compdef vivarium
_vivarium() {
    local kind text help
    local -a whole shown open open_shown files
    while IFS=$'\t' read -r kind text help; do
        case $kind in
            F) files+=("x$text") ;;
            W)
                if [[ $text == *= ]]; then
                    open+=("$text") open_shown+=("$text${help:+  -- $help}")
                else
                    whole+=("$text") shown+=("$text${help:+  -- $help}")
                fi
                ;;
        esac
    done < <("${words[1]}" ctl complete -- "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)
    (( $#whole )) && compadd -Q -l -d shown -- "${whole[@]}"
    (( $#open )) && compadd -Q -S '' -l -d open_shown -- "${open[@]}"
    for text in "${files[@]}"; do
        compset -p $(( $#text - 1 ))
        _files
    done
}
if [[ $funcstack[1] == _vivarium ]]; then
    _vivarium "$@"
else
    compdef _vivarium vivarium
fi
"#;

const FISH: &str = r#"function __vivarium_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -q current[1]; or set current ""
    for line in ($before[1] ctl complete -- $before[2..] $current 2>/dev/null)
        set -l offer (string split -m 2 \t -- $line)
        switch $offer[1]
            case W
                printf '%s\t%s\n' $offer[2] "$offer[3]"
            case F
                set -l start (math (string length -- "$offer[2]") + 1)
                for path in (__fish_complete_path (string sub -s $start -- $current))
                    printf '%s%s\n' "$offer[2]" $path
                end
        end
    end
end
complete -c vivarium -f -a '(__vivarium_complete)'
"#;

#[cfg(test)]
mod tests {
    #[test]
    fn the_commands_are_well_formed() {
        crate::cli::command().debug_assert();
        crate::jail::command().debug_assert();
        super::super::command("vivarium ctl").debug_assert();
    }
}
