//! A descriptor chain: one request of the driver, as host memory (virtio 1.2, 2.6 to 2.8).

pub use crate::host_memory::Segment;

use crate::queue::QueueError;
use machine::memory::Memory;
use std::sync::Arc;

/// Identifies a chain to the queue it was popped from. To be given back exactly once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// Head descriptor (split) or buffer id (packed).
    pub(crate) id: u16,
    /// Ring slots it takes (packed); 1 in a split queue.
    pub(crate) slots: u16,
    /// Bytes the device can read, for counting.
    pub(crate) readable: u32,
    /// When the batch that it was popped in began, of the intervals of the queue's clock; 0 if requests are not timed.
    pub(crate) taken: u64,
}

impl Token {
    /// The driver's number for the chain: the head descriptor's index in a split queue (less than the queue's size), the
    /// buffer id in a packed one (any value).
    pub fn id(self) -> u16 {
        self.id
    }
}

/// One request: first the bytes the device reads, then those it writes. Made once and filled by
/// [`Queue::pop`](crate::queue::Queue::pop) again and again, so that popping allocates nothing after the first requests.
///
/// A chain may have more segments than the 1024 (`IOV_MAX`) that one system call takes, unless it was made to have
/// [at most](Self::of_at_most) so many. What a list of segments once took it keeps for the next requests.
pub struct Chain {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    readable_len: u64,
    writable_len: u64,
    token: Token,
    /// The most segments of each list.
    most: usize,
    oversized: bool,
    /// Keeps what the segments point to mapped.
    memory: Option<Memory>,
}

impl Chain {
    /// An empty chain, to be filled.
    pub fn new() -> Self {
        Self::of_at_most(usize::MAX)
    }

    /// An empty chain, to be filled, that keeps track of at most `most` segments that the device reads, and as many that it
    /// writes: where many requests are in flight, this bounds the memory that their driver makes the device take. See
    /// [`Self::is_oversized`].
    pub fn of_at_most(most: usize) -> Self {
        Self {
            readable: Vec::new(),
            writable: Vec::new(),
            readable_len: 0,
            writable_len: 0,
            token: Token::default(),
            most,
            oversized: false,
            memory: None,
        }
    }

    /// Whether the request has more segments than this can keep track of. Of a list with too many there is then only an end,
    /// so that a status can be written, and the lengths are those of what there is.
    pub fn is_oversized(&self) -> bool {
        self.oversized
    }

    /// For how many segments memory is taken.
    pub fn room(&self) -> usize {
        self.readable.capacity().saturating_add(self.writable.capacity())
    }

    /// What the device reads, in order.
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// What the device writes, in order.
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Number of bytes the device reads, up to 4 GiB.
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Number of bytes the device writes, up to 4 GiB.
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// What the chain is given back with.
    pub fn token(&self) -> Token {
        self.token
    }

    /// Copies from the readable bytes at `offset`. Returns how many there were, at most `data.len()`.
    #[must_use]
    pub fn read_at(&self, offset: u64, data: &mut [u8]) -> usize {
        let mut done = 0_usize;
        for segment in parts(&self.readable, offset, data.len() as u64) {
            let end = done.saturating_add(segment.len());
            if let Some(data) = data.get_mut(done..end) {
                // SAFETY: the segments came from `memory`, which this chain keeps mapped.
                unsafe { segment.read(data) };
                done = end;
            }
        }
        done
    }

    /// The `N` readable bytes at `offset`, if there are as many.
    pub fn read_array<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let mut data = [0; N];
        (self.read_at(offset, &mut data) == N).then_some(data)
    }

    /// Copies to the writable bytes at `offset`. Returns how many fitted, at most `data.len()`.
    #[must_use]
    pub fn write_at(&self, offset: u64, data: &[u8]) -> usize {
        let mut done = 0_usize;
        for segment in parts(&self.writable, offset, data.len() as u64) {
            let end = done.saturating_add(segment.len());
            if let Some(data) = data.get(done..end) {
                // SAFETY: the segments came from `memory`, which this chain keeps mapped.
                unsafe { segment.write(data) };
                done = end;
            }
        }
        done
    }

    /// Appends to `to` the segments of the `len` readable bytes at `offset`, or as many as there are.
    pub fn append_readable(&self, offset: u64, len: u64, to: &mut Vec<Segment>) {
        to.extend(parts(&self.readable, offset, len));
    }

    /// Appends to `to` the segments of the `len` writable bytes at `offset`, or as many as there are.
    pub fn append_writable(&self, offset: u64, len: u64, to: &mut Vec<Segment>) {
        to.extend(parts(&self.writable, offset, len));
    }

    /// Becomes an empty chain of `memory`.
    pub(crate) fn begin(&mut self, memory: &Memory) {
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
        self.oversized = false;
        if !self.memory.as_ref().is_some_and(|present| Arc::ptr_eq(present, memory)) {
            self.memory = Some(Arc::clone(memory));
        }
    }

    /// The list that a buffer of this direction is added to, after counting its bytes.
    pub(crate) fn grow(&mut self, writable: bool, len: u32) -> Result<&mut Vec<Segment>, QueueError> {
        if !writable && !self.writable.is_empty() {
            return Err(QueueError::ReadableAfterWritable);
        }
        if self.readable_len.saturating_add(self.writable_len).saturating_add(len.into()) > 1 << 32 {
            return Err(QueueError::ChainTooLarge);
        }
        let (list, total) = if writable {
            (&mut self.writable, &mut self.writable_len)
        } else {
            (&mut self.readable, &mut self.readable_len)
        };
        if list.len() >= self.most {
            self.oversized = true;
            list.clear();
            *total = 0;
        }
        *total = total.saturating_add(len.into());
        Ok(list)
    }

    pub(crate) fn finish(&mut self, token: Token) {
        // Of 4 GiB one byte is not counted.
        self.token = Token { readable: u32::try_from(self.readable_len).unwrap_or(u32::MAX), ..token };
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain")
            .field("token", &self.token)
            .field("readable", &self.readable)
            .field("writable", &self.writable)
            .finish()
    }
}

/// The parts of `segments` that hold the `len` bytes at `offset`.
pub fn parts(segments: &[Segment], offset: u64, len: u64) -> impl Iterator<Item = Segment> + '_ {
    let mut skip = offset;
    let mut left = len;
    segments.iter().filter_map(move |segment| {
        let size = segment.len() as u64;
        if left == 0 || skip >= size {
            skip = skip.saturating_sub(size);
            return None;
        }
        // Both fit: `skip` is less than the segment's length, and no more than `usize::MAX` is asked for.
        let part = segment.part(skip as usize, usize::try_from(left).unwrap_or(usize::MAX));
        skip = 0;
        left = left.saturating_sub(part.len() as u64);
        Some(part)
    })
}
