//! Requests and their answers (virtio 1.4, 5.23.6). All fields are little-endian.

use super::clocks::{Alarm, Clocks};

/// The longest request, and the longest answer, in bytes.
pub(super) const LONGEST: usize = 24;
const HEAD: usize = 8;

const READ: u16 = 0x0001;
const READ_CROSS: u16 = 0x0002;
const CONFIG: u16 = 0x1000;
const CLOCK_CAPABILITIES: u16 = 0x1001;
const CROSS_CAPABILITIES: u16 = 0x1002;
const READ_ALARM: u16 = 0x1003;
const SET_ALARM: u16 = 0x1004;
const SET_ALARM_ENABLED: u16 = 0x1005;

/// The message about an alarm.
const NOTIFY_ALARM: u16 = 0x2000;
/// Its size in bytes.
pub(super) const NOTIFICATION_SIZE: usize = 16;

const FLAG_ALARM_CAPABILITY: u8 = 1 << 0;
const FLAG_ALARM_ENABLED: u8 = 1 << 0;

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    NotSupported = 2,
    NoSuchClock = 3,
    Invalid = 4,
    Failed = 5,
}

/// An answer.
pub(super) struct Answer {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Answer {
    /// Its bytes. The first is the status.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// An answer of success with these fields after its head.
    fn done(fields: &[u8]) -> Self {
        let mut bytes = [0; LONGEST];
        bytes.iter_mut().skip(HEAD).zip(fields).for_each(|(to, from)| *to = *from);
        Self { bytes, length: HEAD.saturating_add(fields.len()).min(LONGEST) }
    }

    fn refused(status: Status) -> Self {
        let mut answer = Self::done(&[]);
        if let Some(first) = answer.bytes.first_mut() {
            *first = status as u8;
        }
        answer
    }
}

/// What the driver may ask for.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// Alarms were negotiated.
    pub(super) alarms: bool,
    /// The room for the answer, in bytes.
    pub(super) room: u64,
}

/// Does what a request says.
pub(super) fn serve(request: &[u8], clocks: &mut Clocks, terms: Terms) -> Answer {
    execute(request, clocks, terms).unwrap_or_else(Answer::refused)
}

fn execute(request: &[u8], clocks: &mut Clocks, terms: Terms) -> Result<Answer, Status> {
    let kind = u16_at(request, 0)?;
    let (needs, gives) = match kind {
        CONFIG => (8, 16),
        READ | CLOCK_CAPABILITIES | CROSS_CAPABILITIES => (16, 16),
        READ_CROSS => (16, 24),
        READ_ALARM if terms.alarms => (16, 24),
        SET_ALARM if terms.alarms => (24, 8),
        SET_ALARM_ENABLED if terms.alarms => (16, 8),
        _ => return Err(Status::NotSupported),
    };
    if request.len() < needs || terms.room < gives {
        return Err(Status::Invalid);
    }
    if kind == CONFIG {
        return Ok(Answer::done(&padded(&clocks.count().to_le_bytes())));
    }
    let id = u16_at(request, if kind == SET_ALARM { 16 } else { 8 })?;
    let clock = clocks.kind(id).ok_or(Status::NoSuchClock)?;
    match kind {
        READ => clocks.now(clock).map(|now| Answer::done(&now.to_le_bytes())).ok_or(Status::Failed),
        CLOCK_CAPABILITIES => {
            let flags = if terms.alarms { FLAG_ALARM_CAPABILITY } else { 0 };
            Ok(Answer::done(&padded(&[clock.number(), 0, flags])))
        }
        // How the guest's counter relates to the host's is not known here.
        CROSS_CAPABILITIES => Ok(Answer::done(&[0; 8])),
        READ_CROSS => Err(Status::NotSupported),
        READ_ALARM => {
            let Alarm { time, enabled, .. } = *clocks.alarm(id).ok_or(Status::NoSuchClock)?;
            let mut fields = [0; 16];
            let flags = if enabled { FLAG_ALARM_ENABLED } else { 0 };
            fields
                .iter_mut()
                .zip(time.to_le_bytes().into_iter().chain([flags]))
                .for_each(|(to, from)| *to = from);
            Ok(Answer::done(&fields))
        }
        _ => {
            let (time, flags) = if kind == SET_ALARM {
                (Some(u64_at(request, 8)?), byte_at(request, 18)?)
            } else {
                (None, byte_at(request, 10)?)
            };
            if flags & !FLAG_ALARM_ENABLED != 0 {
                return Err(Status::Invalid);
            }
            let alarm = clocks.alarm(id).ok_or(Status::NoSuchClock)?;
            alarm.set(time.unwrap_or(alarm.time), flags & FLAG_ALARM_ENABLED != 0);
            Ok(Answer::done(&[]))
        }
    }
}

/// The message that the alarm of a clock has come.
pub(super) fn notification(id: u16) -> [u8; NOTIFICATION_SIZE] {
    let ([t0, t1], [c0, c1]) = (NOTIFY_ALARM.to_le_bytes(), id.to_le_bytes());
    [t0, t1, 0, 0, 0, 0, 0, 0, c0, c1, 0, 0, 0, 0, 0, 0]
}

/// The fields of an answer that are followed by what is reserved.
fn padded(fields: &[u8]) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = *from);
    bytes
}

fn byte_at(request: &[u8], at: usize) -> Result<u8, Status> {
    request.get(at).copied().ok_or(Status::Invalid)
}

fn u16_at(request: &[u8], at: usize) -> Result<u16, Status> {
    let bytes = request.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map(|bytes| u16::from_le_bytes(*bytes)).ok_or(Status::Invalid)
}

fn u64_at(request: &[u8], at: usize) -> Result<u64, Status> {
    let bytes = request.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(Status::Invalid)
}
