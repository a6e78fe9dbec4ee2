//! The API as clients see it, with a machine thread that answers as each test wants.

use super::request::AddDevice;
use super::server::Server;
use super::socket::{ApiSocketConfig, Listener};
use super::{ApiError, Call, ErrorKind, Reply, Request};
use crate::config::DeviceConfig;
use crate::event::Events;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::tempdir::TempDir;

struct Fixture {
    server: Option<Server>,
    events: Events,
    /// Calls that wait for an answer: those of `vm.pause`.
    held: Receiver<Call>,
    path: PathBuf,
    _folder: TempDir,
}

/// A client's connection.
struct Client(BufReader<UnixStream>);

#[derive(Debug, PartialEq)]
struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Fixture {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path().join("api.sock");
        let events = Events::default();
        let (hold, held) = channel();
        let ask = move |call: Call| match call.request {
            Request::Pause => hold.send(call).unwrap(),
            Request::Ping => (call.respond)(Ok(Reply::Json(serde_json::json!({"version": "1"})))),
            Request::Metrics => (call.respond)(Ok(Reply::Text("up 1\n".into()))),
            Request::Inspect(inspect) => (call.respond)(Ok(Reply::Json(inspect.path.into()))),
            Request::Unsupported(name) => {
                (call.respond)(Err(ApiError::new(
                    ErrorKind::NotSupported,
                    format!("{name} is not supported"),
                )));
            }
            Request::Add(AddDevice { device: DeviceConfig::Net(_), .. }) => {
                (call.respond)(Ok(Reply::Json(call.files.len().into())))
            }
            Request::Boot => (call.respond)(Err(ApiError::new(ErrorKind::State, "runs already"))),
            _ => (call.respond)(Ok(Reply::Done)),
        };
        let config = ApiSocketConfig { path: Some(path.clone()), fd: None };
        let listener = Listener::open(&config).unwrap();
        let server = Server::start(listener, Box::new(ask), events.clone(), || {}).unwrap();
        Self { server: Some(server), events, held, path, _folder: folder }
    }

    fn client(&self) -> Client {
        Client(BufReader::new(UnixStream::connect(&self.path).unwrap()))
    }
}

