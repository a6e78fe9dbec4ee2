//! Pages that the driver puts into the balloon: lists of page numbers (virtio 1.2, 5.5.6.1).

use super::PAGE_SIZE;
use super::shared::Counters;
use machine::bus::Range;
use machine::memory::HostPages;
use virtio::chain::Chain;

/// How many page numbers are read at a time.
const BATCH: usize = 256;
/// Bytes of a page number.
const NUMBER: usize = 4;
/// The same, as a length of requests.
pub(super) const NUMBER_BYTES: u64 = NUMBER as u64;

/// Releases the pages that `chain` lists from byte `offset` on, one batch of them, and returns where the next batch
/// begins. `None`: that was the last.
pub(super) fn inflate(chain: &Chain, offset: u64, pages: &dyn HostPages, counters: &Counters) -> Option<u64> {
    let mut bytes = [0; BATCH * NUMBER];
    let count = chain.read_at(offset, &mut bytes);
    let numbers = bytes.get(..count).unwrap_or_default().chunks_exact(NUMBER).map(|number| {
        let mut bytes = [0; NUMBER];
        bytes.copy_from_slice(number);
        u64::from(u32::from_le_bytes(bytes))
    });
    let mut run: Option<Range> = None;
    for number in numbers {
        counters.inflated_pages.add(1);
        let page = Range { start: number.saturating_mul(PAGE_SIZE), size: PAGE_SIZE };
        run = match run.and_then(|run| joined(run, page)) {
            Some(longer) => Some(longer),
            None => {
                if let Some(run) = run {
                    release(run, pages, counters);
                }
                Some(page)
            }
        };
    }
    if let Some(run) = run {
        release(run, pages, counters);
    }
    let next = offset.saturating_add(count as u64);
    (count == bytes.len() && next < chain.readable_len()).then_some(next)
}

/// Both as one, if `page` follows or precedes `run`. Drivers fill balloons from either end.
fn joined(run: Range, page: Range) -> Option<Range> {
    let size = run.size.saturating_add(page.size);
    if page.start == run.start.saturating_add(run.size) {
        Some(Range { start: run.start, size })
    } else if page.start.saturating_add(page.size) == run.start {
        Some(Range { start: page.start, size })
    } else {
        None
    }
}

/// Releases pages, and counts how it went.
pub(super) fn release(range: Range, pages: &dyn HostPages, counters: &Counters) {
    match pages.release(range) {
        Ok(released) => {
            counters.released_bytes.add(released);
            counters.refused_pages.add(range.size.saturating_sub(released) / PAGE_SIZE);
        }
        Err(error) => {
            // Once: a guest could make it happen as often as it likes.
            if counters.release_errors.add(1) == 1 {
                tracing::warn!(%error, "the host does not take memory back that the guest released");
            }
        }
    }
}
