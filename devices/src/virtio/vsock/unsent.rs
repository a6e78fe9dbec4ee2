//! What a guest sent and its peer on the host has not taken yet: a ring of bounded size, empty and without memory as long as the
//! peer keeps up.

use virtio::chain::{Chain, Segment};

#[derive(Default)]
pub(super) struct Unsent {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Unsent {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the `len` readable bytes of `chain` at `offset`. Of more than `capacity` together, the rest is lost: the caller has
    /// checked.
    pub(super) fn append(&mut self, chain: &Chain, offset: u64, len: usize, capacity: usize) {
        if self.bytes.len() < capacity {
            // Only ever done when it is empty: `capacity` is the same for a connection's life.
            self.bytes = vec![0; capacity].into_boxed_slice();
            self.start = 0;
            self.len = 0;
        }
        let end = self.start.saturating_add(self.len);
        let room = self.bytes.len().saturating_sub(self.len);
        let left = len.min(room);
        // The free part, up to the end and from the beginning.
        let first = end.checked_rem(self.bytes.len()).unwrap_or(0);
        let straight = left.min(self.bytes.len().saturating_sub(first));
        let mut done = 0;
        if let Some(to) = self.bytes.get_mut(first..first.saturating_add(straight)) {
            done = chain.read_at(offset, to);
        }
        if let Some(to) = self.bytes.get_mut(..left.saturating_sub(straight)) {
            done = done.saturating_add(chain.read_at(offset.saturating_add(straight as u64), to));
        }
        self.len = self.len.saturating_add(done);
    }

    /// The bytes, in order, in two parts of which either may be empty. They stay where they are until this is changed or dropped.
    pub(super) fn segments(&mut self) -> [Segment; 2] {
        let straight = self.len.min(self.bytes.len().saturating_sub(self.start));
        let whole = Segment::new(self.bytes.as_mut_ptr(), self.bytes.len());
        [whole.part(self.start, straight), whole.part(0, self.len.saturating_sub(straight))]
    }

    /// The first `count` bytes are sent.
    pub(super) fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len = self.len.saturating_sub(count);
        self.start = self.start.saturating_add(count).checked_rem(self.bytes.len()).unwrap_or(0);
        if self.len == 0 {
            *self = Self::default();
        }
    }
}
