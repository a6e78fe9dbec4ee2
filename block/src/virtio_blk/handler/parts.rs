//! Requests that are done in several parts: pieces of a long transfer, and ranges to discard or to zero.

use super::load::PIECE;
use super::{BlockHandler, Doing};
use crate::image::Request;
use crate::virtio_blk::request::{self, HEADER, Status};

impl BlockHandler {
    /// Starts a transfer, or goes on with it.
    pub(super) fn next_piece(&mut self, tag: u16) {
        if self.gives_up() {
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

    /// Starts the next range of a request that has some, or ends it after the last.
    pub(super) fn next_range(&mut self, tag: u16) {
        let gives_up = self.gives_up();
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        let Doing::Ranges { zero, next, ranges, length, stable } = &mut slot.doing else { return };
        // A driver that discards does not rely on what it reads afterwards (5.2.6).
        if *next >= *ranges || self.quiescing && !*zero {
            let (zero, length) = (*zero, *length);
            let (count, bytes) = if zero {
                (&self.counters.write_zeroes, &self.counters.write_zeroes_bytes)
            } else {
                (&self.counters.discards, &self.counters.discard_bytes)
            };
            count.add(1);
            bytes.add(length);
            return self.answer(tag, Status::Ok, 0);
        }
        if gives_up {
            return self.put_back(tag);
        }
        // They were checked, but the driver may have changed them since.
        let range = request::range(&slot.chain, *next, *zero, self.shared.image.size());
        let range = range.and_then(|range| {
            let sum = length.saturating_add(range.length);
            if *zero && sum > slot.cost { Err(Status::IoError) } else { Ok((range, sum)) }
        });
        let (range, sum) = match range {
            Ok(range) => range,
            Err(status) => {
                self.counters.refused.add(1);
                return self.answer(tag, status, 0);
            }
        };
        *next = next.saturating_add(1);
        *length = sum;
        let (offset, length) = (range.offset, range.length);
        let request = if *zero {
            self.load.begin(length);
            Request::WriteZeroes { offset, length, unmap: range.unmap, stable: *stable }
        } else {
            Request::Discard { offset, length }
        };
        // SAFETY: these requests have no segments.
        unsafe { self.stream.submit(tag, request) };
    }

    /// Whether what is in flight is not to go on.
    fn gives_up(&self) -> bool {
        self.quiescing && self.load.is_alone()
    }

    /// Leaves the only request in flight to be begun anew.
    fn put_back(&mut self, tag: u16) {
        if let Some(slot) = self.slots.get(usize::from(tag)) {
            self.shared.refund(slot.doing.limited_bytes());
            self.queue.unpop(slot.chain.token());
        }
        self.release(tag);
    }
}
