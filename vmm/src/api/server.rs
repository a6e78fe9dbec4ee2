//! The API thread: accepts connections and serves each one beside the others.
//!
//! All of it runs on one thread with an event loop of its own. A connection is bounded in what it can hold (a head of 16 KiB,
//! a body of 1 MiB, [`MOST_FILES`](super::connection::MOST_FILES) descriptors) and in how long its request may take to arrive;
//! when there are too many connections, the one that has been of no use for longest makes room. One whose client has left goes,
//! also while its call waits.

use super::connection::{Connection, Files, Presence};
use super::http::{self, Served};
use super::{Call, socket};
use crate::event::Events;
use anyhow::{Context as _, Result};
use hyper::rt::{Sleep, Timer};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, LocalSet};

/// The most connections at a time.
const MOST_CONNECTIONS: usize = 128;

/// How long a request's head may take to arrive, and how long a connection may be without a request.
const HEAD_TIME: Duration = Duration::from_secs(60);

/// How long clients have to take their last answer when the process ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// When a client is looked for again where the host has no descriptors, unless a client leaves before.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_secs(1);

/// The most of a request's head.
const HEAD_BYTES: usize = 16 << 10;

/// Makes calls of the machine thread. Never blocks.
pub type Ask = Box<dyn Fn(Call) + Send>;

/// The running API. Dropping it lets clients take the answers that are there, and ends it.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _listener: socket::Listener,
}

impl Server {
    /// Serves whoever comes to `listener`. `confine` is called on the thread before the first of them is.
    ///
    /// # Errors
    /// When the host is out of resources.
    pub fn start(
        listener: socket::Listener,
        ask: Ask,
        events: Events,
        confine: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let socket = listener.socket().context("--api-socket")?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("api".into())
            .stack_size(512 << 10)
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => return tracing::error!("--api-socket: the API is not served: {error}"),
                };
                let served = Rc::new(Served::new(ask, events));
                let tasks = LocalSet::new();
                tasks.block_on(&runtime, async move {
                    match UnixListener::from_std(socket) {
                        Ok(listener) => {
                            confine();
                            serve(listener, served, stopped).await;
                        }
                        Err(error) => tracing::error!("--api-socket: the API is not served: {error}"),
                    }
                });
            })
            .context("starting the API thread")?;
        Ok(Self { stop: Some(stop), thread: Some(thread), _listener: listener })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, the hook has said so.
            let _ = thread.join();
        }
    }
}

/// Accepts until `stop` is dropped.
async fn serve(listener: UnixListener, served: Rc<Served>, stop: oneshot::Receiver<()>) {
    let (closing, _) = watch::channel(false);
    let clients = Rc::new(RefCell::new(Clients::default()));
    let mut stop = pin!(stop);
    // Given up to take a client when there are no descriptors left, so that nobody has to wait for one.
    let mut spare = listener.as_fd().try_clone_to_owned().ok();
    while let Some(accepted) = unless(stop.as_mut(), listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                if spare.is_none() {
                    clients.borrow_mut().make_room();
                    // The client that makes room lets go of its descriptor when its task is run for the last time.
                    tokio::task::yield_now().await;
                    spare = listener.as_fd().try_clone_to_owned().ok();
                }
                match spare {
                    Some(_) => clients.borrow_mut().add(&clients, stream, &served, closing.subscribe()),
                    // All others wait for the machine: this one has to come again.
                    None => drop(stream),
                }
            }
            Err(error) if spare.is_some() => {
                tracing::warn!("accepting a client of the API: {error}; the one of least use makes room");
                drop(spare.take());
            }
            Err(error) => {
                // Not this process, but the host has no descriptors, or none are left to this one but for the machine's own.
                tracing::warn!("accepting a client of the API: {error}");
                let room = async { tokio::time::timeout(OUT_OF_DESCRIPTORS, served.left.notified()).await };
                if unless(stop.as_mut(), room).await.is_none() {
                    break;
                }
            }
        }
    }
    closing.send_replace(true);
    let answered = async {
        while closing.receiver_count() > 0 {
            closing.closed().await
        }
    };
    let _ = tokio::time::timeout(LAST_ANSWERS, answered).await;
}

