//! What a stock kernel complains of in its log.

/// Shows the log: what is serious in it, then all.
pub const SHOW: &str =
    "echo @@SERIOUS; dmesg -r | sed -n 's/^<[0-4]>//p'; echo @@LOG; dmesg | cat; echo @@SHOWN";

/// Parts of lines, in small letters, by which a kernel finds fault with its machine, of whatever severity.
const BAD: [&str; 19] = [
    "acpi error",
    "acpi bios error",
    "acpi warning",
    "acpi exception",
    "firmware bug",
    "failed to assign",
    "can't assign",
    "can't claim",
    "no compatible bridge window",
    "bogus",
    "call trace",
    "warning: cpu",
    "nobody cared",
    "unchecked msr",
    "timed out",
    "lockup",
    "unstable",
    "conflict",
    "overlap",
];

/// Parts of serious lines that every machine without firmware of its own would have the kernel say. How long an interrupt or a task
/// took is the emulated host's business.
const KNOWN: [&str; 9] = [
    "spectre",
    "retbleed",
    "srso",
    "speculative return stack overflow",
    "module verification failed",
    "hrtimer: interrupt took",
    "hogged cpu",
    "rt throttling activated",
    "long readout interval",
];

/// The lines that find fault, in what a guest printed by [`SHOW`].
///
/// # Panics
/// When it did not.
pub fn complaints(output: &str) -> Vec<&str> {
    let part = |from: &str, to: &str| {
        let rest = output.split_once(from).unwrap_or_else(|| panic!("no {from} in:\n{output}")).1;
        rest.split_once(to).unwrap_or_else(|| panic!("no {to} after {from} in:\n{output}")).0
    };
    // Some kernels do not trust the counters of several CPUs whose host does not say that they run steadily.
    let steady_counter =
        std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" constant_tsc"));
    let has = |line: &str, parts: &[&str]| parts.iter().any(|part| line.to_lowercase().contains(part));
    let bad = part("@@LOG", "@@SHOWN")
        .lines()
        .filter(|line| has(line, &BAD) && (steady_counter || !has(line, &["tscs unsynchronized"])));
    let serious =
        part("@@SERIOUS", "@@LOG").lines().filter(|line| !line.trim().is_empty() && !has(line, &KNOWN));
    bad.chain(serious).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serious_lines_and_bad_words_are_complaints_and_what_is_known_is_none() {
        let output = "@@SERIOUS\nSpectre V2 : vulnerable\nsome I/O error\n\n@@LOG\n[0] ACPI: [Firmware Bug]: x\n[1] fine\n@@SHOWN";
        assert_eq!(complaints(output), ["[0] ACPI: [Firmware Bug]: x", "some I/O error"]);
    }
}
