//! PL031 real-time clock (Arm DDI 0224C): seconds since 1970, and one alarm.
//!
//! The time is the host's wall clock in UTC plus an offset, which moves when the guest sets the clock. The alarm interrupts, as
//! a level, from its time on until it is cleared.
//!
//! The device has no timer of its own. It says when it wants to be looked at ([`Pl031::deadline`]), and that time comes
//! nearer only with a write ([`Effect::Deadline`]) or when it is looked at ([`Pl031::look`]).
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | DR the time |
//! | 0x04 | MR the alarm's time |
//! | 0x08 | LR writing sets the time |
//! | 0x0c | CR bit 0 is set: the clock runs |
//! | 0x10 | IMSC interrupt mask |
//! | 0x14, 0x18 | RIS, MIS alarm before and behind the mask |
//! | 0x1c | ICR writing one clears the alarm |

use super::{identification, read_register, window, written};
use crate::platform::PlatformDevice;
use machine::bus::{BusDevice, Range};
use machine::clock::Clock;
use machine::effect::Effect;
use machine::interrupt::InterruptLine;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const DR: u64 = 0x00;
const MR: u64 = 0x04;
const LR: u64 = 0x08;
const CR: u64 = 0x0c;
const IMSC: u64 = 0x10;
const RIS: u64 = 0x14;
const MIS: u64 = 0x18;
const ICR: u64 = 0x1c;

/// Part number 0x031, designed by Arm, revision 0.
const PERIPHERAL_ID: [u8; 4] = [0x31, 0x10, 0x04, 0x00];

const ALARM: u32 = 1;
const CR_RUNS: u32 = 1;

const NS_PER_SECOND: u64 = 1_000_000_000;
/// How long is waited for an alarm at most before the time is looked at again: the host's clock may be set.
const LONGEST_WAIT_NS: u64 = 60 * NS_PER_SECOND;

/// The clock.
pub struct Pl031 {
    clock: Arc<dyn Clock>,
    line: InterruptLine,
    /// The guest's time less the host's, in seconds; both wrap after 32 bits.
    offset: u32,
    /// What was loaded last.
    loaded: u32,
    alarm: u32,
    mask: u32,
    /// The alarm's time came and was not cleared.
    raised: bool,
    /// The guest's time when that was last looked at.
    looked: u32,
}

impl Pl031 {
    /// A clock that shows `clock`'s wall time. `line` is its interrupt, a level.
    pub fn new(clock: Arc<dyn Clock>, line: InterruptLine) -> Self {
        let mut rtc = Self { clock, line, offset: 0, loaded: 0, alarm: 0, mask: 0, raised: false, looked: 0 };
        rtc.looked = rtc.now();
        rtc
    }

    /// Where its registers are, when they begin at `start`.
    pub const fn window(start: u64) -> Range {
        window(start)
    }

    /// The guest's time.
    fn now(&self) -> u32 {
        // 32 bits wide, and wraps.
        (self.clock.wall().as_secs() as u32).wrapping_add(self.offset)
    }

    /// When it wants to be looked at, in the clock's monotonic nanoseconds: when an alarm that interrupts is due.
    pub fn deadline(&self) -> Option<u64> {
        if self.raised || self.mask & ALARM == 0 {
            return None;
        }
        if self.due() {
            return Some(self.clock.monotonic_ns());
        }
        let wall = self.clock.wall();
        // An alarm of this very second that was cleared comes again when the time has gone around.
        let whole = match self.alarm.wrapping_sub(self.now()) {
            0 => 1 << 32,
            seconds => u64::from(seconds),
        };
        let wait = whole.saturating_mul(NS_PER_SECOND).saturating_sub(u64::from(wall.subsec_nanos()));
        Some(self.clock.monotonic_ns().saturating_add(wait.min(LONGEST_WAIT_NS)))
    }

    /// Raises the interrupt if it is due.
    pub fn look(&mut self) {
        self.note();
        self.update();
    }

    fn update(&self) {
        self.line.set(self.raised && self.mask & ALARM != 0);
    }

    /// Whether the alarm's time came since it was last looked at.
    fn due(&self) -> bool {
        let passed = self.now().wrapping_sub(self.looked);
        let until = self.alarm.wrapping_sub(self.looked);
        // A host's clock that was set back makes this a very long time, in which everything would come.
        passed <= u32::MAX / 2 && (1..=passed).contains(&until)
    }

