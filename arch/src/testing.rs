//! What tests share.

/// Says that a program is not there, in the form that `scripts/test` counts as a skipped test.
pub(crate) fn skip_without(program: &str) {
    println!("@@SKIP {program} is not installed");
}
