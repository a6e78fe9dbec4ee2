//! Makes the released program small in memory, and quick to start: has the linker lay out side by side the functions that run side by
//! side, as `functions.order` says, and take in what else would be loaded.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Linkers that know no linker scripts, or not all of what this one says.
const WITHOUT_SCRIPTS: &[&str] = &["mold", "gold", "wild"];

/// What has functions' names tell them apart in the same way everywhere. It is in `.cargo/config.toml`.
const MANGLING: &str = "symbol-mangling-version=v0";

fn main() {
    println!("cargo::rerun-if-changed=functions.order");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name| env::var(name).unwrap_or_default();
    if variable("PROFILE") != "release" {
        return;
    }
    if variable("CARGO_CFG_TARGET_ENV") == "gnu" {
        // The standard library would have the C compiler's own library loaded, which each process relocates for itself.
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    }
    let (linker, flags) = (variable("RUSTC_LINKER"), variable("CARGO_ENCODED_RUSTFLAGS"));
    let linker = Path::new(&linker).file_name().unwrap_or_default();
    let without_scripts =
        WITHOUT_SCRIPTS.iter().any(|name| linker == *name || flags.contains(&format!("fuse-ld={name}")));
    if without_scripts {
        return;
    }
    if !flags.contains(MANGLING) {
        println!(
            "cargo::warning=the program takes twice the memory that it could: add -C{MANGLING} to RUSTFLAGS"
        );
        return;
    }
    let order = fs::read_to_string("functions.order").expect("functions.order is part of this package");
    let script = PathBuf::from(variable("OUT_DIR")).join("functions.ld");
    fs::write(&script, linker_script(&order)).expect("Cargo's output folder can be written to");
    println!("cargo::rustc-link-arg-bin=vivarium=-Wl,-T,{}", script.display());
}

/// Each function has a section of its own, which is named after it.
fn linker_script(order: &str) -> String {
    let names = order.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let sections: String = names.map(|name| format!("*(.text.{name})\n")).collect();
    format!("SECTIONS {{ .text.ordered : {{\n{sections}}} }} INSERT BEFORE .text;\n")
}
