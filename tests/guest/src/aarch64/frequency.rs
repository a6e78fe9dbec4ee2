//! The frequency of the virtual counter, which the processor tells.

/// Where it may be known from.
pub const SOURCES: &[&str] = &["cntfrq"];

/// The index in [`SOURCES`] and the frequency in kHz.
pub fn khz() -> Option<(u64, u64)> {
    let hertz = crate::read_register!("cntfrq_el0");
    (hertz >= 1000).then_some((0, hertz / 1000))
}
