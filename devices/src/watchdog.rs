//! Watchdog timer of Intel's 6300ESB, as a PCI function (Intel 300641-004, 16): what stock guests have a driver for.
//!
//! The guest says how long it may be silent, starts the timer, and reloads it again and again. A guest that hangs does not: the
//! timer passes its first stage, then its second, and the machine does what its user chose.
//!
//! The device has no timer of its own. It says when it wants to be looked at ([`Watchdog::deadline`]), and that time comes
//! nearer only with an access ([`DeviceChange::Deadline`]) or when it is looked at.

use machine::clock::Clock;
use machine::effect::DeviceChange;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use pci::bar::BarKind;
use pci::config::{ConfigError, ConfigSpace, ConfigState, Identity};
use pci::function::Function;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// In configuration space: interrupt type, clock and output, and the lock (16.4.1).
const CONFIG: u16 = 0x60;
const LOCK: u16 = 0x68;
/// The clock is 1 MHz rather than 1 kHz.
const CONFIG_FAST: u8 = 1 << 2;
/// The timer's end has no effect outside.
const CONFIG_NO_OUTPUT: u8 = 1 << 5;
const CONFIG_WRITABLE: u8 = 0x27;
/// The lock register cannot be written until power-on.
const LOCK_LOCKED: u8 = 1 << 0;
const LOCK_ENABLE: u8 = 1 << 1;
/// The timer runs freely: its end has no effect, and it begins again.
const LOCK_FREE: u8 = 1 << 2;
const LOCK_WRITABLE: u8 = 0x07;

/// In the BAR (16.4.2).
const BAR: u8 = 0;
const BAR_SIZE: u64 = 16;
const PRELOAD_1: u64 = 0;
const PRELOAD_2: u64 = 4;
const INTERRUPT_STATUS: u64 = 8;
const RELOAD: u64 = 12;
/// In the reload register: begin again, and whether the timer had come to its end (written 1 to clear).
const RELOAD_RELOAD: u16 = 1 << 8;
const RELOAD_TIMEOUT: u16 = 1 << 9;
/// Written to the reload register one after the other, these let the next write through.
const UNLOCK: [u16; 2] = [0x80, 0x86];

const PRELOAD_MAX: u32 = 0xf_ffff;
/// One tick of the PCI clock, 33 MHz.
const TICK_NS: u64 = 30;
/// The shortest stage, so that a guest cannot keep the monitor busy.
const SHORTEST_NS: u64 = 1_000_000;

/// What the guest set, and how far the timer got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Registers {
    config: u8,
    lock: u8,
    preload: [u32; 2],
    /// How much of the unlocking sequence was written.
    unlocked: u8,
    /// The first stage has passed.
    interrupt: bool,
    /// The timer has come to its end since this was last cleared. Kept over a reset, so that the guest learns why it was restarted.
    timed_out: bool,
    /// The timer is in its second stage.
    second: bool,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            config: 0,
            lock: 0,
            preload: [PRELOAD_MAX; 2],
            unlocked: 0,
            interrupt: false,
            timed_out: false,
            second: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    Stopped,
    /// The stage ends at this time.
    Until(u64),
    /// The machine is paused with so much of the stage left.
    Held(u64),
}

/// The watchdog.
pub struct Watchdog {
    config: ConfigSpace,
    clock: Arc<dyn Clock>,
    registers: Registers,
    timer: Timer,
    reloads: u64,
    expirations: u64,
}

