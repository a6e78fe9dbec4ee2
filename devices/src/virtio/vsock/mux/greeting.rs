//! Programs on the host that want to connect to the guest: they come in at the listener and say which port they want, which the
//! guest is then asked for.

use super::super::connection::{Ports, State};
use super::super::socket;
use super::deadlines::ANSWER;
use super::{MAX_CONNECTIONS, Mux};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// The most connections that wait for a program on the host to say which port it wants.
const MAX_GREETING: usize = 64;
/// The first port given to programs on the host.
pub(in super::super) const FIRST_PORT: u32 = 1 << 30;
/// Longest first line of a program on the host.
const GREETING: usize = 32;

impl Mux {
    /// Takes the programs that wait at the listener, as far as there is room.
    pub(super) fn accept(&mut self) {
        while self.accepting && self.has_room() {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_err() {
                        continue;
                    }
                    let Some(index) = self.insert(stream, State::Greeting, Ports::default()) else {
                        continue;
                    };
                    self.greeting = self.greeting.saturating_add(1);
                    let deadline = self.after(ANSWER);
                    self.set_deadline(index, Some(deadline));
                    self.greet(index);
                    self.wake(index);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Also when the host is out of descriptors; the next program that comes wakes this again.
                Err(_) => self.accepting = false,
            }
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.has_slot() && self.greeting < MAX_GREETING
    }

    /// Reads which port a program wants, once it has said so, and asks the guest.
    pub(super) fn greet(&mut self, index: usize) {
        let Some(connection) = self.get_mut(index) else { return };
        let guest = match read_greeting(&mut connection.stream) {
            Ok(Some(port)) => port,
            Ok(None) => return,
            Err(_) => {
                self.counters.refused = self.counters.refused.wrapping_add(1);
                return self.remove(index);
            }
        };
        let Some(ports) = self.assign(guest) else { return self.remove(index) };
        self.by_ports.insert(ports, index);
        self.greeting = self.greeting.saturating_sub(1);
        let deadline = self.after(ANSWER);
        self.set_deadline(index, Some(deadline));
        if let Some(connection) = self.get_mut(index) {
            connection.ports = ports;
            connection.state = State::Requested;
            connection.tidings.request = true;
        }
    }

    /// A port of the host that is free.
    fn assign(&mut self, guest: u32) -> Option<Ports> {
        for _ in 0..=MAX_CONNECTIONS {
            let ports = Ports { guest, host: self.next_port };
            // The last number stands for any port.
            self.next_port = match self.next_port.saturating_add(1) {
                u32::MAX => FIRST_PORT,
                next => next,
            };
            if !self.by_ports.contains_key(&ports) {
                return Some(ports);
            }
        }
        None
    }

    /// The guest accepts a connection of a program on the host, which is told. `false`: it cannot be.
    pub(super) fn accepted(&mut self, index: usize) -> bool {
        self.set_deadline(index, None);
        let Some(connection) = self.get_mut(index) else { return false };
        connection.state = State::Established;
        connection.readable = true;
        let line = format!("OK {}\n", connection.ports.host);
        let told = connection.stream.write(line.as_bytes()).is_ok_and(|count| count == line.len());
        self.counters.opened_by_host = self.counters.opened_by_host.wrapping_add(told.into());
        told
    }
}

/// Reads the line `CONNECT <port>`, and nothing after it. `None`: it is not all there yet.
fn read_greeting(stream: &mut UnixStream) -> io::Result<Option<u32>> {
    let mut buffer = [0; GREETING];
    let count = match socket::peek(stream, &mut buffer) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => count,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let there = buffer.get(..count).unwrap_or_default();
    let Some(end) = there.iter().position(|byte| *byte == b'\n') else {
        return if count < GREETING { Ok(None) } else { Err(io::ErrorKind::InvalidData.into()) };
    };
    let line = buffer.get_mut(..=end).unwrap_or_default();
    stream.read_exact(line)?;
    let line = std::str::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next().map(str::parse), words.next()) {
        (Some(word), Some(Ok(port)), None) if word.eq_ignore_ascii_case("connect") => Ok(Some(port)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
