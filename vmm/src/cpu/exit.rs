//! What a CPU's exits ask for.

use super::Peers;
use crate::exits::{ExitCounters, ExitKind};
use hypervisor::{CpuAnswer, DebugStop, Exit, SystemEvent, Vcpu};
use machine::bus::BusReader;
use machine::effect::Effect;
use std::sync::Arc;
use std::time::Instant;

/// What an exit came to.
pub(super) enum Step {
    /// The CPU can be run again.
    GoOn,
    /// So it can, but it is within an instruction, which accessed a device.
    Access,
    /// It stopped for a debugger.
    Debug(DebugStop),
    /// It asked the firmware about a CPU, which answers this.
    Answer(CpuAnswer),
    /// The guest stopped it.
    Stopped,
    /// It cannot go on.
    Failed(String),
}

/// Where exits are carried to.
pub(super) struct Buses {
    pub(super) mmio: BusReader,
    pub(super) port: BusReader,
    pub(super) end_of_interrupt: Arc<dyn Fn(u8) + Send + Sync>,
    pub(super) peers: Arc<Peers>,
}

impl Buses {
    /// Lets go of old maps.
    pub(super) fn refresh(&mut self) {
        self.mmio.bus();
        self.port.bus();
    }
}

/// Runs the guest until it exits, and does what it then asks for. `tell` is called with each change that it asks of the machine.
pub(super) fn step(
    vcpu: &mut dyn Vcpu,
    buses: &mut Buses,
    exits: &ExitCounters,
    tell: &dyn Fn(Effect),
) -> Step {
    let exit = match vcpu.run() {
        Ok(exit) => exit,
        Err(error) => return Step::Failed(error.to_string()),
    };
    let start = Instant::now();
    let (kind, step) = respond(exit, buses, exits, tell);
    exits.count(kind, start.elapsed());
    step
}

/// Does what an exit of the guest asks for.
fn respond(
    exit: Exit<'_>,
    buses: &mut Buses,
    exits: &ExitCounters,
    tell: &dyn Fn(Effect),
) -> (ExitKind, Step) {
    let claimed = |done: Option<Option<Effect>>| match done {
        Some(effect) => effect.into_iter().for_each(tell),
        None => {
            exits.unclaimed.add(1);
        }
    };
    match exit {
        Exit::MmioWrite { address, data } => {
            claimed(buses.mmio.bus().write(address, data));
            (ExitKind::MmioWrite, Step::Access)
        }
        Exit::MmioRead { address, data } => {
            if !buses.mmio.bus().read(address, data) {
                exits.unclaimed.add(1);
            }
            (ExitKind::MmioRead, Step::Access)
        }
        // A string instruction makes many accesses, each of which can have an effect.
        Exit::PortWrite { port, size, data } => {
            let bus = buses.port.bus();
            data.chunks_exact(usize::from(size)).for_each(|unit| claimed(bus.write(u64::from(port), unit)));
            (ExitKind::PortWrite, Step::Access)
        }
        Exit::PortRead { port, size, data } => {
            let bus = buses.port.bus();
            for unit in data.chunks_exact_mut(usize::from(size)) {
                if !bus.read(u64::from(port), unit) {
                    exits.unclaimed.add(1);
                }
            }
            (ExitKind::PortRead, Step::Access)
        }
        Exit::Undescribed { .. } => {
            exits.undescribed.add(1);
            (ExitKind::Other, Step::Access)
        }
        Exit::EndOfInterrupt { vector } => {
            (buses.end_of_interrupt)(vector);
            (ExitKind::EndOfInterrupt, Step::GoOn)
        }
        Exit::Interrupted => (ExitKind::Interrupted, Step::GoOn),
        Exit::Halted => (ExitKind::Other, Step::GoOn),
        Exit::CpuCall(call) => (ExitKind::Other, Step::Answer(buses.peers.answer(call))),
        Exit::Stopped => (ExitKind::Other, Step::Stopped),
        Exit::Debug(stop) => (ExitKind::Debug, Step::Debug(stop)),
        Exit::TripleFault => {
            (ExitKind::Other, Step::Failed("triple fault: the guest's CPU shut down".into()))
        }
        Exit::System(event) => {
            tell(match event {
                SystemEvent::PowerOff => Effect::PowerOff,
                SystemEvent::Reset => Effect::Reset,
                SystemEvent::Crash => Effect::Panicked(1),
            });
            (ExitKind::Other, Step::GoOn)
        }
        Exit::Failed { reason } => (ExitKind::Other, Step::Failed(reason)),
    }
}
