//! What answers are made of: text, or events as they happen (server-sent events, HTML standard, 9.2).

use crate::event::{Event, Events};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Sleep;

/// The most clients that listen to events at a time.
const MOST_LISTENERS: usize = 32;

/// How many events a client may be behind before it is dropped. More than are kept for one that comes back.
const MOST_BEHIND: usize = 512;

/// How often a client that has nothing to hear is sent a comment, by which it is seen whether it is still there.
const SILENCE: Duration = Duration::from_secs(15);

/// Places for clients that listen.
#[derive(Default)]
pub(super) struct Seats(Rc<Cell<usize>>);

/// One of them; free again when it is dropped.
pub(super) struct Seat(Rc<Cell<usize>>);

impl Seats {
    pub(super) fn take(&self) -> Option<Seat> {
        if self.0.get() == MOST_LISTENERS {
            return None;
        }
        self.0.set(self.0.get() + 1);
        Some(Seat(Rc::clone(&self.0)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// An answer's body.
pub(super) enum Body {
    /// Text that is there.
    Text(Bytes),
    /// Events as they happen.
    Events(Box<Listening>),
}

/// A client that listens.
pub(super) struct Listening {
    events: mpsc::Receiver<Arc<Event>>,
    ending: Pin<Box<dyn Future<Output = ()>>>,
    silence: Pin<Box<Sleep>>,
    _seat: Seat,
}

impl Body {
    pub(super) fn empty() -> Self {
        Self::Text(Bytes::new())
    }

    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        Self::Text(text.into())
    }

    /// Events from now on, and those kept after the one numbered `after`; until `ending` says so.
    pub(super) fn events(
        events: &Events,
        after: Option<u64>,
        seat: Seat,
        mut ending: watch::Receiver<bool>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(MOST_BEHIND);
        // A client too far behind is forgotten here, which ends its stream after what it has not read yet.
        events.listen(after, Box::new(move |event| sender.try_send(Arc::clone(event)).is_ok()));
        Self::Events(Box::new(Listening {
            events: receiver,
            ending: Box::pin(async move {
                let _ = ending.wait_for(|ending| *ending).await;
            }),
            silence: Box::pin(tokio::time::sleep(SILENCE)),
            _seat: seat,
        }))
    }
}

impl Listening {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Poll::Ready(event) = self.events.poll_recv(context) {
            self.silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
            return Poll::Ready(event.map(|event| text_of(&event)));
        }
        if self.ending.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        if self.silence.as_mut().poll(context).is_ready() {
            self.silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
            return Poll::Ready(Some(Bytes::from_static(b":\n\n")));
        }
        Poll::Pending
    }
}

fn text_of(event: &Event) -> Bytes {
    // An event is made of names, numbers and JSON; there is nothing in it that has no JSON form.
    let data = serde_json::to_string(event).unwrap_or_default();
    format!("id: {}\nevent: {}\ndata: {data}\n\n", event.id, event.event).into()
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Events(listening) => {
                listening.poll_next(context).map(|next| next.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
