//! Which blocks of a memory device are plugged.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Whether blocks are plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plugged {
    All,
    None,
    Some,
}

/// A run of plugged blocks, as saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Run {
    /// The first block.
    pub(super) first: u64,
    /// How many.
    pub(super) count: u64,
}

/// One bit for each block of the device.
#[derive(Debug)]
pub(super) struct Blocks {
    words: Vec<u64>,
    count: u64,
    plugged: u64,
}

impl Blocks {
    /// `count` blocks, none of them plugged.
    pub(super) fn new(count: u64) -> Self {
        let words = usize::try_from(count.div_ceil(64)).unwrap_or(usize::MAX);
        Self { words: vec![0; words], count, plugged: 0 }
    }

    /// How many are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.plugged
    }

    fn get(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word & bit(block) != 0)
    }

    /// Whether the blocks of `range`, all of which there are, are plugged.
    pub(super) fn state(&self, range: Range<u64>) -> Plugged {
        let first = self.get(range.start);
        match range.into_iter().all(|block| self.get(block) == first) {
            true if first => Plugged::All,
            true => Plugged::None,
            false => Plugged::Some,
        }
    }

    /// Sets the state of the blocks of `range`. Those that there are not stay out.
    pub(super) fn set(&mut self, range: Range<u64>, plugged: bool) {
        for block in range.start..range.end.min(self.count) {
            let Some(word) = usize::try_from(block / 64).ok().and_then(|at| self.words.get_mut(at)) else {
                return;
            };
            let before = *word & bit(block) != 0;
            if before == plugged {
                continue;
            }
            *word ^= bit(block);
            self.plugged =
                if plugged { self.plugged.saturating_add(1) } else { self.plugged.saturating_sub(1) };
        }
    }

    /// Unplugs all.
    pub(super) fn clear(&mut self) {
        self.words.fill(0);
        self.plugged = 0;
    }

    /// The runs of plugged blocks, ascending.
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for block in (0..self.count).filter(|block| self.get(*block)) {
            match runs.last_mut() {
                Some(run) if run.first.saturating_add(run.count) == block => {
                    run.count = run.count.saturating_add(1);
                }
                _ => runs.push(Run { first: block, count: 1 }),
            }
        }
        runs
    }

    /// Takes saved runs. `false`: they are not of this many blocks, or not ascending; nothing is plugged then.
    pub(super) fn restore(&mut self, runs: &[Run]) -> bool {
        self.clear();
        let mut next = 0;
        for run in runs {
            let end = run.first.checked_add(run.count).filter(|end| *end <= self.count);
            let (Some(end), true) = (end, run.first >= next && run.count > 0) else {
                self.clear();
                return false;
            };
            self.set(run.first..end, true);
            next = end;
        }
        true
    }
}

fn bit(block: u64) -> u64 {
    1 << (block % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_was_plugged_and_come_back() {
        let mut blocks = Blocks::new(200);
        blocks.set(3..70, true);
        blocks.set(60..66, false);
        blocks.set(199..300, true);
        assert_eq!(blocks.plugged(), 57 + 4 + 1);
        let runs = blocks.runs();
        assert_eq!(
            runs,
            [Run { first: 3, count: 57 }, Run { first: 66, count: 4 }, Run { first: 199, count: 1 }]
        );
        let mut other = Blocks::new(200);
        assert!(other.restore(&runs));
        assert_eq!((other.runs(), other.plugged()), (runs.clone(), 62));
        assert!(!Blocks::new(199).restore(&runs), "a run goes past the end");
        assert!(!other.restore(&[runs[1], runs[0]]), "not ascending");
        assert_eq!(other.plugged(), 0);
    }
}
