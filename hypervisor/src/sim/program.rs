//! The guest's side of a simulated CPU: its instructions, and the thread its program runs on.

use super::Program;
use super::lane::{Lane, Step};
use crate::{CpuAnswer, CpuStart, SystemEvent};
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A CPU, as its program sees it.
pub struct SimCpu<'a> {
    id: u32,
    lane: &'a Lane,
}

/// What a program unwinds with when its CPU is gone or starts anew.
struct Stopped;

impl SimCpu<'_> {
    /// The CPU's id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Reads a byte from a port.
    pub fn port_read8(&mut self, port: u16) -> u8 {
        self.port_read(port, 1) as u8
    }

    /// Reads two bytes from a port.
    pub fn port_read16(&mut self, port: u16) -> u16 {
        self.port_read(port, 2) as u16
    }

    /// Reads four bytes from a port.
    pub fn port_read32(&mut self, port: u16) -> u32 {
        self.port_read(port, 4)
    }

    /// Writes a byte to a port.
    pub fn port_write8(&mut self, port: u16, value: u8) {
        self.step(Step::PortWrite { port, data: value.to_le_bytes().to_vec() });
    }

    /// Writes two bytes to a port.
    pub fn port_write16(&mut self, port: u16, value: u16) {
        self.step(Step::PortWrite { port, data: value.to_le_bytes().to_vec() });
    }

    /// Writes four bytes to a port.
    pub fn port_write32(&mut self, port: u16, value: u32) {
        self.step(Step::PortWrite { port, data: value.to_le_bytes().to_vec() });
    }

    /// Loads a byte.
    pub fn read8(&mut self, address: u64) -> u8 {
        u8::from_le_bytes(self.load(address))
    }

    /// Loads two bytes.
    pub fn read16(&mut self, address: u64) -> u16 {
        u16::from_le_bytes(self.load(address))
    }

    /// Loads four bytes.
    pub fn read32(&mut self, address: u64) -> u32 {
        u32::from_le_bytes(self.load(address))
    }

    /// Loads eight bytes.
    pub fn read64(&mut self, address: u64) -> u64 {
        u64::from_le_bytes(self.load(address))
    }

    /// Stores a byte.
    pub fn write8(&mut self, address: u64, value: u8) {
        self.write(address, &value.to_le_bytes());
    }

    /// Stores two bytes.
    pub fn write16(&mut self, address: u64, value: u16) {
        self.write(address, &value.to_le_bytes());
    }

    /// Stores four bytes.
    pub fn write32(&mut self, address: u64, value: u32) {
        self.write(address, &value.to_le_bytes());
    }

    /// Stores eight bytes.
    pub fn write64(&mut self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    /// Loads any number of bytes from RAM; outside of RAM, in exits of up to eight bytes.
    pub fn read(&mut self, address: u64, data: &mut [u8]) {
        let bytes = self.step(Step::Load { address, length: data.len() });
        data.copy_from_slice(&bytes);
    }

    /// Stores any number of bytes to RAM; outside of RAM, in exits of up to eight bytes.
    pub fn write(&mut self, address: u64, data: &[u8]) {
        self.step(Step::Store { address, data: data.to_vec() });
    }

    /// Waits until an interrupt is pending.
    pub fn halt(&mut self) {
        self.step(Step::Halt);
    }

    /// Takes the highest pending interrupt vector, if any.
    pub fn interrupt(&mut self) -> Option<u8> {
        self.step(Step::TakeInterrupt).first().copied()
    }

    /// Halts until there is an interrupt, and takes it.
    pub fn wait_interrupt(&mut self) -> u8 {
        loop {
            if let Some(vector) = self.interrupt() {
                return vector;
            }
            self.halt();
        }
    }

    /// Tells the local APIC that the handler of `vector` is done. Exits if the interrupt was level-triggered.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        self.step(Step::EndOfInterrupt { vector });
    }

    /// Sends an interrupt to a CPU.
    pub fn send_interrupt(&mut self, cpu: u32, vector: u8) {
        self.step(Step::SendInterrupt { cpu, vector });
    }

    /// Starts another CPU at the beginning of its program.
    pub fn start_cpu(&mut self, cpu: u32) -> CpuAnswer {
        self.start_cpu_at(cpu, CpuStart::default())
    }

    /// As [`SimCpu::start_cpu`], with what the CPU's registers are to hold.
    pub fn start_cpu_at(&mut self, cpu: u32, start: CpuStart) -> CpuAnswer {
        self.step(Step::StartCpu { cpu, start });
        self.answer()
    }

    /// Whether any of these CPUs is on.
    pub fn cpu_state(&mut self, cpus: Range<u32>) -> CpuAnswer {
        self.step(Step::CpuState { cpus });
        self.answer()
    }

    /// Stops this CPU, until another one starts it. Does not return.
    pub fn stop_cpu(&mut self) {
        self.step(Step::StopCpu);
    }

    /// What the firmware answered.
    fn answer(&self) -> CpuAnswer {
        self.lane.change(|state| state.answer.take()).unwrap_or(CpuAnswer::NoSuchCpu)
    }

    /// Faults beyond help.
    pub fn triple_fault(&mut self) {
        self.step(Step::TripleFault);
    }

    /// Asks the firmware for something, as an Arm guest does by PSCI. What ends or restarts the machine does not return.
    pub fn ask_firmware(&mut self, event: SystemEvent) {
        self.step(Step::System(event));
    }

    /// Lets time pass on the machine's clock.
    pub fn advance(&mut self, by: Duration) {
        self.step(Step::Advance { ns: u64::try_from(by.as_nanos()).unwrap_or(u64::MAX) });
    }

    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        let mut value = [0; 4];
        let bytes = self.step(Step::PortRead { port, size });
        value.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        u32::from_le_bytes(value)
    }

    fn load<const N: usize>(&mut self, address: u64) -> [u8; N] {
        let mut data = [0; N];
        self.read(address, &mut data);
        data
    }

    /// Has the CPU perform a step, and waits for what it comes to.
    fn step(&mut self, step: Step) -> Vec<u8> {
        self.lane.change(|state| state.step = Some(step));
        let result = self.lane.wait(|state| match state.result.take() {
            _ if state.stopped => Some(None),
            result => result.map(Some),
        });
        // Not a panic: there is nothing to report.
        result.unwrap_or_else(|| resume_unwind(Box::new(Stopped)))
    }
}

/// A program under way. Ends it when dropped.
pub(super) struct Running {
    lane: Arc<Lane>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts `program` on a thread of its own.
    pub(super) fn start(id: u32, program: Program, lane: Arc<Lane>) -> std::io::Result<Self> {
        lane.change(|state| {
            state.stopped = false;
            state.step = None;
            state.result = None;
        });
        let thread = std::thread::Builder::new().name(format!("sim-cpu{id}")).spawn({
            let lane = Arc::clone(&lane);
            move || {
                let mut cpu = SimCpu { id, lane: &lane };
                let panic = match catch_unwind(AssertUnwindSafe(|| program(&mut cpu))) {
                    Ok(()) => None,
                    Err(payload) if payload.is::<Stopped>() => return,
                    Err(payload) => Some(message(&*payload)),
                };
                lane.change(|state| state.step = Some(Step::Ended { panic }));
            }
        })?;
        Ok(Self { lane, thread: Some(thread) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.lane.change(|state| state.stopped = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a panic said.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".to_owned())
}
