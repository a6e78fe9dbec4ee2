//! CMOS real-time clock (Motorola MC146818A) with battery-backed memory, at ports 0x70 and 0x71.
//!
//! The time is the host's wall clock in UTC plus an offset, which moves when the guest sets the clock. The alarm,
//! periodic and update-ended flags in register C tell what happened since it was last read, and those that register B
//! enables raise the interrupt until then.
//!
//! The device has no timer of its own. It says when it wants to be looked at ([`Rtc::deadline`]), and that time comes
//! nearer only with a write ([`Effect::Deadline`]) or when it is looked at ([`Rtc::look`]). A guest that does not answer a
//! fast periodic interrupt has it looked at ever less often.
//!
//! | index | register |
//! |---|---|
//! | 0, 2, 4 | seconds, minutes, hours |
//! | 1, 3, 5 | the same of the alarm; 0xc0 and above matches any |
//! | 6 to 9 | day of week (1 is Sunday), day of month, month, year |
//! | 0x0a | A: bit 7 an update is near, bits 0-3 periodic rate |
//! | 0x0b | B: bit 7 stops updates, bits 6-4 interrupt enables, bit 2 binary, bit 1 24 hours |
//! | 0x0c | C: bit 7 interrupt, bits 6-4 periodic, alarm and update-ended flags; reading clears |
//! | 0x0d | D: bit 7 the battery is good |
//! | 0x32 | century |
//! | others below 0x80 | memory |

use crate::platform::{PlatformDevice, read_bytes, write_bytes};
use machine::bus::{BusDevice, Range};
use machine::clock::Clock;
use machine::effect::Effect;
use machine::interrupt::InterruptLine;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

mod calendar;
use calendar::DateTime;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// 32768 Hz time base, 1024 Hz periodic rate.
const A_POWER_ON: u8 = 0x26;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
const B_UPDATE_ENDED: u8 = C_UPDATE_ENDED;
const C_INTERRUPT: u8 = 1 << 7;
const C_PERIODIC: u8 = 1 << 6;
const C_ALARM: u8 = 1 << 5;
const C_UPDATE_ENDED: u8 = 1 << 4;
/// The flags, and in register B what lets each of them interrupt.
const C_FLAGS: u8 = C_PERIODIC | C_ALARM | C_UPDATE_ENDED;
const D_VALID: u8 = 1 << 7;

const PM: u8 = 1 << 7;
const ANY: u8 = 0xc0;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// How long before an update register A announces it (MC146818A, table 5).
const UPDATE_WARNING_NS: u32 = 244_000;
const MEMORY: usize = 128;
/// Up to the two-to-this-th period is looked at next when the guest does not answer.
const MOST_SKIPPED: u32 = 7;
/// How long is waited for an alarm at most before the time is looked at again: the host's clock may be set.
const LONGEST_WAIT_NS: u64 = 60 * NS_PER_SECOND;

/// The clock.
pub struct Rtc {
    clock: Arc<dyn Clock>,
    line: InterruptLine,
    /// The guest's time less the host's, in seconds.
    offset: i64,
    /// The time as the guest sees and sets it while updates are stopped.
    stopped: Option<DateTime>,
    index: u8,
    a: u8,
    b: u8,
    alarm: [u8; 3],
    /// The flags of register C, complete up to `seen`.
    flags: u8,
    /// The guest's time in seconds, and monotonic nanoseconds.
    seen: (i64, u64),
    /// How often in a row it was looked at, and the guest had not answered the interrupt.
    unanswered: u32,
    memory: [u8; MEMORY],
}

impl Rtc {
    /// Where the ports are.
    pub const PORTS: Range = Range { start: 0x70, size: 2 };