impl Watchdog {
    /// A watchdog that does not run.
    ///
    /// # Errors
    /// Never, unless configuration spaces cannot hold its BAR.
    pub fn new(clock: Arc<dyn Clock>) -> Result<Self, ConfigError> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x25ab,
            class: 0x08_80_00,
            revision: 0,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config.add_bar(BAR, BarKind::Memory32 { prefetchable: false }, BAR_SIZE)?;
        let registers = Registers::default();
        Ok(Self { config, clock, registers, timer: Timer::Stopped, reloads: 0, expirations: 0 })
    }

    /// When it wants [`Self::look`] to be called: monotonic, in nanoseconds. `None` while it does not run.
    pub fn deadline(&self) -> Option<u64> {
        match self.timer {
            Timer::Until(time) => Some(time),
            Timer::Stopped | Timer::Held(_) => None,
        }
    }

    /// Looks at the time. `true`: the guest has been silent for too long.
    pub fn look(&mut self) -> bool {
        let Timer::Until(time) = self.timer else { return false };
        if time > self.clock.monotonic_ns() {
            return false;
        }
        if !self.registers.second {
            self.registers.interrupt = true;
            self.registers.second = true;
            self.start_stage();
            return false;
        }
        if self.registers.lock & LOCK_FREE != 0 {
            self.registers.second = false;
            self.start_stage();
            return false;
        }
        self.timer = Timer::Stopped;
        self.registers.timed_out = true;
        self.expirations = self.expirations.saturating_add(1);
        self.registers.config & CONFIG_NO_OUTPUT == 0
    }

    /// The machine is paused: time does not pass for it.
    pub fn pause(&mut self) {
        if let Timer::Until(time) = self.timer {
            self.timer = Timer::Held(time.saturating_sub(self.clock.monotonic_ns()));
        }
    }

    /// The machine goes on.
    pub fn resume(&mut self) {
        if let Timer::Held(left) = self.timer {
            self.timer = Timer::Until(self.clock.monotonic_ns().saturating_add(left));
        }
    }

    fn start_stage(&mut self) {
        let [first, second] = self.registers.preload;
        let preload = if self.registers.second { second } else { first };
        let shift = if self.registers.config & CONFIG_FAST == 0 { 15 } else { 5 };
        let length = (u64::from(preload) << shift).saturating_mul(TICK_NS).max(SHORTEST_NS);
        let held = matches!(self.timer, Timer::Held(_));
        self.timer = if held {
            Timer::Held(length)
        } else {
            Timer::Until(self.clock.monotonic_ns().saturating_add(length))
        };
    }

    fn enabled(&self) -> bool {
        self.registers.lock & LOCK_ENABLE != 0
    }

    /// Begins again, if it is enabled. Who looks at the time is told only if that is to be sooner: for a guest that reloads all the
    /// time it is not.
    fn restart(&mut self) -> Option<DeviceChange> {
        let before = self.deadline();
        self.registers.second = false;
        if self.enabled() {
            self.start_stage();
        } else {
            self.timer = Timer::Stopped;
        }
        let sooner = self.deadline()? < before.unwrap_or(u64::MAX);
        sooner.then_some(DeviceChange::Deadline)
    }

    fn write_lock(&mut self, value: u8) -> Option<DeviceChange> {
        if self.registers.lock & LOCK_LOCKED != 0 {
            return None;
        }
        let was = self.enabled();
        self.registers.lock = value & LOCK_WRITABLE;
        if self.enabled() != was { self.restart() } else { None }
    }

    fn write_reload(&mut self, value: u16) -> Option<DeviceChange> {
        let step = usize::from(self.registers.unlocked);
        self.registers.unlocked = 0;
        if let Some(expected) = UNLOCK.get(step) {
            if value == *expected {
                self.registers.unlocked = (step as u8).saturating_add(1);
            } else if value == UNLOCK[0] {
                self.registers.unlocked = 1;
            }
            return None;
        }
        if value & RELOAD_TIMEOUT != 0 {
            self.registers.timed_out = false;
        }
        if value & RELOAD_RELOAD != 0 && self.enabled() {
            self.reloads = self.reloads.saturating_add(1);
            return self.restart();
        }
        None
    }

    fn unlocked(&mut self) -> bool {
        usize::from(std::mem::take(&mut self.registers.unlocked)) == UNLOCK.len()
    }
}

