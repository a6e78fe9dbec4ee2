//! How many calls of a kind may wait for the machine at a time, so that there is room for those that look after it.

use super::Request;
use std::cell::Cell;
use std::rc::Rc;

/// The most calls that change the machine.
const MOST_CHANGES: usize = 64;

/// The most that end it.
const MOST_ENDS: usize = 16;

/// Places for calls that may wait.
#[derive(Default)]
pub(super) struct Places {
    changes: Rc<Cell<usize>>,
    ends: Rc<Cell<usize>>,
}

/// A call's place; free again when it is dropped.
pub(super) struct Place(Option<Rc<Cell<usize>>>);

impl Places {
    /// A place for a call. Queries and the end of the process always have one. `None`: all are taken.
    pub(super) fn take(&self, request: &Request) -> Option<Place> {
        let (taken, most) = match request {
            request if request.is_query() => return Some(Place(None)),
            Request::VmmShutdown => return Some(Place(None)),
            Request::Shutdown | Request::Delete => (&self.ends, MOST_ENDS),
            _ => (&self.changes, MOST_CHANGES),
        };
        if taken.get() == most {
            return None;
        }
        taken.set(taken.get() + 1);
        Some(Place(Some(Rc::clone(taken))))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(taken) = &self.0 {
            taken.set(taken.get() - 1);
        }
    }
}
