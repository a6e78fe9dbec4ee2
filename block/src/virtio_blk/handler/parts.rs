//! Requests that are done in several parts: pieces of a long transfer, and ranges to discard or to zero.

use super::load::{Cost, PIECE, ZERO_PIECE};
use super::{BlockHandler, Doing, Ranges};
use crate::image::Request;
use crate::virtio_blk::request::{self, HEADER, Status};

impl BlockHandler {
    /// Starts a transfer, or goes on with it.
    pub(super) fn next_piece(&mut self, tag: u16) {
        if self.gives_up(tag) {
            return self.put_back(tag);
        }
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        self.segments.clear();
        let request = match &mut slot.doing {
            Doing::Read { offset, length, begun } => {
                let (at, piece) = (*begun, length.saturating_sub(*begun).min(PIECE));
                *begun = begun.saturating_add(piece);
                self.load.begin(piece);
                slot.chain.append_writable(at, piece, &mut self.segments);
                Request::Read { offset: offset.saturating_add(at), into: &self.segments }
            }
            Doing::Write { offset, length, begun, stable } => {
                let (at, piece) = (*begun, length.saturating_sub(*begun).min(PIECE));
                *begun = begun.saturating_add(piece);
                self.load.begin(piece);
                slot.chain.append_readable(HEADER.saturating_add(at), piece, &mut self.segments);
                let offset = offset.saturating_add(at);
                Request::Write { offset, from: &self.segments, stable: *stable }
            }
            _ => return,
        };
        // SAFETY: the slot's chain keeps the memory mapped, and is left alone until the request is over.
        unsafe { self.stream.submit(tag, request) };
    }

    /// Starts the next part of a request that has ranges, or ends it after the last.
    pub(super) fn next_range(&mut self, tag: u16) {
        let gives_up = self.gives_up(tag);
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        let Doing::Ranges(ranges) = &mut slot.doing else { return };
        // A driver that discards does not rely on what it reads afterwards (5.2.6).
        if ranges.next >= ranges.count || self.quiescing && !ranges.zero {
            let ranges = *ranges;
            return self.end_ranges(tag, ranges);
        }
        if gives_up {
            return self.put_back(tag);
        }
        // They were checked, but the driver may have changed them since.
        let range = request::range(&slot.chain, ranges.next, ranges.zero, self.shared.image.size());
        let range = range.and_then(|range| {
            let left = range.length.saturating_sub(ranges.begun);
            let part = if ranges.zero { left.min(ZERO_PIECE) } else { left };
            let sum = ranges.length.saturating_add(part);
            let offset = range.offset.saturating_add(ranges.begun);
            let grew = ranges.zero && sum > slot.cost.zeroes();
            if grew { Err(Status::IoError) } else { Ok((offset, part, part == left, sum, range.unmap)) }
        });
        let (offset, length, last, sum, unmap) = match range {
            Ok(range) => range,
            Err(status) => {
                self.counters.refused.add(1);
                return self.answer(tag, status, 0);
            }
        };
        ranges.length = sum;
        if last {
            ranges.next = ranges.next.saturating_add(1);
            ranges.begun = 0;
        } else {
            ranges.begun = ranges.begun.saturating_add(length);
        }
        let request = if ranges.zero {
            self.load.begin(length);
            Request::WriteZeroes { offset, length, unmap, stable: ranges.stable }
        } else {
            Request::Discard { offset, length }
        };
        // SAFETY: these requests have no segments.
        unsafe { self.stream.submit(tag, request) };
    }

    /// All parts are over.
    fn end_ranges(&mut self, tag: u16, ranges: Ranges) {
        if ranges.zero && (ranges.flush || self.must_flush(ranges.stable)) {
            return self.flush(tag, Doing::Ranges(Ranges { stable: true, flush: false, ..ranges }));
        }
        let (count, bytes) = if ranges.zero {
            (&self.counters.write_zeroes, &self.counters.write_zeroes_bytes)
        } else {
            (&self.counters.discards, &self.counters.discard_bytes)
        };
        count.add(1);
        bytes.add(ranges.length);
        self.answer(tag, Status::Ok, 0);
    }

    /// Whether a request in flight is not to go on: only what was taken last can be put back into the ring.
    fn gives_up(&self, tag: u16) -> bool {
        let Some(slot) = self.slots.get(usize::from(tag)) else { return false };
        let repeats = self.load.is_alone() || matches!(slot.cost, Cost::Zeroes(_));
        self.quiescing && repeats && slot.order == self.taken
    }

    /// Leaves a request to be begun anew: the last one that was taken.
    fn put_back(&mut self, tag: u16) {
        if let Some(slot) = self.slots.get(usize::from(tag)) {
            self.shared.refund(slot.cost.limited());
            self.queue.unpop(slot.chain.token());
            self.taken = self.taken.wrapping_sub(1);
        }
        self.release(tag);
    }
}
