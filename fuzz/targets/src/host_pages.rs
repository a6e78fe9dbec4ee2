//! The host's pages behind guest RAM, as they are asked for: checks that each request of a device is one it may make.

use machine::bus::Range;
use machine::memory::HostPages;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pages behind the RAM that [`virtio::testing::Driver`] has, and behind further regions.
pub(crate) struct CheckedPages {
    /// Ranges must begin and end at multiples of this, when not 0.
    unit: u64,
    /// What a device may change; anything, if `None`.
    region: Option<Range>,
    /// The host refuses everything.
    refuses: AtomicBool,
    released: Mutex<Vec<Range>>,
}

impl CheckedPages {
    pub(crate) fn new(unit: u64, region: Option<Range>) -> Self {
        Self { unit, region, refuses: AtomicBool::new(false), released: Mutex::default() }
    }

    pub(crate) fn refuse(&self, refuse: bool) {
        self.refuses.store(refuse, Ordering::SeqCst);
    }

    /// What was released since this was last asked.
    pub(crate) fn take(&self) -> Vec<Range> {
        std::mem::take(&mut self.released.lock().expect("no test panics with it"))
    }

    fn check(&self, range: Range) -> io::Result<()> {
        assert!(range.size > 0 && range.start.checked_add(range.size).is_some(), "{range:?} is a range");
        if self.unit > 0 {
            assert!(
                range.start.is_multiple_of(self.unit) && range.size.is_multiple_of(self.unit),
                "{range:?} is whole units"
            );
        }
        if let Some(region) = self.region {
            assert!(
                range.start >= region.start && range.last() <= region.last(),
                "{range:?} is in the region"
            );
        }
        if self.refuses.load(Ordering::SeqCst) { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    }
}

impl HostPages for CheckedPages {
    fn release(&self, range: Range) -> io::Result<u64> {
        self.check(range)?;
        self.released.lock().expect("no test panics with it").push(range);
        Ok(range.size)
    }

    fn populate(&self, range: Range) -> io::Result<()> {
        self.check(range)
    }
}
