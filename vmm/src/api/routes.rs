//! The API's paths: one line each says the method, what is asked, the body and the answer. Serving, the OpenAPI document and
//! `vivarium ctl` go by it.

use super::bodies::{addition, config, port, read};
use super::request::{
    Coredump, Inspect, RemoveDevice, Request, Resize, ResizeDisk, ResizeZone, SetAffinity, SetLink,
    SetRateLimit, SetThrottle,
};
use crate::config::{
    BalloonConfig, ConsoleConfig, DiskConfig, IvshmemConfig, MemConfig, NetConfig, PmemConfig, PvpanicConfig,
    RngConfig, RtcConfig, VsockConfig, WatchdogConfig,
};

/// What all paths start with, but those that others define.
pub const PREFIX: &str = "/api/v1/";

/// One path and method.
pub struct Route {
    /// `GET` or `PUT`.
    pub method: &'static str,
    /// The path, behind [`PREFIX`].
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// How it is served.
    pub serves: Serves,
    /// What it answers.
    pub answer: Answer,
    /// The media type of an answer that is text.
    pub text_type: &'static str,
}

/// How a path is served.
pub enum Serves {
    /// By a call of the machine thread.
    Call(Takes),
    /// With events as they happen.
    Events,
    /// With the OpenAPI document.
    OpenApi,
}

/// What a verb takes, and how that becomes a request.
pub enum Takes {
    /// Nothing.
    Nothing(fn() -> Request),
    /// A JSON body, of the type that is named.
    Body(&'static str, fn(&[u8]) -> Result<Request, Refusal>),
    /// The path of a part of the live tree, as a query.
    Path(fn(String) -> Request),
    /// A body that is not looked at: the verb is known, and not supported.
    Unsupported(&'static str),
}

/// What a verb answers when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 204.
    Nothing,
    /// 200 and JSON of the type that is named.
    Json(&'static str),
    /// 200 and JSON, or 204 when the machine does not run.
    JsonOrNothing(&'static str),
    /// 200 and text.
    Text,
    /// 501.
    NotSupported,
}

/// Why a request is refused before it reaches the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: u16,
    /// What is wrong.
    pub message: String,
    /// The field of the body that is at fault.
    pub field: Option<String>,
    /// The method that the path has instead.
    pub allow: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), field: None, allow: None }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }
}

const fn put(name: &'static str, summary: &'static str, request: fn() -> Request) -> Route {
    Route {
        method: "PUT",
        name,
        summary,
        serves: Serves::Call(Takes::Nothing(request)),
        answer: Answer::Nothing,
        text_type: "",
    }
}

const fn put_body(
    name: &'static str,
    summary: &'static str,
    body: &'static str,
    read: fn(&[u8]) -> Result<Request, Refusal>,
    answer: Answer,
) -> Route {
    Route { serves: Serves::Call(Takes::Body(body, read)), answer, ..put(name, summary, || Request::Ping) }
}

const fn get(name: &'static str, summary: &'static str, serves: Serves, answer: Answer) -> Route {
    Route { method: "GET", serves, answer, ..put(name, summary, || Request::Ping) }
}

const fn unsupported(name: &'static str, summary: &'static str) -> Route {
    Route {
        serves: Serves::Call(Takes::Unsupported(name)),
        answer: Answer::NotSupported,
        ..put(name, summary, || Request::Ping)
    }
}

const ADDED: Answer = Answer::JsonOrNothing("PciDeviceInfo");

