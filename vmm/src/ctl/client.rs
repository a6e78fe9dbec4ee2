//! A client of the API: one connection, one request after the other.

use crate::api::connection::{Connection, Files};
use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// A connection to a monitor.
pub struct Client {
    runtime: Runtime,
    tasks: LocalSet,
    sender: SendRequest<Full<Bytes>>,
    files: Files,
}

/// A refusal, as the monitor tells it.
#[derive(Debug)]
pub struct Refused {
    /// The status.
    pub status: u16,
    /// The body: an array of strings.
    pub body: String,
}

impl std::error::Error for Refused {}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match serde_json::from_str::<Vec<String>>(&self.body) {
            Ok(told) => f.write_str(told.last().map_or("it gives no reason", String::as_str)),
            Err(_) => write!(f, "status {}: {}", self.status, self.body),
        }
    }
}

impl Client {
    /// Connects to the monitor that listens on `socket`.
    ///
    /// # Errors
    /// When there is none.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let tasks = LocalSet::new();
        let files = Files::default();
        let to_send = files.clone();
        let sender = tasks.block_on(&runtime, async {
            let stream = UnixStream::connect(socket).await.with_context(|| {
                format!(
                    "{}: no monitor answers there; is it running with this --api-socket?",
                    socket.display()
                )
            })?;
            let (sender, connection) =
                http1::handshake(Connection::new(stream, Files::default(), to_send)).await?;
            // What goes wrong here is told by the request it happens to.
            tokio::task::spawn_local(async { drop(connection.await) });
            anyhow::Ok(sender)
        })?;
        Ok(Self { runtime, tasks, sender, files })
    }

    /// Makes a request, and returns the answer's body; `None` if it has none. `files` go along with it.
    ///
    /// # Errors
    /// [`Refused`] when the monitor refuses; otherwise when it does not answer.
    pub fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: Option<String>,
        files: Vec<OwnedFd>,
    ) -> Result<Option<String>> {
        let request = request(method, path, body, "*/*")?;
        for file in files {
            self.files.push(file);
        }
        let sender = &mut self.sender;
        self.tasks.block_on(&self.runtime, async {
            let response = send(sender, request).await?;
            let body = response.into_body().collect().await.context("reading the answer")?.to_bytes();
            if body.is_empty() { Ok(None) } else { Ok(Some(String::from_utf8(body.into())?)) }
        })
    }

    /// Has `each` told of events' data, as JSON, until it breaks or the monitor ends.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn listen(&mut self, path: &str, mut each: impl FnMut(&str) -> ControlFlow<()>) -> Result<()> {
        let request = request("GET", path, None, "text/event-stream")?;
        let sender = &mut self.sender;
        self.tasks.block_on(&self.runtime, async {
            let mut body = send(sender, request).await?.into_body();
            let mut text = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = match frame {
                    Err(error) if is_cut(&error) => break,
                    frame => frame.context("reading events")?,
                };
                let Ok(data) = frame.into_data() else { continue };
                text.extend_from_slice(&data);
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    let line = String::from_utf8_lossy(&line);
                    if let Some(data) = line.trim_end().strip_prefix("data: ")
                        && each(data).is_break()
                    {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }
}

/// Whether a body stopped in its middle, as that of a monitor does which was killed.
fn is_cut(error: &hyper::Error) -> bool {
    let cut = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
    };
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
    error.is_incomplete_message() || cause.is_some_and(cut)
}

fn request(method: &str, path: &str, body: Option<String>, accept: &str) -> Result<Request<Full<Bytes>>> {
    let mut request =
        Request::builder().method(method).uri(path).header(HOST, "localhost").header(ACCEPT, accept);
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    request.body(Full::new(body.unwrap_or_default().into())).map_err(|error| anyhow!("{path}: {error}"))
}

async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>> {
    sender.ready().await.context("the monitor has gone")?;
    let response = sender.send_request(request).await.context("the monitor went before it answered")?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.into_body().collect().await.context("reading the answer")?.to_bytes();
    bail!(Refused { status: status.as_u16(), body: String::from_utf8_lossy(&body).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn events_end_with_a_monitor_that_is_killed() {
        let folder = std::env::temp_dir().join(format!("vivarium-client-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let monitor = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut bytes = [0; 256];
                let count = stream.read(&mut bytes).unwrap();
                request.extend_from_slice(&bytes[..count]);
            }
            // One whole chunk, and no last one.
            let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\ndata: {}\n\n\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let mut heard = Vec::new();
        let result = Client::connect(&path).unwrap().listen("/", |data| {
            heard.push(data.to_owned());
            ControlFlow::Continue(())
        });
        monitor.join().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        result.unwrap();
        assert_eq!(heard, ["{}"]);
    }
}