/// What `work` comes to, or `None` when `stop` comes first.
async fn unless<T>(mut stop: Pin<&mut oneshot::Receiver<()>>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|context| match stop.as_mut().poll(context) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => work.as_mut().poll(context).map(Some),
    })
    .await
}

/// Who is connected.
#[derive(Default)]
struct Clients {
    next: u64,
    list: VecDeque<Client>,
}

struct Client {
    number: u64,
    task: AbortHandle,
    state: Rc<ClientState>,
}

/// What a client is about.
pub(super) struct ClientState {
    /// It waits for the machine thread, or listens to events.
    pub(super) busy: Cell<bool>,
    since: Cell<Instant>,
    socket: RawFd,
}

impl ClientState {
    /// Says whether the client is at fault if nothing happens.
    pub(super) fn set_busy(&self, busy: bool) {
        self.busy.set(busy);
        self.since.set(Instant::now());
    }

    /// Whether the client is there. `None`: the host has no descriptor to see it by.
    pub(super) fn presence(&self) -> Option<Presence> {
        // SAFETY: whoever serves the client is run by its connection, which has the socket.
        Presence::of(unsafe { BorrowedFd::borrow_raw(self.socket) }).ok()
    }
}

impl Clients {
    /// Ends the connection that has been of no use for longest. `false`: all are of use.
    fn make_room(&mut self) -> bool {
        let idle = self.list.iter().enumerate().filter(|(_, client)| !client.state.busy.get());
        let index = idle.min_by_key(|(_, client)| client.state.since.get()).map(|(index, _)| index);
        let client = index.and_then(|index| self.list.remove(index));
        client.inspect(|client| client.task.abort()).is_some()
    }

    fn add(
        &mut self,
        this: &Rc<RefCell<Self>>,
        stream: UnixStream,
        served: &Rc<Served>,
        closing: watch::Receiver<bool>,
    ) {
        if self.list.len() >= MOST_CONNECTIONS && !self.make_room() {
            // All wait for the machine: this one has to come again.
            return;
        }
        let (busy, since) = (Cell::new(false), Cell::new(Instant::now()));
        let state = Rc::new(ClientState { busy, since, socket: stream.as_raw_fd() });
        let number = self.next;
        self.next += 1;
        let (clients, served, of_task) = (Rc::clone(this), Rc::clone(served), Rc::clone(&state));
        let task = tokio::task::spawn_local(async move {
            attend(stream, Rc::clone(&served), of_task, closing).await;
            served.left.notify_one();
            clients.borrow_mut().list.retain(|client| client.number != number);
        });
        self.list.push_back(Client { number, task: task.abort_handle(), state });
    }
}

/// Serves one connection until its client leaves or the process ends.
async fn attend(
    stream: UnixStream,
    served: Rc<Served>,
    state: Rc<ClientState>,
    mut closing: watch::Receiver<bool>,
) {
    let files = Files::default();
    let connection = Connection::new(stream, files.clone(), Files::default());
    let ending = closing.clone();
    let service = service_fn(move |request| {
        let (served, state, files) = (Rc::clone(&served), Rc::clone(&state), files.clone());
        let ending = ending.clone();
        async move { http::respond(&served, &state, request, &files, ending).await }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(Time)
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD_BYTES)
            .half_close(true)
            // Clients look for `Content-Length` as it is written here.
            .title_case_headers(true)
            .serve_connection(connection, service)
    );
    let mut closing = pin!(async move { closing.wait_for(|closing| *closing).await.is_ok() });
    let mut asked_to_close = false;
    let result = poll_fn(|context| {
        if !asked_to_close && closing.as_mut().poll(context).is_ready() {
            asked_to_close = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(context)
    })
    .await;
    if let Err(error) = result {
        tracing::debug!("a client of the API left in the middle of it: {error}");
    }
}

/// The runtime's clock, for hyper.
#[derive(Clone)]
pub(super) struct Time;

impl Timer for Time {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Nap(Box::pin(tokio::time::sleep(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Nap(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }
}

struct Nap(Pin<Box<tokio::time::Sleep>>);

impl Future for Nap {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl Sleep for Nap {}
