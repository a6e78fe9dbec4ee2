//! The layers hold: a crate depends only on what the table in `docs/design.md` lets it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The words in backquotes.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(|word| word.trim_end_matches('/').to_owned()).collect()
}

/// For each folder of the table, in its order, the folders it may use.
fn allowed() -> Vec<(String, BTreeSet<String>)> {
    let page = std::fs::read_to_string(format!("{ROOT}/docs/design.md")).unwrap();
    let rows: Vec<Vec<String>> = page
        .lines()
        .skip_while(|line| !line.starts_with("| folder |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    let names: Vec<String> = rows.iter().map(|row| quoted(&row[0])[0].clone()).collect();
    rows.iter()
        .enumerate()
        .map(|(at, row)| {
            let uses = match row[2].as_str() {
                "all below" => names[at + 1..].iter().cloned().collect(),
                "all" => names.iter().cloned().collect(),
                listed => quoted(listed).into_iter().collect(),
            };
            (names[at].clone(), uses)
        })
        .collect()
}

/// For each crate of the workspace, the workspace crates it depends on, tests apart.
fn actual() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let inside = dependencies
                .filter(|dependency| dependency["path"].is_string() && dependency["kind"].is_null())
                .map(|dependency| dependency["name"].as_str().unwrap().to_owned());
            (package["name"].as_str().unwrap().to_owned(), inside.collect())
        })
        .collect()
}

#[test]
fn crates_depend_only_on_what_the_design_lets_them() {
    let allowed = allowed();
    assert!(allowed.len() > 10, "the table of docs/design.md was not found");
    for (name, dependencies) in actual() {
        let folder = match name.as_str() {
            "vivarium-tests" => "tests",
            "fuzz-targets" => "fuzz",
            folder => folder,
        };
        let (_, uses) = allowed
            .iter()
            .find(|(known, _)| known == folder)
            .unwrap_or_else(|| panic!("{folder}/ is not in the table of docs/design.md"));
        for dependency in dependencies {
            assert!(uses.contains(&dependency), "{name} may not depend on {dependency} (docs/design.md)");
        }
    }
}

#[test]
fn what_a_guest_reaches_compiles_without_kvm() {
    for name in ["machine", "pci", "virtio", "devices", "block", "net"] {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "--package", name])
            .current_dir(ROOT)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let tree = String::from_utf8(output.stdout).unwrap();
        assert!(tree.starts_with(name));
        assert!(!tree.contains("kvm-"), "{name} depends on a KVM crate:\n{tree}");
    }
}
