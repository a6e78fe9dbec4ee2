//! The registers of a simulated aarch64 CPU: kept as they are set, and without effect, save for those that start it. And
//! its interrupt controller, of which each shared interrupt, and each message by its data, is a vector of CPU 0.

use super::vcpu::SimVcpu;
use super::{Board, SimVm, lock};
use crate::aarch64::{
    FIRST_SPI, Gic, GicConfig, GicCpuState, GicState, HostFeatures, InterruptsState, ItsState, MpState,
    PendingEvents, RegisterId, VcpuFeatures, VcpuState,
};
use crate::{CpuStart, GuestDebug, HardwareBreakpoint, Result, WatchedAccess};
use machine::interrupt::InterruptController;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// What a simulated host offers.
pub(super) const HOST: HostFeatures =
    HostFeatures { address_bits: 40, sve: false, pointer_authentication: false, pmu: false };

/// The registers of one CPU.
#[derive(Default)]
pub(super) struct Registers {
    values: BTreeMap<RegisterId, Vec<u8>>,
    events: PendingEvents,
}

impl Registers {
    /// Those of a CPU that another one starts.
    pub(super) fn begin(&mut self, start: &CpuStart) {
        *self = Self::default();
        let values = [(RegisterId::PC, start.entry), (RegisterId::x(0), start.argument)];
        self.values.extend(values.map(|(id, value)| (id, value.to_le_bytes().to_vec())));
    }
}

impl VcpuState for SimVcpu {
    /// Also starts the program anew.
    fn init(&mut self, features: &VcpuFeatures) -> Result<()> {
        *self.registers = Registers::default();
        self.restart();
        self.lane.change(|lane| lane.started = !features.powered_off);
        Ok(())
    }

    fn start_pmu(&mut self, _: u32) -> Result<()> {
        Ok(())
    }

    fn registers(&self) -> Result<Vec<RegisterId>> {
        Ok(self.registers.values.keys().copied().collect())
    }

