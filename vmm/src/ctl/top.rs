//! `vivarium ctl top`: what a machine does at the moment, from its counters, in the terminal.

use super::client::{Client, Refused};
use super::show;
use crate::api::routes::PREFIX;
use anyhow::{Context, Result};
use clap::{Arg, ArgMatches, Command};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Row, Table};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// `top`.
pub(super) fn command() -> Command {
    Command::new("top")
        .about(
            "Show what the machine and its devices do, live; q ends it. With --json, a line for each look.",
        )
        .arg(
            Arg::new("interval")
                .long("interval")
                .value_name("MILLISECONDS")
                .default_value("1000")
                .value_parser(clap::value_parser!(u64).range(100..=3_600_000))
                .help("How often it is looked at."),
        )
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .value_parser(clap::value_parser!(u64).range(1..))
                .help("Write so many times what is seen, and end."),
        )
}

/// What was counted, by device and counter, and when.
struct Counted {
    at: Instant,
    numbers: BTreeMap<String, BTreeMap<String, u64>>,
    state: String,
    cpus: u64,
    memory: u64,
}

/// What one device did in a second. Directions are the guest's: in is what it reads and receives.
struct Rates {
    device: String,
    in_bytes: Option<f64>,
    out_bytes: Option<f64>,
    in_ops: Option<f64>,
    out_ops: Option<f64>,
    /// The greatest of its latencies' 99th percentiles since the machine was booted, in nanoseconds.
    p99_ns: Option<u64>,
    /// Other counters that changed.
    other: BTreeMap<String, f64>,
}

pub(super) fn run(mut client: Client, matches: &ArgMatches, json: bool) -> Result<()> {
    let interval = Duration::from_millis(matches.get_one("interval").copied().unwrap_or(1000));
    let count = matches.get_one::<u64>("count").copied();
    let before = look(&mut client)?;
    let result = if json || count.is_some() {
        write(&mut client, before, interval, count, json)
    } else {
        show(&mut client, before, interval)
    };
    match result {
        Err(error) if has_gone(&error) => Ok(()),
        result => result,
    }
}

/// Whether a look failed as the monitor or the machine has gone: there is no more to be seen then. Without a machine the monitor knows
/// no such path, or does not allow the method.
fn has_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let refused = cause.downcast_ref::<Refused>().map(|refused| refused.status);
        cause.is::<hyper::Error>() || matches!(refused, Some(404 | 405))
    })
}

/// Writes what is seen, `count` times or until the monitor ends.
fn write(
    client: &mut Client,
    mut before: Counted,
    interval: Duration,
    count: Option<u64>,
    json: bool,
) -> Result<()> {
    let mut left = count;
    while left != Some(0) {
        std::thread::sleep(interval);
        let now = look(client)?;
        let rates = rates(&before, &now);
        super::print(&match json {
            true => format!("{}\n", value(&now, now.at.duration_since(before.at), &rates)),
            false => format!("{}\n{}", now.heading(), show::table(&rows(&rates))),
        })?;
        before = now;
        left = left.map(|left| left.saturating_sub(1));
    }
    Ok(())
}

/// Shows what is seen in the terminal, until the user or the monitor ends it.
fn show(client: &mut Client, mut before: Counted, interval: Duration) -> Result<()> {
    anyhow::ensure!(std::io::stdout().is_terminal(), "top: standard output is no terminal; give --count");
    let mut terminal = ratatui::try_init().context("setting up the terminal")?;
    let result = (|| -> Result<()> {
        let mut shown = vec![Vec::new()];
        loop {
            terminal.draw(|frame| draw(frame, &before.heading(), &shown))?;
            let next = before.at + interval;
            while event::poll(next.saturating_duration_since(Instant::now()))? {
                match event::read()? {
                    Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
                        KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                        _ => {}
                    },
                    Event::Resize(..) => break,
                    _ => {}
                }
            }
            if Instant::now() >= next {
                let now = look(client)?;
                shown = rows(&rates(&before, &now));
                before = now;
            }
        }
    })();
    ratatui::restore();
    result
}

fn look(client: &mut Client) -> Result<Counted> {
    let mut get = |name: &str| -> Result<Value> {
        let text = client.ask("GET", &format!("{PREFIX}{name}"), None, Vec::new())?;
        serde_json::from_str(&text.unwrap_or_default()).with_context(|| format!("reading {name}"))
    };
    let info = get("vm.info")?;
    let counters = get("vm.counters")?;
    let numbers = counters.as_object().into_iter().flatten().map(|(device, numbers)| {
        let numbers = numbers.as_object().into_iter().flatten();
        let numbers = numbers.filter_map(|(name, number)| Some((name.clone(), number.as_u64()?))).collect();
        (device.clone(), numbers)
    });
    Ok(Counted {
        at: Instant::now(),
        numbers: numbers.collect(),
        state: info["state"].as_str().unwrap_or("?").to_owned(),
        cpus: info["cpus_actual"].as_u64().unwrap_or(0),
        memory: info["memory_actual_size"].as_u64().unwrap_or(0),
    })
}

