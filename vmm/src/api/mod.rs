//! The control plane's inside: what can be asked of the machine thread, and what it answers.
//!
//! A [`Call`] is a [`Request`] with the way its answer goes back. Whoever made it may wait for it or not; the machine thread
//! never waits for them. Nothing else shares state with the machine thread.

mod bodies;
pub mod connection;
pub mod event_monitor;
mod http;
mod interest;
pub mod openapi;
mod places;
pub mod request;
pub mod routes;
pub mod server;
pub mod socket;
mod stream;
mod tree;

pub use interest::Interest;
pub use request::{ApiError, ErrorKind, Reply, Request};

use std::os::fd::OwnedFd;

/// What a call came to.
pub type Answer = Result<Reply, ApiError>;

/// Takes a call's answer. Called once, on the machine thread; it must not block.
pub type Respond = Box<dyn FnOnce(Answer) + Send>;

/// A request, the file descriptors that came with it, and where the answer goes.
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Descriptors that were passed along (SCM_RIGHTS).
    pub files: Vec<OwnedFd>,
    /// Takes the answer.
    pub respond: Respond,
    /// Whether somebody waits for it.
    pub interest: Interest,
}

#[cfg(test)]
mod tests;