/// The byte of a register at `at` that an access of `data` at `offset` covers.
fn covered(offset: u16, data: &[u8], at: u16) -> Option<u8> {
    data.get(usize::from(at.checked_sub(offset)?)).copied()
}

impl Function for Watchdog {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
        for (at, value) in [(CONFIG, self.registers.config), (LOCK, self.registers.lock)] {
            let byte = at.checked_sub(offset).and_then(|index| data.get_mut(usize::from(index)));
            if let Some(byte) = byte {
                *byte = value;
            }
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Option<DeviceChange> {
        if let Some(value) = covered(offset, data, CONFIG) {
            self.registers.config = value & CONFIG_WRITABLE;
        }
        if let Some(value) = covered(offset, data, LOCK) {
            return self.write_lock(value);
        }
        self.config.write(offset, data)
    }

    fn bar_read(&mut self, _bar: u8, offset: u64, data: &mut [u8]) {
        let value = match offset {
            PRELOAD_1 => self.registers.preload.first().copied().unwrap_or(0),
            PRELOAD_2 => self.registers.preload.last().copied().unwrap_or(0),
            INTERRUPT_STATUS => self.registers.interrupt.into(),
            RELOAD if self.registers.timed_out => RELOAD_TIMEOUT.into(),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn bar_write(&mut self, _bar: u8, offset: u64, data: &[u8]) -> Option<DeviceChange> {
        let mut value = [0; 4];
        value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u32::from_le_bytes(value);
        match offset {
            RELOAD => return self.write_reload(value as u16),
            PRELOAD_1 | PRELOAD_2 if data.len() == 4 && self.unlocked() => {
                let [first, second] = &mut self.registers.preload;
                let preload = if offset == PRELOAD_1 { first } else { second };
                *preload = value & PRELOAD_MAX;
            }
            INTERRUPT_STATUS if value & 1 != 0 => self.registers.interrupt = false,
            _ => {}
        }
        None
    }

    fn reset(&mut self) {
        self.config.reset();
        self.registers = Registers { timed_out: self.registers.timed_out, ..Registers::default() };
        self.timer = Timer::Stopped;
    }
}

machine::inspect!(Watchdog, this => {
    enabled: this.enabled(),
    stage: if this.registers.second { 2 } else { 1 },
    deadline_ns: this.deadline(),
    timed_out: this.registers.timed_out,
    reloads,
    expirations,
    pci: this.config,
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedWatchdog {
    config: ConfigState,
    registers: Registers,
    /// How much of the timer's stage is left, in nanoseconds.
    left_ns: Option<u64>,
}

impl SavedFields for SavedWatchdog {
    const KIND: &'static str = "watchdog-6300esb";
    const VERSION: u32 = 1;
}

impl Saved for Watchdog {
    fn save(&self) -> Result<SavedState, StateError> {
        let left_ns = match self.timer {
            Timer::Stopped => None,
            Timer::Held(left) => Some(left),
            Timer::Until(time) => Some(time.saturating_sub(self.clock.monotonic_ns())),
        };
        let config = self.config.save();
        SavedState::of(&SavedWatchdog { config, registers: self.registers.clone(), left_ns })
    }

    /// A timer that ran is held until [`Self::resume`].
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let state: SavedWatchdog = state.read()?;
        let registers = &state.registers;
        let possible = registers.config & !CONFIG_WRITABLE == 0
            && registers.lock & !LOCK_WRITABLE == 0
            && registers.preload.iter().all(|preload| *preload <= PRELOAD_MAX)
            && usize::from(registers.unlocked) <= UNLOCK.len();
        if !possible {
            let reason = "its registers have bits that the device does not have".to_owned();
            return Err(StateError::Value { kind: SavedWatchdog::KIND, reason });
        }
        self.config.restore(&state.config)?;
        self.registers = state.registers;
        self.timer = state.left_ns.map_or(Timer::Stopped, Timer::Held);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