    /// A clock that shows `clock`'s wall time. `line` is its interrupt, on a PC number 8, an edge.
    pub fn new(clock: Arc<dyn Clock>, line: InterruptLine) -> Self {
        let mut rtc = Self {
            clock,
            line,
            offset: 0,
            stopped: None,
            index: 0,
            a: A_POWER_ON,
            b: B_24_HOURS,
            alarm: [0; 3],
            flags: 0,
            seen: (0, 0),
            unanswered: 0,
            memory: [0; MEMORY],
        };
        rtc.seen = (rtc.seconds(), rtc.clock.monotonic_ns());
        rtc
    }

    /// When it wants to be looked at, in the clock's monotonic nanoseconds: when an enabled interrupt is due.
    pub fn deadline(&self) -> Option<u64> {
        let (last, last_ns) = self.seen;
        let mut due: Option<u64> = None;
        let mut add = |at: u64| due = Some(due.map_or(at, |due| due.min(at)));
        if self.b & C_PERIODIC != 0
            && let Some(period) = self.period_ns()
        {
            let skipped = 1_u64.wrapping_shl(self.unanswered.min(MOST_SKIPPED));
            let periods = last_ns.checked_div(period).unwrap_or_default().saturating_add(skipped);
            add(periods.saturating_mul(period));
        }
        if self.stopped.is_none() {
            if self.b & C_UPDATE_ENDED != 0 {
                add(self.begin_of(last.saturating_add(1)));
            }
            if self.b & C_ALARM != 0
                && let Some(alarm) = self.next_alarm(last)
            {
                add(self.begin_of(alarm));
            }
        }
        due
    }

    /// Raises the interrupt if it is due.
    pub fn look(&mut self) {
        self.unanswered = if self.interrupts() != 0 { self.unanswered.saturating_add(1) } else { 0 };
        self.note();
        self.update();
    }

    /// When a second of the guest's time begins, or some time before, in the clock's monotonic nanoseconds.
    fn begin_of(&self, second: i64) -> u64 {
        let wall = self.clock.wall();
        let whole = u64::try_from(second.saturating_sub(self.seconds())).unwrap_or(0);
        let wait = whole.saturating_mul(NS_PER_SECOND).saturating_sub(u64::from(wall.subsec_nanos()));
        self.clock.monotonic_ns().saturating_add(wait.min(LONGEST_WAIT_NS))
    }

    /// The flags that interrupt.
    fn interrupts(&self) -> u8 {
        self.flags & self.b & C_FLAGS
    }

    fn update(&self) {
        self.line.set(self.interrupts() != 0);
    }

    /// The guest's time, seconds since 1970.
    fn seconds(&self) -> i64 {
        let host = i64::try_from(self.clock.wall().as_secs()).unwrap_or(i64::MAX);
        host.saturating_add(self.offset)
    }

    fn now(&self) -> DateTime {
        self.stopped.unwrap_or_else(|| DateTime::from_unix(self.seconds()))
    }

