//! Consoles, and their channels.

use super::{Opened, Seat, Site};
use crate::config::ConsoleConfig;
use crate::machine::platform::console_mode;
use anyhow::{Context, Result};
use devices::host_console::{HostConsole, Mode};
use devices::virtio::console::{Console, Port};
use std::path::Path;

/// Opens a console.
///
/// # Errors
/// When it or a channel of it cannot be had on the host.
pub(super) fn open(site: &Site, config: &ConsoleConfig) -> Result<Opened> {
    // One that is off is there for its channels: the first port of a device is a console in any case.
    let mut host = HostConsole::open(&console_mode(config).unwrap_or(Mode::Null))?;
    host.on_escape(site.escape.clone());
    let terminal = host.path().map(Path::to_owned);
    if let Some(path) = &terminal {
        eprintln!("vivarium: --console is at {}", path.display());
    }
    let mut ports = vec![Port { name: "console".into(), console: true, host }];
    for channel in &config.channels {
        let mode = Mode::Socket(channel.socket.clone().unwrap_or_default());
        let host = HostConsole::open(&mode).with_context(|| format!("--channel name={}", channel.name))?;
        ports.push(Port { name: channel.name.clone(), console: false, host });
    }
    let seat = Seat { terminal, ..Seat::of(config) };
    Ok(seat.with_virtio(Console::new(ports)?))
}