impl Client {
    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn receive(&mut self) -> Response {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).unwrap(), 0, "closed after: {head}");
        }
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.0.read_exact(&mut body).unwrap();
        let status = head[9..12].parse().unwrap();
        Response { status, head, body: String::from_utf8(body).unwrap() }
    }

    fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Response {
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.send(&format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}{length}\r\n{body}"));
        self.receive()
    }

    fn get(&mut self, path: &str) -> Response {
        self.ask("GET", path, "", "")
    }
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for _ in 0..3 {
        let response = client.get("/api/v1/vmm.ping");
        assert_eq!((response.status, response.body.as_str()), (200, r#"{"version":"1"}"#));
        assert!(response.head.contains("Content-Type: application/json\r\n"), "{}", response.head);
        let response = client.ask("PUT", "/api/v1/vm.resume", "", "");
        assert_eq!((response.status, response.body.as_str()), (204, ""));
    }
    assert_eq!(client.get("/metrics").body, "up 1\n");
    assert_eq!(client.get("/api/v1/vm.inspect?path=pci%2F00:03.0").body, r#""pci/00:03.0""#);
    assert!(client.get("/api/v1/openapi.json").body.starts_with('{'));
}

#[test]
fn what_is_wrong_is_refused_with_its_status_and_field() {
    let fixture = Fixture::new();
    let json = "Content-Type: application/json\r\n";
    let disk = "/api/v1/vm.add-disk";
    for (method, path, headers, body, status, told) in [
        ("GET", "/api/v1/vm.nothing", "", "", 404, "there is no such path"),
        ("GET", "/", "", "", 404, "there is no such path"),
        ("POST", "/api/v1/vm.boot", "", "", 405, "use PUT"),
        ("PUT", "/api/v1/vm.boot", "", "", 405, "runs already"),
        ("PUT", "/api/v1/vm.resume", "", "{}", 400, "takes no body"),
        ("PUT", "/api/v1/vm.resume?now", "", "", 400, "nothing after"),
        ("GET", "/api/v1/vm.inspect?paths=x", "", "", 400, "paths: the query can have one path"),
        ("PUT", disk, "", "", 400, "takes a JSON body"),
        ("PUT", disk, "Content-Type: text/plain\r\n", "{}", 415, "send application/json"),
        ("PUT", disk, json, "{", 400, "EOF while parsing"),
        ("PUT", disk, json, "{}{}", 400, "goes on after its end"),
        ("PUT", disk, json, "[null]", 400, "takes a JSON object"),
        (
            "PUT",
            disk,
            json,
            r#"{"rate_limiter_config": [null]}"#,
            400,
            "rate_limiter_config: takes a JSON object",
        ),
        ("PUT", disk, json, r#"{"colour": 1}"#, 400, "colour: unknown field"),
        ("PUT", disk, json, r#"{"vhost_user": true}"#, 501, "vhost_user is not supported yet"),
        ("PUT", disk, json, r#"{"colour": null}"#, 400, "colour: unknown field"),
        ("PUT", disk, json, r#"{"readonly": null, "colour": null}"#, 400, "colour: unknown field"),
        ("PUT", disk, json, r#"{"path": "x", "path": "y"}"#, 400, "path: the field is there twice"),
        (
            "PUT",
            "/api/v1/vm.create",
            json,
            r#"{"disks": [{"readonly": null}, {"readonly": null, "bogus": null}]}"#,
            400,
            "bogus",
        ),
        ("PUT", "/api/v1/vm.create", json, r#"{"watchdogs": true}"#, 400, "watchdogs: takes a list"),
        ("PUT", "/api/v1/vm.create", json, r#"{"mem": [[]]}"#, 400, "mem[0]: takes a JSON object"),
        ("PUT", "/api/v1/vm.create", json, r#"{"mem": {}}"#, 400, "mem: invalid type"),
        ("PUT", "/api/v1/vm.add-mem", json, r#"{"zoned": "a"}"#, 400, "zoned: unknown field"),
        (
            "PUT",
            "/api/v1/vm.create",
            json,
            r#"{"pvpanic_device": [{}]}"#,
            400,
            "pvpanic_device: takes a JSON object",
        ),
        (
            "PUT",
            "/api/v1/vm.create",
            json,
            r#"{"pvpanic_device": {"port": 1}}"#,
            400,
            "pvpanic.port: unknown field",
        ),
        (
            "PUT",
            "/api/v1/vm.create",
            json,
            r#"{"pvpanic_device": {}, "pvpanic": [[]]}"#,
            400,
            "pvpanic: invalid type",
        ),
        (
            "PUT",
            "/api/v1/vm.add-pvpanic",
            json,
            r#"{"pci_function": 8}"#,
            400,
            "pci_function: 8 is out of range",
        ),
        (
            "PUT",
            "/api/v1/vm.create",
            json,
            r#"{"watchdogs": [], "watchdog": [[null]]}"#,
            400,
            "watchdog[0]: invalid type",
        ),
        (
            "PUT",
            "/api/v1/vm.create",
            json,
            r#"{"watchdogs": [{}], "watchdog": [{"pci_segment": 99}]}"#,
            400,
            "watchdog: says something else than watchdogs",
        ),
        (
            "PUT",
            "/api/v1/vm.create",
            json,
            r#"{"pvpanic_device": {"id": "p"}, "pvpanic": {"id": "p"}}"#,
            400,
            "pvpanic: says something else than pvpanic_device",
        ),
        (
            "PUT",
            "/api/v1/vm.create",
            json,
            r#"{"consoles": [{}, {}], "console": {"mode": "Null"}}"#,
            400,
            "console: says something else than consoles",
        ),
        ("PUT", disk, json, r#"{"readonly": 1}"#, 400, "readonly: invalid type"),
        ("PUT", disk, json, r#"{"queue_affinity": [null]}"#, 400, "queue_affinity[0]: invalid type"),
        ("PUT", "/api/v1/vm.set-link", json, r#"{"id": null, "up": true}"#, 400, "missing field `id`"),
        ("PUT", disk, json, r#"{"path": "x", "num_queues": 300}"#, 400, "num_queues: 300 is out of range"),
        (
            "PUT",
            "/api/v1/vm.create",
            json,
            r#"{"disks": [{"path": "x"}, {"readonly": "on"}]}"#,
            400,
            "disks[1].readonly: invalid type",
        ),
        ("PUT", "/api/v1/vm.snapshot", json, "{}", 501, "vm.snapshot is not supported"),
    ] {
        let response = fixture.client().ask(method, path, headers, body);
        assert_eq!(response.status, status, "{method} {path} {body}: {}", response.body);
        let error: Vec<String> = serde_json::from_str(&response.body).unwrap();
        assert!(error[1].contains(told), "{method} {path} {body}: {error:?}");
        assert_eq!(status == 405, response.head.contains("\r\nAllow:"), "{}", response.head);
    }
    let body = r#"{"path": null, "readonly": null, "rate_limiter_config": {"ops": null}}"#;
    assert_eq!(fixture.client().ask("PUT", disk, json, body).status, 204, "null is as if left out");
    let headers = "Accept: application/problem+json\r\n";
    let response = fixture.client().ask("PUT", disk, headers, r#"{"num_queues": 300}"#);
    let problem: serde_json::Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!((&problem["field"], &problem["status"]), (&"num_queues".into(), &400.into()));
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.send("PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n");
    // The refusal may come, and the connection end, before all is sent.
    let _ = client.0.get_mut().write_all(&vec![b' '; 1_048_577]);
    assert_eq!(client.receive().status, 413);
    let body = format!("{{\"path\": \"{}\"}}", "x".repeat(1_000_000));
    assert_eq!(fixture.client().ask("PUT", "/api/v1/vm.add-disk", "", &body).status, 204);
}

#[test]
fn descriptors_go_with_the_request_they_came_with() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let file = std::fs::File::open("/dev/null").unwrap();
    let files = [file.as_raw_fd(), file.as_raw_fd()];
    // As cloud-hypervisor's own client sends it: the descriptors with the head, the body apart.
    let head = "PUT /api/v1/vm.add-net HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n";
    client.0.get_ref().send_with_fds(&[head.as_bytes()], &files).unwrap();
    let mut client = client;
    client.send("Content-Length: 18\r\n\r\n");
    client.send(r#"{"num_queues": 4 }"#);
    assert_eq!(client.receive().body, "2");
    assert_eq!(client.ask("PUT", "/api/v1/vm.add-net", "", "{}").body, "0");
}

#[test]
fn more_descriptors_than_a_request_may_bring_are_refused_and_closed() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let (reader, writer) = std::io::pipe().unwrap();
    let files = [writer.as_raw_fd(); 70];
    let request = "PUT /api/v1/vm.add-net HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
    client.0.get_ref().send_with_fds(&[request.as_bytes()], &files).unwrap();
    let mut client = client;
    assert_eq!(client.receive().status, 400);
    drop(writer);
    // Ends when the last copy of the other end is closed.
    assert_eq!((&reader).read(&mut [0]).unwrap(), 0);
}

#[test]
fn who_is_slow_delays_nobody() {
    let fixture = Fixture::new();
    let (mut halfway, mut waiting, mut quick) = (fixture.client(), fixture.client(), fixture.client());
    halfway.send("PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
    waiting.send("PUT /api/v1/vm.pause HTTP/1.1\r\nHost: x\r\n\r\n");
    let call = fixture.held.recv().unwrap();
    for _ in 0..10 {
        assert_eq!(quick.get("/api/v1/vmm.ping").status, 200);
    }
    (call.respond)(Ok(Reply::Done));
    assert_eq!(waiting.receive().status, 204);
}

#[test]
fn connections_of_no_use_make_room_and_those_that_wait_do_not() {
    let fixture = Fixture::new();
    let mut waiting = fixture.client();
    waiting.send("PUT /api/v1/vm.pause HTTP/1.1\r\nHost: x\r\n\r\n");
    let call = fixture.held.recv().unwrap();
    let mut clients: Vec<_> = (0..200).map(|_| fixture.client()).collect();
    assert_eq!(clients.last_mut().unwrap().get("/api/v1/vmm.ping").status, 200);
    assert_eq!(clients[0].0.read(&mut [0]).unwrap_or(0), 0, "the first was closed");
    (call.respond)(Ok(Reply::Done));
    assert_eq!(waiting.receive().status, 204);
}

const PAUSE: &str = "PUT /api/v1/vm.pause HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn a_client_that_leaves_takes_its_interest_along_and_one_that_only_says_no_more_does_not() {
    let fixture = Fixture::new();
    let (mut waiting, mut quick) = (fixture.client(), fixture.client());
    waiting.send(PAUSE);
    waiting.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    let wanted = fixture.held.recv().unwrap();
    // More than there can be connections.
    for _ in 0..200 {
        let mut client = fixture.client();
        client.send(PAUSE);
        let call = fixture.held.recv().unwrap();
        drop(client);
        while !call.interest.is_lost() {
            std::thread::yield_now();
        }
    }
    assert_eq!(quick.get("/api/v1/vmm.ping").status, 200);
    assert!(!wanted.interest.is_lost());
    (wanted.respond)(Ok(Reply::Done));
    assert_eq!(waiting.receive().status, 204);
}

#[test]
fn calls_that_wait_leave_room_for_those_that_look_and_those_that_end_the_machine() {
    let fixture = Fixture::new();
    let mut calls = Vec::new();
    let clients = std::iter::repeat_with(|| {
        let mut client = fixture.client();
        client.send(PAUSE);
        client
    });
    let mut clients: Vec<_> =
        clients.take(64).inspect(|_| calls.push(fixture.held.recv().unwrap())).collect();
    let refused = fixture.client().ask("PUT", "/api/v1/vm.resume", "", "");
    assert_eq!(refused.status, 503);
    assert!(refused.body.contains("try again later"), "{}", refused.body);
    for (method, path, status) in [
        ("GET", "/api/v1/vmm.ping", 200),
        ("PUT", "/api/v1/vm.shutdown", 204),
        ("PUT", "/api/v1/vmm.shutdown", 204),
    ] {
        assert_eq!(fixture.client().ask(method, path, "", "").status, status, "{path}");
    }
    for (call, client) in calls.into_iter().zip(&mut clients) {
        (call.respond)(Ok(Reply::Done));
        assert_eq!(client.receive().status, 204);
    }
    assert_eq!(fixture.client().ask("PUT", "/api/v1/vm.resume", "", "").status, 204);
}

#[test]
fn who_listens_hears_events_and_can_come_back_for_what_it_missed() {
    let fixture = Fixture::new();
    fixture.events.emit("vm", "booted");
    let listen = |query: &str| {
        let mut client = fixture.client();
        client.send(&format!("GET /api/v1/vm.events{query} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(client.receive().head.contains("Content-Type: text/event-stream"));
        client
    };
    let (mut fresh, mut returned) = (listen(""), listen("?after=0"));
    fixture.events.emit("vm", "paused");
    let next = |client: &mut Client| {
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            client.0.read_line(&mut line).unwrap();
        }
        let event: serde_json::Value = serde_json::from_str(&line[6..]).unwrap();
        (event["id"].as_u64().unwrap(), event["event"].as_str().unwrap().to_owned())
    };
    assert_eq!(next(&mut fresh), (2, "paused".into()));
    assert_eq!(next(&mut returned), (1, "booted".into()));
    assert_eq!(next(&mut returned), (2, "paused".into()));
}

#[test]
fn who_listens_and_does_not_read_is_dropped() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.send("GET /api/v1/vm.events HTTP/1.1\r\nHost: x\r\n\r\n");
    client.receive();
    let long = "x".repeat(1 << 16);
    for _ in 0..1000 {
        fixture.events.emit_with("vm", "noise", [("text", long.as_str().into())]);
    }
    // The stream ends, and not all are in it.
    let mut text = String::new();
    client.0.read_to_string(&mut text).unwrap();
    assert!(text.matches("event: noise").count() < 1000);
}

#[test]
fn at_the_end_answers_are_given_and_the_socket_goes() {
    let mut fixture = Fixture::new();
    let (mut waiting, mut listening) = (fixture.client(), fixture.client());
    listening.send("GET /api/v1/vm.events HTTP/1.1\r\nHost: x\r\n\r\n");
    listening.receive();
    waiting.send("PUT /api/v1/vm.pause HTTP/1.1\r\nHost: x\r\n\r\n");
    let call = fixture.held.recv().unwrap();
    fixture.events.emit("vmm", "shutdown");
    (call.respond)(Ok(Reply::Done));
    drop(fixture.server.take());
    assert_eq!(waiting.receive().status, 204);
    let mut text = String::new();
    listening.0.read_to_string(&mut text).unwrap();
    assert!(text.contains("event: shutdown"), "{text}");
    assert!(!fixture.path.exists());
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced_and_others_are_not() {
    let fixture = Fixture::new();
    let config = |path: PathBuf| ApiSocketConfig { path: Some(path), fd: None };
    let of_another = config(fixture.path.clone());
    let error = Listener::open(&of_another).unwrap_err();
    assert!(format!("{error:#}").contains("another process listens on it"), "{error:#}");
    drop(fixture);
    let folder = TempDir::new().unwrap();
    let stale = folder.as_path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    drop(Listener::open(&config(stale.clone())).unwrap());
    assert!(!stale.exists());
    let file = folder.as_path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let error = Listener::open(&config(file.clone())).unwrap_err();
    assert!(format!("{error:#}").contains("is no socket"), "{error:#}");
    assert!(file.exists());
}

#[test]
fn a_switch_is_said_with_its_ports() {
    let read = |body: &str| {
        let route = super::routes::ROUTES.iter().find(|route| route.name == "vm.add-port").unwrap();
        match route.serves {
            super::routes::Serves::Call(super::routes::Takes::Body(_, read)) => read(body.as_bytes()),
            _ => panic!("it takes a body"),
        }
    };
    let body =
        r#"{"id":"up0","kind":"upstream","bus":"rp0","ports":[{"id":"dp0"},{"id":"dp1","bus_reserve":2}]}"#;
    let Ok(Request::AddPort(add)) = read(body) else { panic!("it is a port") };
    assert_eq!((add.port.id.as_str(), add.port.bus.as_deref()), ("up0", Some("rp0")));
    let ports: Vec<_> = add.switch.ports.iter().map(|port| (port.id.as_str(), port.bus_reserve)).collect();
    assert_eq!(ports, [("dp0", 0), ("dp1", 2)]);
    for (body, field) in [
        (r#"{"id":"up0","ports":[{"id":"dp0"},{"id":"dp1","pci_device_id":32}]}"#, "ports[1].pci_device_id"),
        (r#"{"id":"up0","ports":[{"id":"dp0","nothing":1}]}"#, "ports[0].nothing"),
        (r#"{"id":"up0","ports":"dp0"}"#, "ports"),
        (r#"{"id":"up0","bus_reserve":255}"#, "bus_reserve"),
    ] {
        assert_eq!(read(body).unwrap_err().field.as_deref(), Some(field), "{body}");
    }
}
