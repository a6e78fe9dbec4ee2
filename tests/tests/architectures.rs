//! Which architecture a machine is built for is asked in few places.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Where the question may be asked: what makes a machine one or the other, what talks to KVM, and the table that chooses a
/// mainboard.
const PLACES: [&str; 3] = ["arch/", "hypervisor/", "vmm/src/machine/platform/mod.rs"];

/// The files of Rust below a folder of the project, by their paths in it.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path.strip_prefix(ROOT).unwrap().to_owned());
        }
    }
}

/// The numbers of the lines that ask, comments apart.
fn asking(source: &str) -> Vec<usize> {
    // Put together here, so that this file does not ask.
    let question = ["target", "arch"].join("_");
    let lines = source.lines().enumerate();
    lines
        .filter(|(_, line)| line.split("//").next().is_some_and(|code| code.contains(&question)))
        .map(|(at, _)| at + 1)
        .collect()
}

#[test]
fn only_the_places_for_it_ask_for_the_architecture() {
    let mut files = Vec::new();
    sources(Path::new(ROOT), &mut files);
    assert!(files.len() > 200, "the project's sources were not found");
    let mut elsewhere = Vec::new();
    for file in files {
        let name = file.to_string_lossy().into_owned();
        // The bare-metal guest is a program of its own, with a module for each architecture.
        if PLACES.iter().any(|place| name.starts_with(place)) || name.starts_with("tests/guest/") {
            continue;
        }
        let lines = asking(&fs::read_to_string(Path::new(ROOT).join(&file)).unwrap());
        elsewhere.extend(lines.into_iter().map(|line| format!("{name}:{line}")));
    }
    assert!(elsewhere.is_empty(), "these ask for the architecture, and should not: {elsewhere:?}");
}

#[test]
fn comments_do_not_ask() {
    let question = ["target", "arch"].join("_");
    let source = format!("// {question}\n#[cfg({question} = \"x\")]\nfn f() {{}}\n");
    assert_eq!(asking(&source), [2]);
}
