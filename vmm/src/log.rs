//! The log: one line an event, with the time since start, as text or as a JSON object.
//!
//! Much of what is logged a guest can bring about as often as it likes: each place in the program logs `MOST` lines in
//! `PERIOD` and then only counts, so that no guest fills its host's disk or hides in the noise what else is logged. Who
//! asked for debugging gets everything.
//!
//! Nobody who logs waits for whoever reads the log: see `log/sink.rs`.

mod sink;

use crate::metrics::Sample;
use anyhow::{Context, Result};
use machine::inspect::{Value, json};
use machine::metrics::{Counter, Reading};
use sink::{LOST, Sink};
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

/// The part that limits what it logs itself.
const LIMITED: &str = "vmm::event";
/// Lines that one place logs in [`PERIOD`].
const MOST: u32 = 10;
/// What [`MOST`] counts for.
const PERIOD: Duration = Duration::from_secs(10);

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// A JSON object.
    Json,
}

/// Levels of single crates, the others being as the verbosity says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels(Vec<(String, LevelFilter)>);

impl FromStr for Levels {
    type Err = ();

    /// Reads `crate=level,crate=level`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let level = |pair: &str| {
            let (name, level) = pair.split_once('=').ok_or(())?;
            let known = PARTS.contains(&name).then(|| name.to_owned()).ok_or(())?;
            Ok((known, level.parse().map_err(|_| ())?))
        };
        text.split(',').map(level).collect::<Result<_, _>>().map(Self)
    }
}

/// The crates that log.
pub const PARTS: &[&str] = &["arch", "block", "devices", "hypervisor", "net", "pci", "virtio", "vmm"];

/// What is logged, where and how.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// The file; standard error if not given.
    pub file: Option<PathBuf>,
    /// 0 is warnings, 1 information, 2 debugging, 3 everything.
    pub verbosity: u8,
    /// Levels of single crates.
    pub levels: Levels,
    /// How a line is written.
    pub format: Format,
}

/// Lines left out since the process started.
static LEFT_OUT: Counter = Counter::new();

/// The log's own figures.
pub fn sample() -> Sample {
    let readings = vec![Reading::total("left_out", LEFT_OUT.get()), Reading::total("lost", LOST.get())];
    Sample { key: "_log".to_owned(), kind: "log", labels: Vec::new(), readings }
}

/// Where this process's lines go.
static SINK: OnceLock<Arc<Sink>> = OnceLock::new();

/// Starts the thread that writes the log, if it has to have one. `confine` is called on it. It is not needed while the machine is
/// built, and would be in the way.
///
/// # Errors
/// When the host is out of resources.
pub fn begin(confine: impl FnOnce() + Send + 'static) -> Result<()> {
    SINK.get().map_or(Ok(()), |sink| sink.begin(confine)).context("starting the thread that writes the log")
}

/// Starts logging.
///
/// # Errors
/// When the file cannot be made.
pub fn start(options: LogOptions) -> Result<()> {
    let LogOptions { file: path, verbosity, levels, format } = options;
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let sink = match path {
        Some(path) => {
            let named = || format!("--log-file {}", path.display());
            // A FIFO without a reader is an error instead of a wait.
            let opened = File::options().create(true).append(true).custom_flags(libc::O_NONBLOCK).open(&path);
            Sink::new(opened.with_context(named)?).with_context(named)?
        }
        None => Sink::standard_error().context("logging to standard error")?,
    };
    let sink = Arc::clone(SINK.get_or_init(|| sink));
    let log = Log { sink, format, level, levels, began: Instant::now(), places: Mutex::default() };
    tracing::subscriber::set_global_default(log).context("the log has been started already")
}

/// What tells, by being writable, that the log has room for lines that wait, if anybody has to wait for that.
pub fn room() -> Option<RawFd> {
    SINK.get()?.room()
}

/// Writes of what waits as much as there is room for.
pub fn drain() {
    if let Some(sink) = SINK.get() {
        sink.drain();
    }
}

/// Writes what waits, for as long as whoever reads the log takes some of it every half second. For when the process ends.
pub fn flush() {
    if let Some(sink) = SINK.get() {
        sink.flush();
    }
}

/// Tells the user why the process ends, on standard error, after what the log has. Whoever holds that open, full and unread is not
/// told.
pub fn last_words(text: &str) {
    flush();
    if sink::wait_for_room(libc::STDERR_FILENO) {
        eprintln!("vivarium: {text}");
    }
}

struct Log {
    sink: Arc<Sink>,
    format: Format,
    level: LevelFilter,
    levels: Levels,
    began: Instant,
    places: Mutex<HashMap<Identifier, Place>>,
}

/// What a place in the program has logged of late.
#[derive(Default)]
struct Place {
    /// Number of the period since start.
    period: u64,
    lines: u32,
    left_out: u64,
}

