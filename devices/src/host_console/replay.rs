//! The last 64 KiB of a console's output, and how much of it the peer has seen.

use std::collections::VecDeque;

/// How much is kept.
pub(super) const REPLAY_SIZE: usize = 64 << 10;

pub(super) struct Replay {
    bytes: VecDeque<u8>,
    /// How many of `bytes`, from the front, the peer has taken.
    taken: usize,
    given_up: u64,
}

impl Replay {
    pub(super) fn new() -> Self {
        // Grown as output comes: most consoles are idle.
        Self { bytes: VecDeque::new(), taken: 0, given_up: 0 }
    }

    /// Adds output. What falls out at the front without the peer having taken it is counted as given up if
    /// there is a peer.
    pub(super) fn push(&mut self, bytes: &[u8], has_peer: bool) {
        // Only the end of what is larger than the whole buffer can stay.
        let skipped = bytes.len().saturating_sub(REPLAY_SIZE);
        let kept = bytes.get(skipped..).unwrap_or_default();
        let room = REPLAY_SIZE.saturating_sub(self.bytes.len());
        let out = kept.len().saturating_sub(room);
        self.bytes.drain(..out);
        let lost = out.saturating_sub(self.taken).saturating_add(skipped);
        if has_peer {
            self.given_up = self.given_up.saturating_add(lost as u64);
        }
        self.taken = self.taken.saturating_sub(out);
        self.bytes.extend(kept);
    }

    /// A run of what the peer has not taken.
    pub(super) fn pending(&self) -> &[u8] {
        let (first, second) = self.bytes.as_slices();
        match first.get(self.taken..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => second.get(self.taken.saturating_sub(first.len())..).unwrap_or_default(),
        }
    }

    /// The peer took `count` bytes of [`Replay::pending`].
    pub(super) fn advance(&mut self, count: usize) {
        self.taken = self.taken.saturating_add(count).min(self.bytes.len());
    }

    /// Keeps nothing of what the peer has taken.
    pub(super) fn forget(&mut self) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
    }

    /// A new peer: it has seen nothing.
    pub(super) fn rewind(&mut self) {
        self.taken = 0;
    }

    /// The peer is not going to take what is pending.
    pub(super) fn give_up(&mut self) {
        let pending = self.bytes.len().saturating_sub(self.taken);
        self.given_up = self.given_up.saturating_add(pending as u64);
        self.taken = self.bytes.len();
    }

    /// How many bytes a peer that was there never got.
    pub(super) fn given_up(&self) -> u64 {
        self.given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take_all(replay: &mut Replay) -> Vec<u8> {
        let mut taken = Vec::new();
        while !replay.pending().is_empty() {
            taken.extend_from_slice(replay.pending());
            replay.advance(replay.pending().len());
        }
        taken
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Take(usize),
        Join,
    }

    proptest! {
        #[test]
        fn shows_the_end_of_all_output(steps in proptest::collection::vec(prop_oneof![
            (0..3 * REPLAY_SIZE / 2).prop_map(Step::Push),
            (0..REPLAY_SIZE).prop_map(Step::Take),
            Just(Step::Join),
        ], 1..20)) {
            let mut replay = Replay::new();
            // All output ever, and how much of it was taken or given up.
            let (mut all, mut seen) = (Vec::new(), 0_usize);
            let (mut given_up, mut next) = (0, 0_u8);
            for step in steps {
                match step {
                    Step::Push(count) => {
                        let bytes: Vec<u8> = (0..count).map(|_| { next = next.wrapping_mul(5).wrapping_add(1); next }).collect();
                        replay.push(&bytes, true);
                        all.extend(bytes);
                        let kept_from = all.len().saturating_sub(REPLAY_SIZE);
                        given_up += kept_from.saturating_sub(seen);
                        seen = seen.max(kept_from);
                    }
                    Step::Take(count) => {
                        let count = count.min(replay.pending().len());
                        prop_assert_eq!(&replay.pending()[..count], &all[seen..seen + count]);
                        replay.advance(count);
                        seen += count;
                    }
                    Step::Join => {
                        replay.rewind();
                        seen = all.len().saturating_sub(REPLAY_SIZE);
                    }
                }
            }
            prop_assert_eq!(take_all(&mut replay), &all[seen..]);
            prop_assert_eq!(replay.given_up(), given_up as u64);
        }
    }
}
