//! How long is waited for programs on the host and for the guest.

use super::super::connection::State;
use super::Mux;
use std::time::Duration;

/// How long a program may take to say which port it wants, and the guest to answer a request.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How long the guest may take to acknowledge that the host has closed both ways.
pub(super) const CLOSE: Duration = Duration::from_secs(8);
/// How long a program may take nothing of what the guest sent before it closed. What the socket holds by then is still there for it;
/// the rest, which is kept here, is dropped.
pub(super) const LINGER: Duration = Duration::from_secs(60);

impl Mux {
    pub(super) fn after(&self, duration: Duration) -> u64 {
        self.now.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn set_deadline(&mut self, index: usize, deadline: Option<u64>) {
        let Some(connection) = self.get_mut(index) else { return };
        connection.deadline = deadline;
        if let Some(deadline) = deadline.filter(|deadline| *deadline < self.next_deadline) {
            self.next_deadline = deadline;
            self.set_timer();
        }
    }

    fn set_timer(&mut self) {
        let left = Duration::from_nanos(self.next_deadline.saturating_sub(self.now).max(1));
        if let Err(error) = self.timer.reset(left, None) {
            tracing::warn!(%error, "a vsock device's timer cannot be set");
        }
    }

    /// Whether a program took something of what the guest sent before it closed, and has not taken all: then it has more time. A socket
    /// tells of room only when it is three quarters empty, so it is tried.
    fn host_goes_on(&mut self, index: usize) -> bool {
        let deadline = self.after(LINGER);
        let Some(connection) = self.get_mut(index) else { return false };
        if connection.state != State::Lingering {
            return false;
        }
        let before = connection.unsent_len();
        connection.flush();
        let goes_on = connection.has_unsent() && connection.unsent_len() < before;
        if goes_on {
            self.set_deadline(index, Some(deadline));
        }
        goes_on
    }

    /// Ends the connections whose time is over.
    pub(super) fn expire(&mut self) {
        self.next_deadline = u64::MAX;
        for index in 0..self.slots.len() {
            let Some(deadline) = self.get(index).and_then(|connection| connection.deadline) else { continue };
            if deadline <= self.now {
                if !self.host_goes_on(index) {
                    self.reset(index);
                }
            } else {
                self.next_deadline = self.next_deadline.min(deadline);
            }
        }
        if self.next_deadline != u64::MAX {
            self.set_timer();
        }
    }
}