impl Place {
    /// Whether a line may be logged in `period`, and then how many were left out before it.
    fn admit(&mut self, period: u64) -> Option<u64> {
        if period != self.period {
            (self.period, self.lines) = (period, 0);
        }
        if self.lines == MOST {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Log {
    fn admit(&self, metadata: &Metadata<'_>, now: Duration) -> Option<u64> {
        let debugs = *metadata.level() >= Level::DEBUG || self.level_of(metadata) >= LevelFilter::DEBUG;
        if debugs || metadata.target() == LIMITED {
            return Some(0);
        }
        let period = now.as_secs() / PERIOD.as_secs();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = places.entry(metadata.callsite()).or_default().admit(period);
        if admitted.is_none() {
            LEFT_OUT.add_shared(1);
        }
        admitted
    }

    /// The level of the crate that something is logged by.
    fn level_of(&self, metadata: &Metadata<'_>) -> LevelFilter {
        let part = metadata.target().split("::").next().unwrap_or_default();
        let own = self.levels.0.iter().rev().find(|(name, _)| name == part);
        own.map_or(self.level, |(_, level)| *level)
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level_of(metadata)
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.levels.0.iter().map(|(_, level)| *level).chain([self.level]).max()
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let now = self.began.elapsed();
        let Some(left_out) = self.admit(metadata, now) else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = match self.format {
            Format::Text => line(now, metadata, left_out, fields),
            Format::Json => object(now, metadata, left_out, fields),
        };
        self.sink.write(line.as_bytes());
    }

    // Nothing here uses spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// `   1.234567s  WARN place: message key=value`, on one line whatever is in it.
fn line(now: Duration, metadata: &Metadata<'_>, left_out: u64, fields: Fields) -> String {
    let Fields { message, others } = fields;
    let mut text = message;
    for (name, value) in others {
        // Writing to a string cannot fail, here and below.
        let _ = write!(text, " {name}={value}");
    }
    if left_out > 0 {
        let _ = write!(text, " ({left_out} more like this were not logged)");
    }
    let text = text.replace(|c: char| c.is_control(), " ");
    let (seconds, level, place) = (now.as_secs_f64(), metadata.level(), metadata.target());
    format!("{seconds:>11.6}s {level:>5} {place}: {text}\n")
}

/// The same as an object on a line: `time` in seconds, `level`, `target`, `message`, `fields`, and `left_out` if lines like this
/// were.
fn object(now: Duration, metadata: &Metadata<'_>, left_out: u64, fields: Fields) -> String {
    // A clock before that has not been set.
    let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let others = fields.others.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value)));
    let mut object = json!({
        "time": now.as_secs_f64(),
        "unix_time": unix_time.as_secs_f64(),
        "level": metadata.level().as_str(),
        "target": metadata.target(),
        "message": fields.message,
        "fields": others.collect::<Value>(),
    });
    if left_out > 0 {
        object["left_out"] = left_out.into();
    }
    format!("{object}\n")
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.others.push((name, format!("{value:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_logged_without_end_is_counted_instead() {
        let mut place = Place::default();
        let mut admitted = |period| (0..1000).filter_map(|_| place.admit(period)).collect::<Vec<_>>();
        assert_eq!(admitted(0), [0; MOST as usize]);
        let second = admitted(1);
        assert_eq!((second.len(), second[0], second[1]), (MOST as usize, 990, 0));
    }

    fn log(path: &std::path::Path, format: Format, levels: &str) -> Log {
        Log {
            sink: Sink::new(File::options().create(true).append(true).open(path).unwrap()).unwrap(),
            format,
            level: LevelFilter::WARN,
            levels: levels.parse().unwrap(),
            began: Instant::now(),
            places: Mutex::default(),
        }
    }

    #[test]
    fn a_crate_has_its_own_level_and_a_line_can_be_an_object() {
        let path = std::env::temp_dir().join(format!("vivarium-log-json-{}", std::process::id()));
        let log = log(&path, Format::Json, "vmm=info,block=off");
        let sink = Arc::clone(&log.sink);
        tracing::subscriber::with_default(log, || {
            tracing::info!(disk = 3, reason = "\"quoted\"", "shown\nwhole");
            tracing::debug!("not shown");
            tracing::error!(target: "block::image", "not shown");
            tracing::info!(target: "net", "not shown");
        });
        sink.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&object["level"], &object["target"]), (&json!("INFO"), &json!("vmm::log::tests")));
        assert_eq!(object["message"], "shown\nwhole");
        assert_eq!(object["fields"]["disk"], "3");
        for wrong in ["", "vmm", "vmm=loud", "nobody=info", "vmm=info,"] {
            assert!(wrong.parse::<Levels>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_has_the_message_first_and_stays_one_line() {
        let path = std::env::temp_dir().join(format!("vivarium-log-{}", std::process::id()));
        let log = log(&path, Format::Text, "vmm=warn");
        let sink = Arc::clone(&log.sink);
        tracing::subscriber::with_default(log, || {
            for _ in 0..MOST + 5 {
                tracing::warn!(pair = 3, error = %"no\nsuch thing", "a link failed");
            }
            tracing::info!("not shown");
        });
        sink.flush();
        let mut text = String::new();
        File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), MOST as usize, "{text}");
        assert!(
            lines[0].ends_with("s  WARN vmm::log::tests: a link failed pair=3 error=no such thing"),
            "{text}"
        );
    }
}
