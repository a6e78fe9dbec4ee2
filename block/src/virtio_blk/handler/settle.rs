//! Flushes, asked for by the driver or made necessary by turning the cache off.

use super::{BlockHandler, Doing};
use crate::image::Request;
use std::io;

impl BlockHandler {
    /// Whether a write that is answered now must have become stable.
    pub(super) fn write_through(&self) -> bool {
        !self.can_flush || !self.shared.cache.write_back()
    }

    /// Whether a write that is over, and was made stable by itself or not, is to be flushed before it is answered: the
    /// driver turned the cache off while it was under way, or what was in the cache then is not stable yet.
    pub(super) fn must_flush(&self, stable: bool) -> bool {
        self.write_through() && (!stable || self.shared.cache.unsettled())
    }

    /// Makes all that was written stable before going on with `then`.
    pub(super) fn flush(&mut self, tag: u16, then: Doing) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            slot.doing = then;
            slot.flush = Some(self.shared.cache.flush_begins());
        }
        // SAFETY: a flush has no segments.
        unsafe { self.stream.submit(tag, Request::Flush) };
    }

    /// Begins to make stable what is in the cache, if it was turned off.
    pub(super) fn settle(&mut self) {
        if !self.shared.cache.to_settle() {
            return;
        }
        self.settle.take();
        // Without a free slot, this is called again when one becomes free.
        let Some(tag) = self.free.last().copied() else { return };
        if self.shared.cache.take_to_settle() {
            self.free.pop();
            self.flush(tag, Doing::Settle);
        }
    }

    /// If it failed, the next write or flush tries again.
    pub(super) fn settled(&mut self, tag: u16, result: io::Result<()>) {
        if let Err(error) = result {
            self.count_error(Doing::Settle, &error);
        }
        self.release(tag);
    }
}
