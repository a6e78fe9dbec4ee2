//! Pages that the driver says are free: as the buffers of a request themselves (virtio 1.2, 5.5.6.5 and 5.5.6.7).

use machine::bus::Range;
use machine::memory::{GuestMemoryBackend, GuestMemoryRegion, Memory};
use virtio::chain::{self, Chain, Segment};

/// The largest piece: what is done with it takes the host some milliseconds at most.
const PIECE: u64 = 32 << 20;

/// A run of free pages.
pub(super) struct Piece {
    /// Where they are.
    pub(super) range: Range,
    /// Where in the request the next piece begins.
    pub(super) next: u64,
}

/// The pages at byte `offset` of the writable part of `chain`, one piece of them. `None`: there are none.
pub(super) fn piece(chain: &Chain, offset: u64, memory: &Memory) -> Option<Piece> {
    let segment = chain::parts(chain.writable(), offset, PIECE).next()?;
    let size = segment.len() as u64;
    let start = guest_address(memory, segment)?;
    Some(Piece { range: Range { start, size }, next: offset.saturating_add(size) })
}

/// Where in guest memory a segment of it is.
fn guest_address(memory: &Memory, segment: Segment) -> Option<u64> {
    let at = segment.as_ptr().addr();
    memory.iter().find_map(|region| {
        let offset = at.checked_sub(region.as_ptr().addr())? as u64;
        (offset < region.len()).then(|| region.start_addr().0.saturating_add(offset))
    })
}
