//! The log: one line an event, with the time since start.
//!
//! Much of what is logged a guest can bring about as often as it likes: each place in the program logs [`MOST`] lines in
//! [`PERIOD`] and then only counts, so that no guest fills its host's disk or hides in the noise what else is logged. Who
//! asked for debugging gets everything.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

/// Lines that one place logs in [`PERIOD`].
const MOST: u32 = 10;
/// What [`MOST`] counts for.
const PERIOD: Duration = Duration::from_secs(10);

/// Starts logging to `path`, or to standard error. `verbosity` 0 is warnings, 1 information, 2 debugging, 3
/// everything.
///
/// # Errors
/// When the file cannot be made.
pub fn start(path: Option<&Path>, verbosity: u8) -> Result<()> {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let file = match path {
        Some(path) => {
            let file = File::options().create(true).append(true).open(path);
            Some(file.with_context(|| format!("--log-file {}", path.display()))?)
        }
        None => None,
    };
    let log = Log { file, level, began: Instant::now(), places: Mutex::default() };
    tracing::subscriber::set_global_default(log).context("the log has been started already")
}

struct Log {
    /// Standard error if there is none.
    file: Option<File>,
    level: LevelFilter,
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
        if *metadata.level() >= Level::DEBUG || self.level >= LevelFilter::DEBUG {
            return Some(0);
        }
        let period = now.as_secs() / PERIOD.as_secs();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(metadata.callsite()).or_default().admit(period)
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let now = self.began.elapsed();
        let Some(left_out) = self.admit(metadata, now) else { return };
        let line = line(now, metadata, left_out, |visitor| event.record(visitor));
        // A log that cannot be written is lost: no guest may end the machine by having something logged.
        let _ = match &self.file {
            Some(file) => { file }.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
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
fn line(now: Duration, metadata: &Metadata<'_>, left_out: u64, record: impl FnOnce(&mut Fields)) -> String {
    let mut fields = Fields::default();
    record(&mut fields);
    let Fields { message, others } = fields;
    let mut text = format!("{message}{others}");
    if left_out > 0 {
        // Writing to a string cannot fail, here and below.
        let _ = write!(text, " ({left_out} more like this were not logged)");
    }
    let text = text.replace(|c: char| c.is_control(), " ");
    let (seconds, level, place) = (now.as_secs_f64(), metadata.level(), metadata.target());
    format!("{seconds:>11.6}s {level:>5} {place}: {text}\n")
}

#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.others, " {name}={value:?}"),
        };
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

    #[test]
    fn a_line_has_the_message_first_and_stays_one_line() {
        let path = std::env::temp_dir().join(format!("vivarium-log-{}", std::process::id()));
        let file = File::options().create(true).append(true).open(&path).unwrap();
        let log = Log {
            file: Some(file),
            level: LevelFilter::WARN,
            began: Instant::now(),
            places: Mutex::default(),
        };
        tracing::subscriber::with_default(log, || {
            for _ in 0..MOST + 5 {
                tracing::warn!(pair = 3, error = %"no\nsuch thing", "a link failed");
            }
            tracing::info!("not shown");
        });
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