/// Every path.
pub const ROUTES: &[Route] = &[
    get(
        "vmm.ping",
        "Who is there: version and process",
        Serves::Call(Takes::Nothing(|| Request::Ping)),
        Answer::Json("VmmPingResponse"),
    ),
    put("vmm.shutdown", "End the process", || Request::VmmShutdown),
    put_body(
        "vm.create",
        "Create the machine, without booting it",
        "VmConfig",
        |body| Ok(Request::Create(Box::new(config(body)?))),
        Answer::Nothing,
    ),
    put("vm.delete", "Shut the machine down and forget its configuration", || Request::Delete),
    put("vm.boot", "Boot the machine", || Request::Boot),
    put("vm.pause", "Stop its CPUs and devices", || Request::Pause),
    put("vm.resume", "Go on after a pause", || Request::Resume),
    put("vm.shutdown", "End the machine, and keep its configuration", || Request::Shutdown),
    put("vm.reboot", "Restart the machine", || Request::Reboot),
    put("vm.power-button", "Press the power button", || Request::PowerButton),
    put("vm.nmi", "Send a non-maskable interrupt to every CPU", || Request::Nmi),
    get(
        "vm.info",
        "Configuration, state and devices",
        Serves::Call(Takes::Nothing(|| Request::Info)),
        Answer::Json("VmInfo"),
    ),
    get(
        "vm.counters",
        "What devices counted",
        Serves::Call(Takes::Nothing(|| Request::Counters)),
        Answer::Json("VmCounters"),
    ),
    get(
        "vm.inspect",
        "The live tree of the machine, or the part of it at a path",
        Serves::Call(Takes::Path(|path| Request::Inspect(Inspect { path }))),
        Answer::Json("Tree"),
    ),
    get(
        "vm.events",
        "Events as they happen, as server-sent events whose data are JSON: id, timestamp (since the process started), unix_time, source, event, properties",
        Serves::Events,
        Answer::Text,
    ),
    put_body(
        "vm.coredump",
        "Write the memory and registers of a paused machine to a file",
        "Coredump",
        |body| Ok(Request::Coredump(read::<Coredump>(body)?)),
        Answer::Nothing,
    ),
    put_body(
        "vm.resize",
        "Change the number of CPUs, the memory or the balloon",
        "Resize",
        |body| Ok(Request::Resize(read::<Resize>(body)?)),
        Answer::Nothing,
    ),
    put_body(
        "vm.resize-disk",
        "Change the size of a disk",
        "ResizeDisk",
        |body| Ok(Request::ResizeDisk(read::<ResizeDisk>(body)?)),
        Answer::Nothing,
    ),
    put_body(
        "vm.resize-zone",
        "Change the size of a memory zone",
        "ResizeZone",
        |body| Ok(Request::ResizeZone(read::<ResizeZone>(body)?)),
        Answer::Nothing,
    ),
    put_body("vm.add-disk", "Add a disk", "AddDisk", |body| addition::<DiskConfig>(body, "disks"), ADDED),
    put_body(
        "vm.add-net",
        "Add a network interface; file descriptors that come with the request are its tap's queues",
        "AddNet",
        |body| addition::<NetConfig>(body, "net"),
        ADDED,
    ),
    put_body(
        "vm.add-pmem",
        "Add persistent memory",
        "AddPmem",
        |body| addition::<PmemConfig>(body, "pmem"),
        ADDED,
    ),
    put_body(
        "vm.add-vsock",
        "Add the socket device",
        "AddVsock",
        |body| addition::<VsockConfig>(body, "vsock"),
        ADDED,
    ),
    put_body(
        "vm.add-console",
        "Add a console, with channels",
        "AddConsole",
        |body| addition::<ConsoleConfig>(body, "console"),
        ADDED,
    ),
    put_body(
        "vm.add-rng",
        "Add a source of entropy",
        "AddRng",
        |body| addition::<RngConfig>(body, "rng"),
        ADDED,
    ),
    put_body(
        "vm.add-rtc",
        "Add the real-time clock",
        "AddRtc",
        |body| addition::<RtcConfig>(body, "rtc"),
        ADDED,
    ),
    put_body(
        "vm.add-balloon",
        "Add the memory balloon",
        "AddBalloon",
        |body| addition::<BalloonConfig>(body, "balloon"),
        ADDED,
    ),
    put_body(
        "vm.add-mem",
        "Add a device by which memory comes and goes",
        "AddMem",
        |body| addition::<MemConfig>(body, "mem"),
        ADDED,
    ),
    put_body(
        "vm.add-ivshmem",
        "Add memory shared with others",
        "AddIvshmem",
        |body| addition::<IvshmemConfig>(body, "ivshmem"),
        ADDED,
    ),
    put_body(
        "vm.add-watchdog",
        "Add a watchdog",
        "AddWatchdog",
        |body| addition::<WatchdogConfig>(body, "watchdog"),
        ADDED,
    ),
    put_body(
        "vm.add-pvpanic",
        "Add the device by which the guest reports its panics",
        "AddPvpanic",
        |body| addition::<PvpanicConfig>(body, "pvpanic"),
        ADDED,
    ),
    put_body(
        "vm.add-port",
        "Add a PCI Express root port, or a switch: an upstream port with its downstream ports",
        "AddPort",
        port,
        ADDED,
    ),
    put_body(
        "vm.remove-device",
        "Remove a device, once the guest has released it",
        "RemoveDevice",
        |body| Ok(Request::RemoveDevice(read::<RemoveDevice>(body)?)),
        Answer::Nothing,
    ),
    put_body(
        "vm.set-rate-limit",
        "Change the rate limits of a disk, a network interface or a rate limit group",
        "SetRateLimit",
        |body| Ok(Request::SetRateLimit(Box::new(read::<SetRateLimit>(body)?))),
        Answer::Nothing,
    ),
    put_body(
        "vm.set-link",
        "Plug the cable of a network interface in or out",
        "SetLink",
        |body| Ok(Request::SetLink(read::<SetLink>(body)?)),
        Answer::Nothing,
    ),
    put_body(
        "vm.set-throttle",
        "Hold the CPUs for a share of the time",
        "SetThrottle",
        |body| Ok(Request::SetThrottle(read::<SetThrottle>(body)?)),
        Answer::Nothing,
    ),
    put_body(
        "vm.set-affinity",
        "Choose the host CPUs that CPUs and queues run on",
        "SetAffinity",
        |body| Ok(Request::SetAffinity(read::<SetAffinity>(body)?)),
        Answer::Nothing,
    ),
    unsupported("vm.add-device", "Add a device of the host (VFIO)"),
    unsupported("vm.add-fs", "Add a shared file system (virtio-fs)"),
    unsupported("vm.add-vdpa", "Add a vDPA device"),
    unsupported("vm.add-user-device", "Add a device of another process (vfio-user)"),
    unsupported("vm.add-generic-vhost-user", "Add a vhost-user device of any kind"),
    unsupported("vm.snapshot", "Save the machine"),
    unsupported("vm.restore", "Make a machine that was saved"),
    unsupported("vm.send-migration", "Move the machine to another process"),
    unsupported("vm.receive-migration", "Take over the machine of another process"),
    Route {
        text_type: crate::metrics::PROMETHEUS_TYPE,
        ..get(
            METRICS,
            "Counters, in the text format of Prometheus",
            Serves::Call(Takes::Nothing(|| Request::Metrics)),
            Answer::Text,
        )
    },
    get("openapi.json", "This interface, as an OpenAPI document", Serves::OpenApi, Answer::Json("OpenApi")),
];

