//! Judging a rate that is limited.

/// How often a rate is measured before it is taken for too low.
const ATTEMPTS: u32 = 6;

/// Checks that what `measure` gives never exceeds `limit` by more than a tenth, and reaches it within `below` (0.1 is a
/// tenth). A busy host can make anything slower, so one measurement of several has to reach it; nothing can make a limit
/// that holds be exceeded.
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
