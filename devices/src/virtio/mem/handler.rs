//! Answers the requests of the queue.

use super::request::{ANSWER, Request};
use super::shared::Shared;
use std::sync::Arc;
use virtio::chain::Chain;
use virtio::queue::QueueError;
use virtio::service::Service;

/// Plugs and unplugs what the driver asks for.
pub(super) struct Plugger(pub(super) Arc<Shared>);

impl Service for Plugger {
    fn answer(&mut self, request: &Chain) -> Result<u32, QueueError> {
        if request.writable_len() < ANSWER as u64 {
            return Err(QueueError::Request("for memory has no room for the answer"));
        }
        let answer = self.0.answer(Request::read(request));
        Ok(request.write_at(0, &answer.bytes()) as u32)
    }
}

// What there is to see is the device's.
machine::inspect!(Plugger {});