    /// Brings the alarm up to now.
    fn note(&mut self) {
        self.raised |= self.due();
        self.looked = self.now();
    }

    fn set(&mut self, time: u32) {
        self.offset = time.wrapping_sub(self.clock.wall().as_secs() as u32);
        self.looked = time;
        self.raised |= time == self.alarm;
    }

    fn read_at(&mut self, offset: u64) -> u32 {
        self.note();
        let raised = if self.raised { ALARM } else { 0 };
        match offset {
            DR => self.now(),
            MR => self.alarm,
            LR => self.loaded,
            CR => CR_RUNS,
            IMSC => self.mask,
            RIS => raised,
            MIS => raised & self.mask,
            _ => identification(PERIPHERAL_ID, offset).unwrap_or(0),
        }
    }

    fn write_at(&mut self, offset: u64, value: u32) {
        self.note();
        match offset {
            MR => {
                self.alarm = value;
                self.raised |= value == self.now();
            }
            LR => {
                self.loaded = value;
                self.set(value);
            }
            IMSC => self.mask = value & ALARM,
            ICR if value & ALARM != 0 => self.raised = false,
            // The clock cannot be stopped; the others are read-only.
            _ => {}
        }
    }
}

impl BusDevice for Pl031 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_register(offset, data, |at| self.read_at(at));
        self.update();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let (offset, value) = written(offset, data)?;
        let before = self.deadline();
        self.write_at(offset, value);
        self.update();
        let sooner = self.deadline()? < before.unwrap_or(u64::MAX);
        sooner.then_some(Effect::Deadline)
    }
}

impl PlatformDevice for Pl031 {
    /// The time, which a battery keeps, goes on.
    fn reset(&mut self) {
        self.alarm = 0;
        self.mask = 0;
        self.raised = false;
        self.looked = self.now();
        self.update();
    }
}

