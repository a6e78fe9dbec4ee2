//! What the tests of tables share.

use super::Tables;
use crate::testing::skip_without;
use std::process::Command;

/// Runs iasl in `directory`; its output, and whether it succeeded. `None` when it is not installed, which it says.
fn iasl(directory: &std::path::Path, arguments: &[&str]) -> Option<(String, bool)> {
    let output = Command::new("iasl").args(arguments).current_dir(directory).output();
    let output = output.inspect_err(|_| skip_without("iasl")).ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some((String::from_utf8_lossy(&text).into_owned(), output.status.success()))
}

/// Disassembles every table and compiles the outcome again. Returns each table's source; `None` without iasl, which it says.
pub(crate) fn through_iasl(name: &str, tables: &Tables) -> Option<Vec<(String, String)>> {
    let directory = std::env::temp_dir().join(format!("vivarium-acpi-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let mut sources = Vec::new();
    for (signature, bytes) in tables.iter() {
        let name = String::from_utf8(signature.to_vec()).unwrap().to_lowercase();
        let (aml, source) = (format!("{name}.aml"), format!("{name}.dsl"));
        std::fs::write(directory.join(&aml), bytes).unwrap();
        let (said, ok) = iasl(&directory, &["-d", &aml])?;
        let lowered = said.to_lowercase();
        assert!(
            ok && !lowered.contains("error") && !lowered.contains("warning"),
            "disassembling {name}: {said}"
        );
        let text = std::fs::read_to_string(directory.join(&source)).unwrap();
        assert!(!text.contains("Invalid") && !text.contains("**** "), "{name}: {text}");
        let (said, ok) = iasl(&directory, &["-p", "again", &source])?;
        assert!(
            ok && said.contains(" 0 Errors") && said.contains(" 0 Warnings"),
            "compiling {name}: {said}\n{text}"
        );
        sources.push((name, text));
    }
    std::fs::remove_dir_all(&directory).unwrap();
    Some(sources)
}