impl Counted {
    fn heading(&self) -> String {
        let plural = if self.cpus == 1 { "" } else { "s" };
        format!("{}   {} CPU{plural}   {}", self.state, self.cpus, show::size(self.memory))
    }
}

/// What each device moved and did in a second. One that only has a rate when something happens, such as lost lines of the log, is
/// there then.
fn rates(before: &Counted, now: &Counted) -> Vec<Rates> {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    let mut all = Vec::new();
    for (device, numbers) in &now.numbers {
        let rate = |name: &str| {
            let number = numbers.get(name)?;
            let earlier = before.numbers.get(device).and_then(|earlier| earlier.get(name)).copied();
            Some(number.saturating_sub(earlier.unwrap_or(0)) as f64 / seconds)
        };
        let first = |names: &[&str]| names.iter().find_map(|name| rate(name));
        // A queue counts what the device reads and writes, which is what the guest gives and gets.
        let (inwards, outwards): (&[_], &[_]) = if numbers.contains_key("written_bytes") {
            (&["written_bytes"], &["read_bytes"])
        } else {
            (&["read_bytes", "rx_bytes"], &["write_bytes", "tx_bytes"])
        };
        let named = ["bytes", "read_ops", "write_ops", "frames"];
        let timed = ["_ns", "_min", "_max", "_avg"];
        let other = numbers.keys().filter(|name| {
            !named.iter().any(|end| name.ends_with(end)) && !timed.iter().any(|end| name.ends_with(end))
        });
        let other = other.filter_map(|name| Some((name.clone(), rate(name)?)));
        let rates = Rates {
            device: device.clone(),
            in_bytes: first(inwards),
            out_bytes: first(outwards),
            in_ops: first(&["read_ops", "rx_frames"]),
            out_ops: first(&["write_ops", "tx_frames"]),
            p99_ns: numbers.iter().filter(|(name, _)| name.ends_with("p99_ns")).map(|(_, ns)| *ns).max(),
            other: other.filter(|(_, rate)| *rate >= 0.5).collect(),
        };
        let moves = [rates.in_bytes, rates.out_bytes, rates.in_ops, rates.out_ops];
        if moves.iter().any(Option::is_some) || rates.p99_ns.is_some() || !rates.other.is_empty() {
            all.push(rates);
        }
    }
    all
}

/// A heading, and a row for each device.
fn rows(rates: &[Rates]) -> Vec<Vec<String>> {
    let heading = ["DEVICE", "IN", "OUT", "IN OPS", "OUT OPS", "P99 SINCE BOOT", "OTHER"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    let bytes = |rate: Option<f64>| rate.map_or("-".into(), |rate| format!("{}/s", show::size(rate as u64)));
    let operations = |rate: Option<f64>| rate.map_or("-".into(), |rate| format!("{rate:.0}/s"));
    rows.extend(rates.iter().map(|rates| {
        let other = rates.other.iter().map(|(name, rate)| format!("{name} {rate:.0}/s"));
        vec![
            rates.device.clone(),
            bytes(rates.in_bytes),
            bytes(rates.out_bytes),
            operations(rates.in_ops),
            operations(rates.out_ops),
            rates.p99_ns.map_or("-".into(), show::time),
            other.collect::<Vec<_>>().join("  "),
        ]
    }));
    rows
}

/// The same for programs.
fn value(now: &Counted, interval: Duration, rates: &[Rates]) -> Value {
    let devices = rates.iter().map(|rates| {
        let device = json!({
            "in_bytes_per_second": rates.in_bytes,
            "out_bytes_per_second": rates.out_bytes,
            "in_ops_per_second": rates.in_ops,
            "out_ops_per_second": rates.out_ops,
            "p99_since_boot_ns": rates.p99_ns,
            "other_per_second": rates.other,
        });
        (rates.device.clone(), device)
    });
    json!({
        "state": now.state,
        "cpus": now.cpus,
        "memory_bytes": now.memory,
        "interval_ns": u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX),
        "devices": devices.collect::<serde_json::Map<_, _>>(),
    })
}

