//! `platform`: the small devices with fixed places: clock, keyboard controller, ACPI registers, I/O APIC, debug console,
//! pvpanic and legacy ports.

use crate::device::{reset_or_look, restore_own_state};
use crate::input::Input;
use devices::acpi::{AcpiRegisters, Event};
use devices::debug_console::DebugConsole;
use devices::host_console::NullOutput;
use devices::i8042::I8042;
use devices::ioapic::{IoApic, PINS};
use devices::legacy_ports::{PostCode, SystemControl};
use devices::platform::PlatformDevice;
use devices::pvpanic::Pvpanic;
use devices::rtc::Rtc;
use machine::clock::{Clock, ManualClock};
use machine::interrupt::recording::Sources;
use machine::interrupt::{InterruptController, InterruptLine, MsiAllocator};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

const STEPS: usize = 300;
const GED: u32 = 5;
const CLOCK: u32 = 8;
/// The most looks that the machine owes the clock for one step of time.
const LOOKS: u64 = 100;

/// Registers, interrupts and time of each.
pub fn platform(data: &[u8]) {
    let input = &mut Input::new(data);
    let mut machine = Machine::new(input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        machine.step(input);
    }
    machine.finish();
}

struct Machine {
    clock: Arc<ManualClock>,
    ioapic: IoApic,
    acpi: AcpiRegisters,
    rtc: Rtc,
    /// All others with their window sizes.
    others: Vec<(u64, Box<dyn PlatformDevice>)>,
    /// A line held active, if any.
    held: Option<InterruptLine>,
}

impl Machine {
    fn new(input: &mut Input<'_>) -> Self {
        let clock = Arc::new(ManualClock::starting_at(Duration::from_secs(input.u32().into())));
        let sources = Sources::default();
        let allocate = |_| sources.allocate().expect("memory suffices");
        let ioapic = IoApic::new((0..PINS).map(allocate).collect());
        let acpi = AcpiRegisters::new(clock.clone(), InterruptLine::new(ioapic.pins(), GED));
        let rtc = Rtc::new(clock.clone(), InterruptLine::new(ioapic.pins(), CLOCK));
        let others: Vec<(u64, Box<dyn PlatformDevice>)> = vec![
            (I8042::PORTS.size, Box::new(I8042::default())),
            (DebugConsole::PORTS.size, Box::new(DebugConsole::new(Box::new(NullOutput)))),
            (Pvpanic::PORTS.size, Box::new(Pvpanic::default())),
            (PostCode::PORTS.size, Box::new(PostCode::default())),
            (SystemControl::PORTS.size, Box::new(SystemControl::default())),
        ];
        Self { clock, ioapic, acpi, rtc, others, held: None }
    }

    /// A device and the size of its window. The clock comes up most: it has most behind its registers.
    fn choose(&mut self, input: &mut Input<'_>) -> (u64, &mut dyn PlatformDevice) {
        match input.below(16) {
            0..=3 => (IoApic::WINDOW.size, &mut self.ioapic),
            4 | 5 => (AcpiRegisters::PORTS.size, &mut self.acpi),
            6..=10 => (Rtc::PORTS.size, &mut self.rtc),
            choice => {
                let at = usize::from(choice - 11).min(self.others.len() - 1);
                let (size, device) = &mut self.others[at];
                (*size, device.as_mut())
            }
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..=3 => {
                let (window, device) = self.choose(input);
                let (offset, size) = access(window, input);
                device.read(offset, &mut [0xff; 8][..size]);
            }
            4..=8 => {
                let (window, device) = self.choose(input);
                let (offset, size) = access(window, input);
                let value = if input.flag() { input.u8().into() } else { input.u64() };
                black_box(device.write(offset, &value.to_le_bytes()[..size]));
            }
            9 => {
                // Index, then data: of the clock, or of the I/O APIC.
                let (index, value) = (input.u8(), input.u32().to_le_bytes());
                if input.flag() {
                    self.ioapic_write(index, value);
                } else {
                    use machine::bus::BusDevice;
                    self.rtc.write(0, &[index]);
                    self.rtc.write(1, &value[..1]);
                    self.rtc.read(1, &mut [0xff]);
                }
            }
            10 => {
                self.clock.advance(Duration::from_nanos(u64::from(input.u32()) << input.below(32)));
                for _ in 0..LOOKS {
                    if self.rtc.deadline().is_none_or(|time| time > self.clock.monotonic_ns()) {
                        break;
                    }
                    self.rtc.look();
                }
                // The clock stops at its end, after 584 years.
                let now = self.clock.monotonic_ns();
                let late = now < u64::MAX && self.rtc.deadline().is_some_and(|time| time <= now);
                assert!(!late, "a look always moves the deadline past the present");
            }
            11 => {
                let gsi = u32::from(input.below(32));
                match input.below(3) {
                    0 => self.ioapic.pins().pulse(gsi),
                    1 => {
                        let line = InterruptLine::new(self.ioapic.pins(), gsi);
                        line.set(true);
                        self.held = Some(line);
                    }
                    _ => self.held = None,
                }
            }
            12 => self.ioapic.pins().end_of_interrupt(input.u8()),
            13 => {
                let events = [Event::PowerButton, Event::Cpu, Event::Memory, Event::Pci, Event::Generation];
                let event = input.choose(&events);
                self.acpi.raise(event);
            }
            14 => {
                let (_, device) = self.choose(input);
                restore_own_state(device);
            }
            _ => {
                let reset = input.below(4) == 0;
                let (_, device) = self.choose(input);
                reset_or_look(device, reset);
            }
        }
    }

    fn ioapic_write(&mut self, index: u8, value: [u8; 4]) {
        use machine::bus::BusDevice;
        self.ioapic.write(0, &[index]);
        self.ioapic.write(0x10, &value);
        self.ioapic.read(0x10, &mut [0xff; 4]);
    }

    /// A reset device tells what it is.
    fn finish(&mut self) {
        use machine::bus::BusDevice;
        self.ioapic.reset();
        self.ioapic.write(0, &[1]);
        let mut version = [0; 4];
        self.ioapic.read(0x10, &mut version);
        assert_eq!(u32::from_le_bytes(version), 0x17_0020, "version 0x20 with 24 entries");
        self.rtc.reset();
        assert_eq!(self.rtc.deadline(), None);
        self.rtc.write(0, &[0x0d]);
        let mut battery = [0];
        self.rtc.read(1, &mut battery);
        assert_eq!(battery, [0x80], "the battery is good");
    }
}

/// A place within a window and a size, 1 to 8 bytes.
fn access(window: u64, input: &mut Input<'_>) -> (u64, usize) {
    let size = (1_u64 << input.below(4)).min(window);
    // All but the I/O APIC's are small, and its registers lie at the beginning.
    let offset = u64::from(if input.below(8) == 0 { input.u16() } else { input.u8().into() });
    let offset = offset % (window - size + 1);
    (offset, size as usize)
}