    fn read_register(&mut self) -> u8 {
        let now = self.now();
        match self.index {
            SECONDS => self.encode(now.second),
            MINUTES => self.encode(now.minute),
            HOURS => self.encode_hour(now.hour),
            DAY_OF_WEEK => self.encode(now.day_of_week()),
            DAY_OF_MONTH => self.encode(now.day),
            MONTH => self.encode(now.month),
            YEAR => self.encode(now.year_of_century()),
            CENTURY => self.encode(now.century()),
            SECONDS_ALARM => self.alarm[0],
            MINUTES_ALARM => self.alarm[1],
            HOURS_ALARM => self.alarm[2],
            REGISTER_A => {
                let near = self.clock.wall().subsec_nanos() >= 1_000_000_000 - UPDATE_WARNING_NS;
                self.a | if near && self.stopped.is_none() { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            REGISTER_B => self.b,
            REGISTER_C => {
                self.note();
                self.unanswered = 0;
                let interrupt = if self.interrupts() != 0 { C_INTERRUPT } else { 0 };
                std::mem::take(&mut self.flags) | interrupt
            }
            REGISTER_D => D_VALID,
            index => self.memory.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }

    fn write_register(&mut self, value: u8) {
        // What happened until now, happened by the settings until now.
        self.note();
        match self.index {
            SECONDS_ALARM => self.alarm[0] = value,
            MINUTES_ALARM => self.alarm[1] = value,
            HOURS_ALARM => self.alarm[2] = value,
            REGISTER_A => self.a = value & !A_UPDATE_IN_PROGRESS,
            REGISTER_B => self.write_b(value),
            REGISTER_C | REGISTER_D => {}
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK | DAY_OF_MONTH | MONTH | YEAR | CENTURY => {
                let mut time = self.now();
                match self.index {
                    SECONDS => time.second = self.decode(value),
                    MINUTES => time.minute = self.decode(value),
                    HOURS => time.hour = self.decode_hour(value),
                    DAY_OF_MONTH => time.day = self.decode(value),
                    MONTH => time.month = self.decode(value),
                    YEAR => time.set_year_of_century(self.decode(value)),
                    CENTURY => time.set_century(self.decode(value)),
                    // The day of the week follows from the date.
                    _ => {}
                }
                if self.stopped.is_some() {
                    self.stopped = Some(time);
                } else {
                    self.set_time(time);
                }
            }
            index => {
                if let Some(cell) = self.memory.get_mut(usize::from(index)) {
                    *cell = value;
                }
            }
        }
    }

    fn write_b(&mut self, value: u8) {
        // Stopping updates disables their interrupt (MC146818A, register B).
        let value = if value & B_SET != 0 { value & !B_UPDATE_ENDED } else { value };
        match (self.stopped, value & B_SET != 0) {
            (None, true) => self.stopped = Some(self.now()),
            (Some(time), false) => {
                self.stopped = None;
                self.set_time(time);
            }
            _ => {}
        }
        self.b = value;
    }

    fn set_time(&mut self, time: DateTime) {
        let host = i64::try_from(self.clock.wall().as_secs()).unwrap_or(i64::MAX);
        self.offset = time.to_unix().saturating_sub(host);
        self.seen.0 = self.seconds();
    }

    /// Brings the flags up to now.
    fn note(&mut self) {
        let (last, last_ns) = self.seen;
        let (now, now_ns) = (self.seconds(), self.clock.monotonic_ns());
        if self.stopped.is_none() {
            if now > last {
                self.flags |= C_UPDATE_ENDED;
            }
            if self.next_alarm(last).is_some_and(|alarm| alarm <= now) {
                self.flags |= C_ALARM;
            }
        }
        if let Some(period) = self.period_ns()
            && now_ns.checked_div(period) > last_ns.checked_div(period)
        {
            self.flags |= C_PERIODIC;
        }
        self.seen = (now, now_ns);
    }

    /// The periodic interrupt's period (MC146818A, table 5, time base 32768 Hz).
    fn period_ns(&self) -> Option<u64> {
        let rate = match self.a & 0xf {
            0 => return None,
            // 3.90625 ms and 7.8125 ms, as rates 8 and 9.
            rate @ 1..=2 => u32::from(rate).wrapping_add(7),
            rate => u32::from(rate),
        };
        Some(1_u64.wrapping_shl(rate.wrapping_sub(1)).wrapping_mul(NS_PER_SECOND) / 32768)
    }

    /// The first second after `after` that matches the alarm, if one does.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let [second, minute, hour] = self.alarm;
        let second = (second < ANY).then(|| i64::from(self.decode(second)));
        let minute = (minute < ANY).then(|| i64::from(self.decode(minute)));
        let hour = (hour < ANY).then(|| i64::from(self.decode_hour(hour)));
        let mut time = after.checked_add(1)?;
        // At most 24 hours, 60 minutes and 60 seconds are stepped over; more means the alarm names no time.
        for _ in 0..24_u32.saturating_add(60).saturating_add(60).saturating_add(1) {
            let of_day = time.rem_euclid(86_400);
            let step = |unit: i64| unit.saturating_sub(of_day.rem_euclid(unit));
            let skip = if hour.is_some_and(|hour| hour != of_day / 3600) {
                step(3600)
            } else if minute.is_some_and(|minute| minute != of_day / 60 % 60) {
                step(60)
            } else if second.is_some_and(|second| second != of_day % 60) {
                1
            } else {
                return Some(time);
            };
            time = time.checked_add(skip)?;
        }
        None
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 { value } else { (value / 10).wrapping_shl(4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 { value } else { (value >> 4).wrapping_mul(10).wrapping_add(value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { PM } else { 0 };
        let hour = match hour % 12 {
            0 => 12,
            hour => hour,
        };
        self.encode(hour) | pm
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & !PM) % 12;
        hour.saturating_add(if value & PM != 0 { 12 } else { 0 })
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| if at == 0 { 0xff } else { self.read_register() });
        self.update();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let before = self.deadline();
        let _: Option<Effect> = write_bytes(offset, data, |at, value| {
            if at == 0 {
                // Bit 7 masks NMIs, of which this machine has none.
                self.index = value & 0x7f;
            } else {
                self.write_register(value);
            }
            None
        });
        self.update();
        let sooner = self.deadline()? < before.unwrap_or(u64::MAX);
        sooner.then_some(Effect::Deadline)
    }
}

impl PlatformDevice for Rtc {
    fn reset(&mut self) {
        if let Some(time) = self.stopped.take() {
            self.set_time(time);
        }
        self.index = 0;
        self.a = A_POWER_ON;
        self.b = B_24_HOURS;
        self.alarm = [0; 3];
        (self.flags, self.unanswered) = (0, 0);
        self.seen = (self.seconds(), self.clock.monotonic_ns());
        self.update();
    }
}

machine::inspect!(Rtc, this => {
    time: this.now().to_string(),
    offset_s: this.offset,
    stopped: this.stopped.is_some(),
    hex index,
    hex a,
    hex b,
    hex flags,
    interrupt: this.interrupts() != 0,
    deadline_ns: this.deadline(),
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedRtc {
    /// The guest's time less the host's, in seconds: a restored guest's clock shows the time now.
    offset_s: i64,
    /// The time at which the guest stopped updates, if it did.
    stopped: Option<DateTime>,
    index: u8,
    a: u8,
    b: u8,
    alarm: [u8; 3],
    /// Register C, as far as the guest's time, in seconds, was looked at: an alarm may be due that nobody has seen.
    flags: u8,
    seen_s: Option<i64>,
    memory: Vec<u8>,
}

impl SavedFields for SavedRtc {
    const KIND: &'static str = "cmos-rtc";
    const VERSION: u32 = 1;
}

impl Saved for Rtc {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedRtc {
            offset_s: self.offset,
            stopped: self.stopped,
            index: self.index,
            a: self.a,
            b: self.b,
            alarm: self.alarm,
            flags: self.flags,
            seen_s: Some(self.seen.0),
            memory: self.memory.to_vec(),
        })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedRtc = state.read()?;
        if (saved.b & B_SET != 0) != saved.stopped.is_some() {
            return Err(StateError::Value {
                kind: SavedRtc::KIND,
                reason: "register B and the stopped time disagree".to_owned(),
            });
        }
        self.offset = saved.offset_s;
        self.stopped = saved.stopped;
        self.index = saved.index & 0x7f;
        self.a = saved.a & !A_UPDATE_IN_PROGRESS;
        self.b = saved.b;
        self.alarm = saved.alarm;
        for (cell, byte) in self.memory.iter_mut().zip(saved.memory) {
            *cell = byte;
        }
        self.flags = saved.flags & C_FLAGS;
        self.seen = (saved.seen_s.unwrap_or_else(|| self.seconds()), self.clock.monotonic_ns());
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
