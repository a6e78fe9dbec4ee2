//! What page tables map, as runs of addresses.

/// A run of linear addresses that are one run of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it begins for the CPU.
    pub linear: u64,
    /// Where it begins in guest-physical memory.
    pub physical: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// What is mapped from linear address `from` on, ascending and joined where possible, up to `most` runs. `step` tells of an
/// address the page that it is in, and the page's size as a power of two; or, where nothing is mapped, for how many address bits
/// that holds. It is asked `most_entries` times at most: a guest can make tables that map without end.
pub(crate) fn runs(
    from: u64,
    most: usize,
    most_entries: u64,
    step: impl Fn(u64) -> Result<(u64, u32), u32>,
) -> Vec<Mapping> {
    let mut runs: Vec<Mapping> = Vec::new();
    let mut next = Some(from);
    for _ in 0..most_entries {
        let Some(address) = next else { break };
        let (page, bits) = match step(address) {
            Ok((page, bits)) => (Some(page), bits),
            Err(bits) => (None, bits),
        };
        let size = 1_u64 << bits;
        let linear = address & !(size - 1);
        if let Some(physical) = page {
            let full = runs.len() >= most;
            match runs.last_mut() {
                Some(run) if run.linear + run.size == linear && run.physical + run.size == physical => {
                    run.size += size;
                }
                _ if full => break,
                _ => runs.push(Mapping { linear, physical, size }),
            }
        }
        next = linear.checked_add(size);
    }
    runs
}
