//! What `vivarium ctl` makes for shells and for `man`.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use vivarium_tests::host::{Folder, shell};
use vivarium_tests::required;

#[test]
fn manual_pages_are_made() {
    let folder = Folder::new();
    let binary = required("VIVARIUM_BIN");
    let pages = folder.join("man");
    shell(&format!("{} ctl man {}", binary.display(), pages.display()));
    assert!(pages.join("vivarium-ctl-add-disk.1").exists());
}

/// A shell's script, in `folder`. `None`: there is no such shell.
fn script(folder: &Folder, name: &str) -> Option<PathBuf> {
    if Command::new(name).arg("-c").arg("true").status().is_err() {
        println!("@@SKIP {name} is not installed");
        return None;
    }
    let file = folder.join(name);
    std::fs::write(&file, shell(&format!("{} ctl completions {name}", required("VIVARIUM_BIN").display())))
        .unwrap();
    // It is read without running anything.
    shell(&format!("{name} -n {}", file.display()));
    Some(file)
}

/// Sets what bash does for a completion of the words that are given, and calls the script's function. Outside of a completion there is no
/// `compopt`.
const ASK_BASH: &str = r#"
compopt() { :; }
. "$1"
shift
COMP_LINE=$1 COMP_POINT=${#1}
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_vivarium
printf '%s\n' "${COMPREPLY[@]}"
"#;

#[test]
fn bash_replaces_what_stands_behind_the_last_word_break() {
    let folder = Folder::new();
    let binary = required("VIVARIUM_BIN");
    let Some(script) = script(&folder, "bash") else { return };
    let image = folder.join("image.raw");
    File::create(&image).unwrap();
    let (begun, whole) = (folder.join("ima").display().to_string(), image.display().to_string());
    // The words are divided at `=` too, as bash does it.
    for (words, expected) in [
        (vec![" --kern"], vec!["--kernel"]),
        (vec![" --disk", " path", "=", "d,readonly", "=", "o"], vec!["on", "off"]),
        (vec![" --disk", " path", "=", &begun], vec![&whole]),
    ] {
        let program = binary.display().to_string();
        let mut command = Command::new("bash");
        command.args(["-c", ASK_BASH, "bash"]).arg(&script).arg(program.clone() + &words.concat());
        let output = command.arg(program).args(words.iter().map(|word| word.trim())).output().unwrap();
        let offered = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(offered.lines().collect::<Vec<_>>(), expected, "{words:?}: {errors}");
    }
}

/// Lines that are to be completed, after the program's name, and the words that are offered for their ends.
fn lines(folder: &Folder) -> [(String, Vec<String>); 3] {
    let image = folder.join("image.raw");
    File::create(&image).unwrap();
    let (begun, whole) = (folder.join("ima").display().to_string(), image.display().to_string());
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    [
        ("ctl remo".into(), words(&["remove-device"])),
        ("--disk path=d,readonly=o".into(), words(&["path=d,readonly=off", "path=d,readonly=on"])),
        (format!("--disk path={begun}"), vec![format!("path={whole}")]),
    ]
}

#[test]
fn fish_offers_words_and_files() {
    let folder = Folder::new();
    let Some(script) = script(&folder, "fish") else { return };
    for (line, expected) in lines(&folder) {
        let mut command = Command::new("fish");
        command.args(["--no-config", "-c", "source $argv[1]; complete -C $argv[2]"]).arg(&script);
        let output = command.arg(format!("{} {line}", required("VIVARIUM_BIN").display())).output().unwrap();
        let offered = String::from_utf8(output.stdout).unwrap();
        let offered: Vec<_> = offered.lines().map(|line| line.split('\t').next().unwrap()).collect();
        assert_eq!(offered, expected, "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Has a tab put all that is offered into the line, and the key after it write the line into a file.
const SET_UP_ZSH: &str = r#"
autoload -U compinit; compinit -u -D
. $SCRIPT
all() { _main_complete; compstate[insert]=all compstate[list]= }
zle -C all complete-word all; bindkey '^I' all
answer() { print -r -- "$BUFFER" >$ANSWER; exit }
zle -N answer; bindkey '^X' answer
"#;

/// Types a line and the two keys into a shell on a terminal of its own.
const ASK_ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell ". $1"
zpty -w -n shell "$2"$'\t\x18'
while zpty -r shell; do :; done
"#;

#[test]
fn zsh_offers_words_and_files() {
    let folder = Folder::new();
    let Some(script) = script(&folder, "zsh") else { return };
    let (set_up, answer) = (folder.join("set-up"), folder.join("answer"));
    std::fs::write(&set_up, SET_UP_ZSH).unwrap();
    for (line, expected) in lines(&folder) {
        let begun = format!("{} {line}", required("VIVARIUM_BIN").display());
        // A shell that does not take the second key would wait for more.
        let mut command = Command::new("timeout");
        command.args(["60", "zsh", "-f", "-c", ASK_ZSH, "zsh"]).arg(&set_up).arg(&begun);
        let output = command.env("SCRIPT", &script).env("ANSWER", &answer).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let completed =
            std::fs::read_to_string(&answer).unwrap_or_else(|error| panic!("{line}: {error}: {said}"));
        let kept = &begun[..=begun.rfind(' ').unwrap()];
        let offered: Vec<_> = completed.strip_prefix(kept).expect(&completed).split_whitespace().collect();
        assert_eq!(offered, expected, "{line}: {said}");
    }
}