/// Where Prometheus looks. Its path has no prefix.
pub const METRICS: &str = "/metrics";

impl Route {
    /// The whole path.
    pub fn path(&self) -> String {
        if self.name.starts_with('/') { self.name.into() } else { format!("{PREFIX}{}", self.name) }
    }

    /// Reads what the verb takes.
    ///
    /// # Errors
    /// Says what is wrong, and names the field.
    pub fn read(&self, query: Option<&str>, body: &[u8]) -> Result<Request, Refusal> {
        let Serves::Call(takes) = &self.serves else { return Err(Refusal::new(404, "takes no request")) };
        if !matches!(takes, Takes::Path(_)) && query.is_some_and(|query| !query.is_empty()) {
            return Err(Refusal::bad(format!("{} takes nothing after \"?\"", self.name)));
        }
        match takes {
            Takes::Nothing(request) => no_body(body).map(|()| request()),
            Takes::Body(_, read) => read(body),
            Takes::Path(request) => {
                no_body(body)?;
                Ok(request(parameter(query, "path")?.unwrap_or_default()))
            }
            Takes::Unsupported(name) => Ok(Request::Unsupported(name)),
        }
    }
}

/// Finds what serves a method and path.
///
/// # Errors
/// 404 for an unknown path, 405 for one that has another method.
pub fn find(method: &str, path: &str) -> Result<&'static Route, Refusal> {
    let name = path.strip_prefix(PREFIX).unwrap_or(if path == METRICS { METRICS } else { "" });
    let Some(route) = ROUTES.iter().find(|route| route.name == name) else {
        return Err(Refusal::new(
            404,
            format!("{path}: there is no such path; {PREFIX}openapi.json lists them"),
        ));
    };
    if route.method != method {
        let message = format!("{path} has no method {method}; use {}", route.method);
        return Err(Refusal { allow: Some(route.method), ..Refusal::new(405, message) });
    }
    Ok(route)
}

/// Checks that a body, if its type is told, is JSON.
///
/// # Errors
/// 415.
pub fn check_content_type(content_type: Option<&str>) -> Result<(), Refusal> {
    let Some(content_type) = content_type else { return Ok(()) };
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Refusal::new(415, format!("Content-Type {content_type}: send application/json")))
}

pub(super) fn no_body(body: &[u8]) -> Result<(), Refusal> {
    if body.is_empty() { Ok(()) } else { Err(Refusal::bad("takes no body")) }
}

/// The number of the last event that a listener has, from the query or from the header of one that comes back.
pub(super) fn last_event(query: Option<&str>, header: Option<&str>) -> Result<Option<u64>, Refusal> {
    let asked = match parameter(query, "after")? {
        Some(after) => Some(after),
        None => header.map(str::to_owned),
    };
    let number = asked.map(|text| text.parse().map_err(|_| text));
    number.transpose().map_err(|text| Refusal {
        field: Some("after".into()),
        ..Refusal::bad(format!("after={text}: is not the number of an event"))
    })
}

/// The one parameter that a query may have.
fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, Refusal> {
    let mut found = None;
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if key != name || found.is_some() {
            return Err(Refusal {
                field: Some(key.clone().into_owned()),
                ..Refusal::bad(format!("{key}: the query can have one {name}=..., and nothing else"))
            });
        }
        found = Some(value.into_owned());
    }
    Ok(found)
}
