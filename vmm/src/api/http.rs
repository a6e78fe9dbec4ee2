//! HTTP around a call: a request's body in, an answer's status and body out.
//!
//! | status | when |
//! |---|---|
//! | 200, 204 | done, with and without something to say |
//! | 400 | the request is wrong; the error names the field |
//! | 404 | no such path, machine or device |
//! | 405 | the path has another method; or the machine is not in a state for it |
//! | 408 | the body does not arrive, or the guest or the host does not do its part, in time |
//! | 413, 415 | a body that is too large, is not JSON |
//! | 409 | it is there already |
//! | 500, 501, 503 | the host refused; not supported; the process ends, or too many calls wait |
//!
//! An error's body is an array of strings, from the general to the particular, as cloud-hypervisor's clients read it. A client
//! that accepts `application/problem+json` gets an object (RFC 9457) with the field in a member of its own. What is no HTTP request at all
//! is answered by the HTTP library, which has no place for a body: 400, or 414 and 431 where the path or the head is too long.

use super::connection::{Files, MOST_FILES};
use super::places::Places;
use super::routes::{self, Refusal, Route, Serves};
use super::server::{Ask, ClientState};
use super::stream::{self, Body};
use super::{Answer, ApiError, Call, ErrorKind, Interest, Reply, Respond};
use crate::event::Events;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, SERVER};
use hyper::{Request, Response, StatusCode};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};

/// The most bytes of a request's body.
pub const BODY_BYTES: usize = 1 << 20;

/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

const PROBLEM: &str = "application/problem+json";

/// What is served.
pub(super) struct Served {
    ask: Ask,
    events: Events,
    listeners: stream::Seats,
    places: Places,
    /// Told when a client has left.
    pub(super) left: Notify,
}

impl Served {
    pub(super) fn new(ask: Ask, events: Events) -> Self {
        let (listeners, places) = (stream::Seats::default(), Places::default());
        Self { ask, events, listeners, places, left: Notify::new() }
    }
}

/// Serves one request.
pub(super) async fn respond(
    served: &Served,
    client: &ClientState,
    request: Request<Incoming>,
    files: &Files,
    ending: watch::Receiver<bool>,
) -> Result<Response<Body>, Infallible> {
    let as_problem = accepts_problem(request.headers());
    let mut response = match perform(served, client, request, files, ending).await {
        Ok(response) => response,
        Err(refusal) => refuse(&refusal, as_problem),
    };
    response.headers_mut().insert(SERVER, HeaderValue::from_static("Vivarium API"));
    // cloud-hypervisor's own client takes all that follows the version for the status.
    response.extensions_mut().insert(ReasonPhrase::from_static(b""));
    Ok(response)
}

async fn perform(
    served: &Served,
    client: &ClientState,
    request: Request<Incoming>,
    files: &Files,
    ending: watch::Receiver<bool>,
) -> Result<Response<Body>, Refusal> {
    let route = routes::find(request.method().as_str(), request.uri().path())?;
    let (head, body) = request.into_parts();
    let content_type = head.headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    routes::check_content_type(content_type)?;
    let body = receive(body).await?;
    let files = files.take();
    if files.len() > MOST_FILES {
        return Err(Refusal::bad(format!("has more than {MOST_FILES} file descriptors")));
    }
    match route.serves {
        Serves::OpenApi => {
            routes::no_body(&body)?;
            Ok(with_type("application/json", Body::text(super::openapi::DOCUMENT)))
        }
        Serves::Events => {
            routes::no_body(&body)?;
            let after = head.headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default());
            let after = routes::last_event(head.uri.query(), after)?;
            let Some(seat) = served.listeners.take() else {
                return Err(Refusal::new(503, "as many clients listen to events as can"));
            };
            client.set_busy(true);
            let mut response =
                with_type("text/event-stream", Body::events(&served.events, after, seat, ending));
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            Ok(response)
        }
        Serves::Call(_) => {
            let request = route.read(head.uri.query(), &body)?;
            drop(body);
            let query = request.is_query();
            let Some(_place) = served.places.take(&request) else {
                return Err(Refusal::new(
                    503,
                    "as many calls as can wait for the machine do so; try again later, or end it with vm.shutdown",
                ));
            };
            client.set_busy(true);
            let answer =
                call(served, client, |respond, interest| Call { request, files, respond, interest }).await;
            client.set_busy(false);
            log(route, &answer, query);
            match answer {
                Some(Ok(reply)) => Ok(success(route, reply)),
                Some(Err(error)) => Err(Refusal::from(error)),
                None => Err(Refusal::new(503, "the process ends")),
            }
        }
    }
}