machine::inspect!(Pl031, this => {
    time: this.now(),
    alarm,
    interrupt: this.raised && this.mask & ALARM != 0,
    offset_seconds: this.offset as i32,
    deadline_ns: this.deadline(),
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedPl031 {
    /// The guest's time less the host's wall clock, in seconds, modulo 2^32.
    offset: u32,
    loaded: u32,
    alarm: u32,
    mask: u32,
    raised: bool,
    /// The guest's time as far as the alarm was looked at: it may be due, and nobody has seen it.
    looked: Option<u32>,
}

impl SavedFields for SavedPl031 {
    const KIND: &'static str = "pl031";
    const VERSION: u32 = 1;
}

impl Saved for Pl031 {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedPl031 {
            offset: self.offset,
            loaded: self.loaded,
            alarm: self.alarm,
            mask: self.mask,
            raised: self.raised,
            looked: Some(self.looked),
        })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: SavedPl031 = state.read()?;
        self.offset = saved.offset;
        self.loaded = saved.loaded;
        self.alarm = saved.alarm;
        self.mask = saved.mask & ALARM;
        self.raised = saved.raised;
        self.looked = saved.looked.unwrap_or_else(|| self.now());
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primecell::WINDOW_SIZE;
    use machine::clock::ManualClock;
    use machine::interrupt::recording::Pins;
    use std::time::Duration;

    /// 2001-09-09T01:46:40Z.
    const START: u32 = 1_000_000_000;
    const SPI: u32 = 2;

    fn wired() -> (Pl031, Arc<ManualClock>, Arc<Pins>) {
        let clock = Arc::new(ManualClock::starting_at(Duration::from_secs(START.into())));
        let pins = Arc::new(Pins::default());
        (Pl031::new(clock.clone(), InterruptLine::new(pins.clone(), SPI)), clock, pins)
    }

    fn bench() -> (Pl031, Arc<ManualClock>) {
        let (rtc, clock, _) = wired();
        (rtc, clock)
    }

    fn read(rtc: &mut Pl031, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        rtc.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    crate::conformance!(conformance, WINDOW_SIZE, bench().0, keeps["offset", "loaded", "looked"]);

    #[test]
    fn shows_the_hosts_time_until_it_is_set_and_then_goes_on_from_there() {
        let (mut rtc, clock) = bench();
        clock.advance(Duration::from_secs(10));
        assert_eq!(read(&mut rtc, DR), START + 10);
        rtc.write(LR, &5u32.to_le_bytes());
        clock.advance(Duration::from_secs(3));
        assert_eq!((read(&mut rtc, DR), read(&mut rtc, LR)), (8, 5));
        let state = rtc.save().unwrap();
        let (mut other, _) = bench();
        other.restore(&state).unwrap();
        // Its host's clock is 13 seconds behind.
        assert_eq!(read(&mut other, DR), 8u32.wrapping_sub(13));
    }

    #[test]
    fn the_alarm_comes_at_its_time_once() {
        let (mut rtc, clock) = bench();
        rtc.write(MR, &(START + 5).to_le_bytes());
        clock.advance(Duration::from_secs(4));
        assert_eq!(read(&mut rtc, RIS), 0);
        clock.advance(Duration::from_secs(2));
        assert_eq!((read(&mut rtc, RIS), read(&mut rtc, MIS)), (1, 0));
        rtc.write(IMSC, &[1]);
        assert_eq!(read(&mut rtc, MIS), 1);
        rtc.write(ICR, &[1]);
        clock.advance(Duration::from_secs(100));
        assert_eq!(read(&mut rtc, RIS), 0);
    }

    #[test]
    fn the_interrupt_comes_when_it_is_looked_at_on_time_and_stays_until_it_is_cleared() {
        let (mut rtc, clock, pins) = wired();
        clock.advance(Duration::from_millis(300));
        rtc.write(MR, &(START + 5).to_le_bytes());
        assert_eq!(rtc.deadline(), None, "nobody is interrupted");
        assert_eq!(rtc.write(IMSC, &[1]), Some(Effect::Deadline));
        let due = rtc.deadline().unwrap();
        assert_eq!(due - clock.monotonic_ns(), 4_700_000_000, "when that second begins");
        clock.advance(Duration::from_millis(4699));
        rtc.look();
        assert!(!pins.level(SPI));
        clock.advance(Duration::from_millis(1));
        rtc.look();
        assert!(pins.level(SPI));
        assert_eq!(rtc.deadline(), None);
        rtc.write(IMSC, &[0]);
        assert!(!pins.level(SPI));
        rtc.write(IMSC, &[1]);
        assert!(pins.level(SPI));
        rtc.write(ICR, &[1]);
        assert!(!pins.level(SPI));
    }

    #[test]
    fn only_a_write_that_brings_the_alarm_nearer_asks_to_be_looked_at() {
        let (mut rtc, clock, _) = wired();
        rtc.write(IMSC, &[1]);
        for (alarm, sooner) in [(START + 50, true), (START + 40, true), (START + 45, false)] {
            assert_eq!(rtc.write(MR, &alarm.to_le_bytes()).is_some(), sooner, "{alarm}");
        }
        rtc.write(MR, &(START + 1_000_000).to_le_bytes());
        assert_eq!(rtc.deadline(), Some(clock.monotonic_ns() + LONGEST_WAIT_NS), "clocks are set");
    }

    #[test]
    fn an_alarm_whose_time_passes_while_nobody_looks_or_in_a_saved_state_comes() {
        let (mut rtc, clock, pins) = wired();
        rtc.write(MR, &(START + 5).to_le_bytes());
        rtc.write(IMSC, &[1]);
        let state = rtc.save().unwrap();
        clock.advance(Duration::from_secs(3600));
        assert_eq!(rtc.deadline(), Some(clock.monotonic_ns()));
        assert!(!pins.level(SPI));
        let (mut other, later, restored) = wired();
        later.advance(Duration::from_secs(3600));
        other.restore(&state).unwrap();
        assert_eq!(other.deadline(), Some(later.monotonic_ns()));
        other.look();
        assert!(restored.level(SPI));
        other.reset();
        assert!(!restored.level(SPI));
        // A state from before the field was there.
        let mut older = state;
        older.fields.as_object_mut().unwrap().remove("looked");
        other.restore(&older).unwrap();
        other.look();
        assert!(!restored.level(SPI));
    }

    #[test]
    fn an_alarm_that_was_cleared_in_its_second_is_not_waited_for_again() {
        let (mut rtc, clock, _) = wired();
        for (register, value) in [(IMSC, ALARM), (MR, START), (ICR, ALARM)] {
            rtc.write(register, &value.to_le_bytes());
        }
        let wait = rtc.deadline().unwrap() - clock.monotonic_ns();
        assert!(wait > LONGEST_WAIT_NS / 2, "{wait} ns");
    }
}