    /// A register that was never written reads as zero.
    fn register(&self, id: RegisterId) -> Result<u64> {
        let bytes = self.register_bytes(id)?;
        Ok(bytes.iter().take(8).rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn set_register(&mut self, id: RegisterId, value: u64) -> Result<()> {
        self.set_register_bytes(id, &value.to_le_bytes())
    }

    fn register_bytes(&self, id: RegisterId) -> Result<Vec<u8>> {
        Ok(self.registers.values.get(&id).cloned().unwrap_or_else(|| vec![0; id.size()]))
    }

    fn set_register_bytes(&mut self, id: RegisterId, value: &[u8]) -> Result<()> {
        self.registers.values.insert(id, value.to_vec());
        Ok(())
    }

    fn mp_state(&self) -> Result<MpState> {
        Ok(if self.lane.state().started { MpState::Runnable } else { MpState::PoweredOff })
    }

    /// A CPU that is not runnable waits for [`super::SimCpu::start_cpu`].
    fn set_mp_state(&mut self, state: MpState) -> Result<()> {
        self.lane.change(|lane| lane.started = state == MpState::Runnable);
        Ok(())
    }

    fn events(&self) -> Result<PendingEvents> {
        Ok(self.registers.events)
    }

    fn set_events(&mut self, events: &PendingEvents) -> Result<()> {
        self.registers.events = *events;
        Ok(())
    }

    /// Without effect: a program has no instructions to stop at.
    fn set_guest_debug(&mut self, debug: Option<&GuestDebug>) -> Result<()> {
        self.guest_debug = debug.cloned();
        Ok(())
    }

    /// Like a processor with as few registers as the architecture allows: two for instructions, two for data.
    fn can_watch(&self, breakpoints: &[HardwareBreakpoint]) -> bool {
        let executed = breakpoints.iter().filter(|watched| watched.access == WatchedAccess::Execute).count();
        executed <= 2 && breakpoints.len().saturating_sub(executed) <= 2
    }

    fn inject_breakpoint(&mut self) -> Result<()> {
        self.lane.change(|state| state.pending.insert(3, false));
        Ok(())
    }
}

/// The simulated interrupt controller.
pub(super) struct SimGic {
    board: Arc<Board>,
    config: GicConfig,
    /// How many sources hold each shared interrupt active.
    holders: Mutex<BTreeMap<u32, u32>>,
}

/// What follows the private interrupts among the vectors that there are.
const SHARED: u32 = 256 - FIRST_SPI;

impl SimGic {
    pub(super) fn new(vm: &SimVm, config: &GicConfig) -> Self {
        Self { board: Arc::clone(&vm.board), config: *config, holders: Mutex::default() }
    }

    /// The pending interrupts of a CPU among the `count` from `first` on, as a register has them.
    fn pending(&self, cpu: u32, first: u32, count: u32) -> Vec<u32> {
        let mut words = vec![0; count.div_ceil(32) as usize];
        for vector in self.board.apics.pending(cpu) {
            if let Some(number) = u32::from(vector).checked_sub(first)
                && let Some(word) = words.get_mut((number / 32) as usize).filter(|_| number < count)
            {
                *word |= 1 << (number % 32);
            }
        }
        words
    }

    /// Makes those interrupts pending again.
    fn pend(&self, cpu: u32, first: u32, words: &[u32]) {
        for (base, word) in (first..).step_by(32).zip(words) {
            for bit in (0..32).filter(|bit| word >> bit & 1 != 0) {
                self.board.apics.interrupt(cpu, base.saturating_add(bit) as u8, false);
            }
        }
    }
}

impl Gic for SimGic {
    fn reset(&self) -> Result<()> {
        Ok(())
    }

    /// What is pending; the rest of it has no state.
    fn save(&self) -> Result<GicState> {
        let pending = |cpu, first, count| InterruptsState {
            ispendr: self.pending(cpu, first, count),
            ..Default::default()
        };
        let cpu = |cpu| GicCpuState { private: pending(cpu, 0, FIRST_SPI), ..Default::default() };
        Ok(GicState {
            shared: pending(0, FIRST_SPI, SHARED),
            cpus: (0..self.config.cpus).map(cpu).collect(),
            its: vec![ItsState::default(); self.config.its_count as usize],
            ..Default::default()
        })
    }

    fn restore(&self, state: &GicState) -> Result<()> {
        state.check(SHARED, self.config.cpus, self.config.its_count)?;
        for (number, cpu) in (0..).zip(&state.cpus) {
            self.board.apics.forget_pending(number);
            self.pend(number, 0, &cpu.private.ispendr);
        }
        self.pend(0, FIRST_SPI, &state.shared.ispendr);
        Ok(())
    }

    /// Without effect: a program does no single steps.
    fn hold_interrupts(&self, _: &BTreeSet<u32>) -> Result<()> {
        Ok(())
    }
}

impl InterruptController for SimGic {
    fn set_level(&self, gsi: u32, active: bool) {
        let mut holders = lock(&self.holders);
        let holders = holders.entry(gsi).or_default();
        let before = *holders;
        *holders = if active { before.saturating_add(1) } else { before.saturating_sub(1) };
        if before == 0 && active {
            self.pulse(gsi);
        }
    }

    fn pulse(&self, gsi: u32) {
        self.board.apics.interrupt(0, FIRST_SPI.wrapping_add(gsi) as u8, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::{CpuState, RegisterState};
    use crate::sim::Sim;
    use crate::{Error, Exit, Hypervisor, Vcpu};

    const CONFIG: GicConfig =
        GicConfig { distributor: 0, redistributors: 0, first_its: 0, its_count: 1, cpus: 2, spis: 64 };

    /// Two CPUs and their interrupt controller.
    fn machine(sim: &Sim) -> (Vec<Box<dyn Vcpu>>, Arc<dyn Gic>) {
        let vm = sim.create_vm().unwrap();
        let mut vcpus: Vec<_> = (0..2).map(|id| vm.create_vcpu(id).unwrap()).collect();
        for (powered_off, vcpu) in [false, true].into_iter().zip(&mut vcpus) {
            vcpu.native().init(&VcpuFeatures { powered_off, ..Default::default() }).unwrap();
        }
        let gic = vm.create_gic(&CONFIG).unwrap();
        (vcpus, gic)
    }

    #[test]
    fn a_pending_interrupt_arrives_in_the_machine_that_is_restored() {
        let sim = Sim::new();
        for number in 0..2 {
            sim.program(number, |cpu| {
                let vector = cpu.wait_interrupt();
                cpu.write8(0x1000, vector);
            });
        }
        let (mut first, gic) = machine(&sim);
        gic.pulse(40);
        first[0].native().set_register(RegisterId::x(3), 0x33).unwrap();
        first[0].native().set_events(&PendingEvents { serror: true, serror_syndrome: None }).unwrap();
        let (cpu, mut saved) = (first[0].native().save().unwrap(), gic.save().unwrap());
        assert_eq!(saved.shared.ispendr[..2], [0, 1 << 8]);
        assert_eq!(first[1].native().save().unwrap().mp_state, MpState::PoweredOff);
        // A private interrupt of the other CPU.
        saved.cpus[1].private.ispendr[0] |= 1 << 5;

        let (mut second, gic) = machine(&sim);
        gic.pulse(41);
        second[0].native().restore(&cpu).unwrap();
        second[1].native().restore(&CpuState::default()).unwrap();
        gic.restore(&saved).unwrap();
        assert_eq!(gic.save().unwrap(), saved);
        let value = RegisterState { id: RegisterId::x(3), value: vec![0x33, 0, 0, 0, 0, 0, 0, 0] };
        assert_eq!(second[0].native().save().unwrap(), cpu);
        assert_eq!((cpu.registers, cpu.events.serror), (vec![value], true));
        for (vcpu, vector) in second.iter_mut().zip([72, 5]) {
            match vcpu.run().unwrap() {
                Exit::MmioWrite { data, .. } => assert_eq!(data, [vector]),
                other => panic!("{other:?}"),
            }
        }
        saved.cpus.truncate(1);
        assert!(matches!(gic.restore(&saved), Err(Error::State(_))), "of a machine with one CPU");
    }
}