/// Makes a call, and waits for its answer while the client does. `None`: there will be none.
async fn call(
    served: &Served,
    client: &ClientState,
    make: impl FnOnce(Respond, Interest) -> Call,
) -> Option<Answer> {
    let (answered, answer) = oneshot::channel();
    let interest = Interest::default();
    let _waits = interest.waits();
    // Who asked may be gone by then.
    (served.ask)(make(Box::new(move |answer| drop(answered.send(answer))), interest));
    let presence = client.presence();
    let gone = async {
        match &presence {
            Some(presence) => presence.gone().await,
            None => std::future::pending().await,
        }
    };
    let (mut answer, mut gone) = (pin!(answer), pin!(gone));
    poll_fn(|context| match answer.as_mut().poll(context) {
        Poll::Ready(answer) => Poll::Ready(answer.ok()),
        Poll::Pending => gone.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// Tells the log of a call that was made. Those that only ask are of interest when something is looked for.
fn log(route: &Route, answer: &Option<Answer>, query: bool) {
    let came_of_it = match answer {
        Some(Ok(_)) => "done",
        Some(Err(error)) => error.message.as_str(),
        None => "nobody waits for the answer",
    };
    if query {
        tracing::debug!("{}: {came_of_it}", route.name);
    } else {
        tracing::info!("{}: {came_of_it}", route.name);
    }
}

async fn receive(body: Incoming) -> Result<bytes::Bytes, Refusal> {
    let received = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_BYTES).collect()).await;
    match received {
        Err(_) => Err(Refusal::new(408, "the body did not arrive in time")),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Refusal::new(413, format!("the body has more than {BODY_BYTES} bytes")))
        }
        Ok(Err(error)) => Err(Refusal::bad(format!("the body did not arrive: {error}"))),
    }
}

fn success(route: &Route, reply: Reply) -> Response<Body> {
    match reply {
        Reply::Done => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Reply::Json(value) => with_type("application/json", Body::text(value.to_string())),
        Reply::Text(text) => with_type(route.text_type, Body::text(text)),
    }
}

fn with_type(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn refuse(refusal: &Refusal, as_problem: bool) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let title = status.canonical_reason().unwrap_or("Error");
    let (kind, text) = if as_problem {
        let problem = serde_json::json!({
            "title": title,
            "status": refusal.status,
            "detail": refusal.message,
            "field": refusal.field,
        });
        (PROBLEM, problem.to_string())
    } else {
        let particular = match &refusal.field {
            Some(field) if !refusal.message.starts_with(field.as_str()) => {
                format!("{field}: {}", refusal.message)
            }
            _ => refusal.message.clone(),
        };
        ("application/json", serde_json::json!([title, particular]).to_string())
    };
    let mut response = with_type(kind, Body::text(text));
    *response.status_mut() = status;
    if let Some(allow) = refusal.allow {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    }
    response
}

fn accepts_problem(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepts.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with(PROBLEM))
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let status = match error.kind {
            ErrorKind::BadRequest => 400,
            ErrorKind::NotFound => 404,
            ErrorKind::State => 405,
            ErrorKind::Conflict => 409,
            ErrorKind::Timeout => 408,
            ErrorKind::Internal => 500,
            ErrorKind::NotSupported => 501,
        };
        // RFC 9110 has a 405 name what is allowed; in this state, nothing is.
        let allow = (status == 405).then_some("");
        Self { field: error.field, allow, ..Self::new(status, error.message) }
    }
}
