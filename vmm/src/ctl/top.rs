//! `vivarium ctl top`: what a machine does at the moment, from its counters, in the terminal.

use super::client::Client;
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
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// `top`.
pub(super) fn command() -> Command {
    Command::new("top")
        .about("Show what the machine and its devices do, live; q ends it.")
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
                .help("Write so many times what is seen, as text, and end."),
        )
}

/// What was counted, by device and counter, and when.
struct Counted {
    at: Instant,
    numbers: BTreeMap<String, BTreeMap<String, u64>>,
    state: String,
}

pub(super) fn run(mut client: Client, matches: &ArgMatches) -> Result<()> {
    let interval = Duration::from_millis(matches.get_one("interval").copied().unwrap_or(1000));
    let mut before = look(&mut client)?;
    if let Some(count) = matches.get_one::<u64>("count") {
        for _ in 0..*count {
            std::thread::sleep(interval);
            let now = look(&mut client)?;
            super::print(&format!("{}\n{}", now.state, show::table(&rows(&before, &now))))?;
            before = now;
        }
        return Ok(());
    }
    anyhow::ensure!(std::io::stdout().is_terminal(), "top: standard output is no terminal; give --count");
    let mut terminal = ratatui::try_init().context("setting up the terminal")?;
    let result = (|| -> Result<()> {
        let mut shown = vec![Vec::new()];
        loop {
            terminal.draw(|frame| draw(frame, &before.state, &shown))?;
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
                let now = look(&mut client)?;
                shown = rows(&before, &now);
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
    let memory = info["memory_actual_size"].as_u64().unwrap_or(0);
    let cpus = info["config"]["cpus"]["boot_vcpus"].as_u64().unwrap_or(0);
    let state = format!(
        "{}   {cpus} CPU{}   {}",
        info["state"].as_str().unwrap_or("?"),
        if cpus == 1 { "" } else { "s" },
        show::size(memory)
    );
    let numbers = counters.as_object().into_iter().flatten().map(|(device, numbers)| {
        let numbers = numbers.as_object().into_iter().flatten();
        let numbers = numbers.filter_map(|(name, number)| Some((name.clone(), number.as_u64()?))).collect();
        (device.clone(), numbers)
    });
    Ok(Counted { at: Instant::now(), numbers: numbers.collect(), state })
}

/// A heading, and a row for each device: what it moved and did in a second, and how long that took.
fn rows(before: &Counted, now: &Counted) -> Vec<Vec<String>> {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    let heading = ["DEVICE", "IN", "OUT", "IN OPS", "OUT OPS", "P99", "OTHER"].map(String::from).to_vec();
    let mut rows = vec![heading];
    for (device, numbers) in &now.numbers {
        let rate = |name: &str| {
            let number = numbers.get(name)?;
            let earlier = before.numbers.get(device).and_then(|earlier| earlier.get(name)).copied();
            Some(number.saturating_sub(earlier.unwrap_or(0)) as f64 / seconds)
        };
        let first = |names: &[&str]| names.iter().find_map(|name| rate(name));
        let bytes =
            |names: &[&str]| first(names).map_or("-".into(), |rate| format!("{}/s", show::size(rate as u64)));
        let operations = |names: &[&str]| first(names).map_or("-".into(), |rate| format!("{rate:.0}/s"));
        let slowest = numbers.iter().filter(|(name, _)| name.ends_with("p99_ns")).map(|(_, ns)| *ns).max();
        let named = ["bytes", "ops", "frames", "requests"];
        let timed = ["_ns", "_min", "_max", "_avg"];
        let other = numbers.keys().filter(|name| {
            !named.iter().any(|end| name.ends_with(end)) && !timed.iter().any(|end| name.ends_with(end))
        });
        let other = other.filter_map(|name| Some((name, rate(name)?))).filter(|(_, rate)| *rate >= 0.5);
        let other = other.map(|(name, rate)| format!("{name} {rate:.0}/s")).collect::<Vec<_>>().join("  ");
        let row = vec![
            device.clone(),
            bytes(&["read_bytes", "rx_bytes"]),
            bytes(&["write_bytes", "tx_bytes", "written_bytes"]),
            operations(&["read_ops", "rx_frames", "requests"]),
            operations(&["write_ops", "tx_frames"]),
            slowest.map_or("-".into(), |ns| format!("{:.1} µs", ns as f64 / 1000.0)),
            other,
        ];
        // One that only has a rate when something happens, such as lost lines of the log, is shown then.
        if row.iter().skip(1).any(|text| !matches!(text.as_str(), "" | "-")) {
            rows.push(row);
        }
    }
    rows
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

    #[test]
    fn rates_are_per_second_and_by_device() {
        let counted = |at, bytes, ops| Counted {
            at,
            numbers: BTreeMap::from([(
                "disk".to_owned(),
                BTreeMap::from([
                    ("read_bytes".to_owned(), bytes),
                    ("read_ops".to_owned(), ops),
                    ("kicks".to_owned(), ops),
                    ("latency_p99_ns".to_owned(), 1500),
                ]),
            )]),
            state: String::new(),
        };
        let start = Instant::now();
        let rows = rows(&counted(start, 0, 0), &counted(start + Duration::from_secs(2), 4096, 20));
        assert_eq!(rows[1], ["disk", "2 KiB/s", "-", "10/s", "-", "1.5 µs", "kicks 10/s"]);
    }
}
