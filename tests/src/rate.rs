//! Judging a rate that is limited.
//!
//! A limit is a bucket that is full at the start. Tests give it a second's worth: a host that is busy elsewhere for less than
//! a second then takes nothing from the rate. What the full bucket lets pass at once is subtracted from what was measured.

/// How often a rate is measured before it is taken for too low.
const ATTEMPTS: u32 = 3;

/// Checks that what `measure` gives never exceeds `limit` by more than a tenth, and reaches it within `below` (0.1 is a
/// tenth). Nothing can make a limit that holds be exceeded. A host that stands still for longer than the bucket lasts makes
/// anything slower, so one measurement of several has to reach it.
///
/// # Panics
/// When the limit does not hold.
pub fn holds(what: &str, limit: f64, below: f64, mut measure: impl FnMut() -> f64) {
    let mut rates = Vec::new();
    for _ in 0..ATTEMPTS {
        let rate = measure();
        assert!(rate <= limit * 1.1, "{what}: {rate} a second exceeds the limit of {limit}");
        if rate >= limit * (1.0 - below) {
            return;
        }
        rates.push(rate);
    }
    panic!("{what}: {rates:?} a second do not reach the limit of {limit}");
}