fn draw(frame: &mut Frame<'_>, state: &str, rows: &[Vec<String>]) {
    let [top, rest] = Layout::vertical([Constraint::Length(2), Constraint::Fill(1)]).areas(frame.area());
    frame.render_widget(Line::from(state).bold(), top);
    let widths = widths(rows, rest.width);
    let columns = widths.len();
    let mut rows = rows.iter().map(|row| Row::new(row.iter().take(columns).map(String::as_str)));
    let heading = rows.next().unwrap_or_default().style(Style::new().reversed());
    frame.render_widget(Table::new(rows, widths).header(heading), rest);
}

/// How wide the columns are, as many from the left as a terminal of that width has room for. A cut number is none.
fn widths(rows: &[Vec<String>], available: u16) -> Vec<Constraint> {
    let columns = rows.first().map_or(0, Vec::len);
    let mut widths: Vec<Constraint> = Vec::new();
    let mut left = available;
    for column in 0..columns {
        let texts = rows.iter().filter_map(|row| row.get(column));
        let widest = texts.map(|text| text.chars().count()).max().unwrap_or(0) as u16;
        if column + 1 == columns {
            // The others, which are many: as much of them as there is room for.
            if left >= OTHERS_WIDTH {
                widths.push(Constraint::Fill(1));
            }
        } else if widest > left && column > 0 {
            break;
        } else {
            // Rates change from one look to the next; the columns should not move each time.
            let width = if column > 0 { widest.max(RATE_WIDTH).min(left) } else { widest.min(left) };
            widths.push(Constraint::Length(width));
            left = left.saturating_sub(width + 1);
        }
    }
    widths
}

/// The usual width of a rate.
const RATE_WIDTH: u16 = 11;
/// The least width that is of use for what has no column of its own.
const OTHERS_WIDTH: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_terminal_has_fewer_columns_and_no_cut_ones() {
        let row = |texts: [&str; 4]| texts.map(String::from).to_vec();
        let rows =
            [row(["DEVICE", "IN", "OUT", "OTHER"]), row(["_disk0", "119.6 MiB/s", "0 B/s", "kicks 3/s"])];
        let columns = |width| widths(&rows, width).len();
        assert_eq!((columns(80), columns(40), columns(23), columns(5)), (4, 3, 2, 1));
        assert_eq!(widths(&rows, 80)[..2], [Constraint::Length(6), Constraint::Length(11)]);
    }

    /// What a device counted, `seconds` after the start.
    fn counted(start: Instant, seconds: u64, device: &str, numbers: &[(&str, u64)]) -> Counted {
        let numbers = numbers.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
        Counted {
            at: start + Duration::from_secs(seconds),
            numbers: BTreeMap::from([(device.to_owned(), numbers)]),
            state: "Running".into(),
            cpus: 1,
            memory: 1 << 20,
        }
    }

    #[test]
    fn only_a_machine_that_has_gone_is_the_end() {
        let refused = |status| anyhow::Error::new(Refused { status, body: "[]".into() }).context("looking");
        let ends = [404, 405, 408, 500, 503].map(|status| has_gone(&refused(status)));
        assert_eq!(ends, [true, true, false, false, false]);
    }

    #[test]
    fn rates_are_per_second_and_by_device() {
        let start = Instant::now();
        let disk = |seconds, bytes, ops| {
            let numbers =
                [("read_bytes", bytes), ("read_ops", ops), ("kicks", ops), ("latency_p99_ns", 100_663_300)];
            counted(start, seconds, "disk", &numbers)
        };
        let (before, now) = (disk(0, 0, 0), disk(2, 4096, 20));
        let rates = rates(&before, &now);
        assert_eq!(rows(&rates)[1], ["disk", "2 KiB/s", "-", "10/s", "-", "100.7 ms", "kicks 10/s"]);
        let told = value(&now, Duration::from_secs(2), &rates);
        assert_eq!(told["devices"]["disk"]["in_bytes_per_second"], 2048.0);
        assert_eq!(told["devices"]["disk"]["other_per_second"]["kicks"], 10.0);
        assert_eq!((&told["state"], &told["interval_ns"]), (&json!("Running"), &json!(2_000_000_000)));
    }

    #[test]
    fn a_queue_has_the_directions_of_its_device() {
        let start = Instant::now();
        // A disk is read: the device writes into the guest's memory.
        let queue = |seconds, bytes| {
            let numbers =
                [("read_bytes", bytes / 1024), ("written_bytes", bytes), ("requests", bytes / 4096)];
            counted(start, seconds, "disk.queue0", &numbers)
        };
        let rates = rates(&queue(0, 0), &queue(1, 1 << 20));
        assert_eq!(rows(&rates)[1], ["disk.queue0", "1 MiB/s", "1 KiB/s", "-", "-", "-", "requests 256/s"]);
    }
}
