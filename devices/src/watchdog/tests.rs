use super::*;
use machine::clock::ManualClock;
use std::time::Duration;

crate::function_conformance!(
    conformance,
    [(BAR, 16)],
    Watchdog::new(Arc::new(ManualClock::default())).unwrap()
);

/// The driver of Linux, as far as it goes.
struct Guest {
    device: Watchdog,
    clock: Arc<ManualClock>,
}

impl Guest {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        Self { device: Watchdog::new(clock.clone()).unwrap(), clock }
    }

    fn unlock(&mut self) {
        for word in UNLOCK {
            assert_eq!(self.device.bar_write(BAR, RELOAD, &word.to_le_bytes()), None);
        }
    }

    fn reload(&mut self, bits: u16) -> Option<DeviceChange> {
        self.unlock();
        self.device.bar_write(BAR, RELOAD, &bits.to_le_bytes())
    }

    /// Half of `seconds` for each stage.
    fn set(&mut self, seconds: u32) {
        self.device.config_write(CONFIG, &[3, 0]);
        for at in [PRELOAD_1, PRELOAD_2] {
            self.unlock();
            self.device.bar_write(BAR, at, &(seconds << 9).to_le_bytes());
        }
        self.reload(RELOAD_RELOAD);
    }

    fn start(&mut self) {
        let change = self.device.config_write(LOCK, &[LOCK_ENABLE]);
        assert_eq!(change, Some(DeviceChange::Deadline));
    }

    /// Lets time pass as the machine does; how often the watchdog barked.
    fn wait(&mut self, milliseconds: u64) -> u32 {
        let mut barks = 0;
        for _ in 0..milliseconds {
            self.clock.advance(Duration::from_millis(1));
            while self.device.deadline().is_some_and(|time| time <= self.clock.monotonic_ns()) {
                barks += u32::from(self.device.look());
            }
        }
        barks
    }

    fn timed_out(&mut self) -> bool {
        let mut data = [0xff; 2];
        self.device.bar_read(BAR, RELOAD, &mut data);
        u16::from_le_bytes(data) & RELOAD_TIMEOUT != 0
    }
}

#[test]
fn a_guest_that_reloads_lives_and_one_that_does_not_is_noticed() {
    let mut guest = Guest::new();
    guest.set(10);
    assert_eq!(guest.wait(30_000), 0, "it does not run before it is started");
    guest.start();
    for _ in 0..5 {
        assert_eq!(guest.wait(9_000), 0);
        assert_eq!(guest.reload(RELOAD_RELOAD), None, "who waits for the old deadline need not be told");
    }
    assert!(!guest.timed_out());
    // 2^15 ticks of 30 ns for 1/1000 s make a second of the driver 0.6 % longer.
    assert_eq!(guest.wait(10_000), 0);
    assert_eq!(guest.wait(100), 1);
    assert!(guest.timed_out());
    assert_eq!(guest.device.deadline(), None, "it barks once");
    guest.device.reset();
    assert!(guest.timed_out(), "the restarted guest learns why");
    guest.reload(RELOAD_TIMEOUT | RELOAD_RELOAD);
    assert!(!guest.timed_out());
}

#[test]
fn nothing_happens_without_unlocking_or_without_output() {
    let mut guest = Guest::new();
    guest.device.bar_write(BAR, PRELOAD_1, &1_u32.to_le_bytes());
    guest.device.bar_write(BAR, RELOAD, &UNLOCK[1].to_le_bytes());
    guest.device.bar_write(BAR, PRELOAD_1, &1_u32.to_le_bytes());
    let mut data = [0; 4];
    guest.device.bar_read(BAR, PRELOAD_1, &mut data);
    assert_eq!(u32::from_le_bytes(data), PRELOAD_MAX);
    guest.set(1);
    guest.device.config_write(CONFIG, &[CONFIG_NO_OUTPUT]);
    guest.start();
    assert_eq!(guest.wait(2_000), 0);
    assert!(guest.timed_out());
}

#[test]
fn stopping_locking_and_free_running() {
    let mut guest = Guest::new();
    guest.set(1);
    guest.start();
    assert_eq!(guest.device.config_write(LOCK, &[0]), None);
    assert_eq!(guest.wait(2_000), 0, "a stopped timer");
    guest.device.config_write(LOCK, &[LOCK_ENABLE | LOCK_FREE]);
    assert_eq!(guest.wait(5_000), 0, "a free timer");
    assert!(guest.device.deadline().is_some());
    guest.device.config_write(LOCK, &[0]);
    // As one dword, as some do.
    guest.device.config_write(LOCK, &[LOCK_ENABLE | LOCK_LOCKED, 0, 0, 0]);
    assert_eq!(guest.device.config_write(LOCK, &[0]), None);
    assert_eq!(guest.wait(2_000), 1, "a locked timer cannot be stopped");
}

#[test]
fn time_does_not_pass_in_a_pause_nor_in_a_saved_state() {
    let mut guest = Guest::new();
    guest.set(10);
    guest.start();
    guest.wait(8_000);
    guest.device.pause();
    assert_eq!(guest.wait(60_000), 0);
    let state = guest.device.save().unwrap();
    let mut other = Guest::new();
    other.device.restore(&state).unwrap();
    assert_eq!(other.device.save().unwrap(), state);
    for guest in [&mut guest, &mut other] {
        assert_eq!(guest.wait(60_000), 0);
        guest.device.resume();
        assert_eq!(guest.wait(1_900), 0);
        assert_eq!(guest.wait(300), 1);
    }
    let mut foreign = state.clone();
    foreign.fields["registers"]["lock"] = 0xff.into();
    assert!(guest.device.restore(&foreign).is_err());
    assert_eq!(guest.device.deadline(), None);
    foreign.kind = "dog".into();
    assert!(guest.device.restore(&foreign).is_err());
}

#[test]
fn the_shortest_stage_is_not_too_short() {
    let mut guest = Guest::new();
    guest.set(0);
    guest.device.config_write(CONFIG, &[CONFIG_FAST]);
    guest.start();
    assert_eq!(guest.device.deadline(), Some(SHORTEST_NS));
    guest.device.config_write(LOCK, &[0]);
    guest.set(10);
    guest.start();
    guest.set(20);
    assert_eq!(guest.reload(RELOAD_RELOAD), None);
    for at in [PRELOAD_1, PRELOAD_2] {
        guest.unlock();
        guest.device.bar_write(BAR, at, &1_u32.to_le_bytes());
    }
    assert_eq!(guest.reload(RELOAD_RELOAD), Some(DeviceChange::Deadline), "sooner than was thought");
}
