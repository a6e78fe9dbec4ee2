//! CPU threads with CPUs and devices that do as they are told.

use super::*;
use crate::message::Event;
use hypervisor::Result as Answer;
use hypervisor::native::VcpuState;
use hypervisor::{Exit, Kick};
use machine::bus::{BusDevice, Range};
use machine::effect::Effect;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// A CPU that reads a port over and over. Like KVM's, it completes the instruction of an access when it is run again,
/// also if it was kicked.
struct Reader {
    kicked: Arc<AtomicBool>,
    data: [u8; 1],
    within: Arc<AtomicBool>,
}

struct Flag(Arc<AtomicBool>);

impl Kick for Flag {
    fn kick(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Vcpu for Reader {
    fn run(&mut self) -> Answer<Exit<'_>> {
        self.within.store(false, Ordering::SeqCst);
        if self.kicked.swap(false, Ordering::SeqCst) {
            return Ok(Exit::Interrupted);
        }
        self.within.store(true, Ordering::SeqCst);
        Ok(Exit::PortRead { port: 0x80, size: 1, data: &mut self.data })
    }
    fn kick_handle(&self) -> Arc<dyn Kick> {
        Arc::new(Flag(Arc::clone(&self.kicked)))
    }
    fn describe(&self) -> String {
        String::new()
    }
    fn native(&mut self) -> &mut dyn VcpuState {
        unreachable!("the tests look at no registers")
    }
}

/// What CPUs with these ports reach, of a machine that can have four.
fn surroundings(port: BusHandle, mailbox: Mailbox) -> Surroundings {
    let peers = Arc::new(Peers::new(4));
    Surroundings { mmio: BusHandle::default(), port, end_of_interrupt: Arc::new(|_| {}), peers, mailbox }
}

/// Has the CPU paused while it is in this device.
struct Pausing(Arc<Mutex<std::sync::mpsc::Sender<()>>>);

impl BusDevice for Pausing {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {
        let _ = self.0.lock().unwrap().send(());
    }
    fn write(&mut self, _offset: u64, _data: &[u8]) -> Option<Effect> {
        None
    }
}

#[test]
fn a_parked_cpu_is_between_two_instructions() {
    let (inbox, _events) = crate::message::Inbox::new();
    let mailbox = inbox.mailbox(1);
    let port = BusHandle::default();
    let (sender, reads) = std::sync::mpsc::channel();
    let device = Arc::new(Mutex::new(Pausing(Arc::new(Mutex::new(sender)))));
    port.change(|bus| bus.insert(Range { start: 0x80, size: 1 }, device)).unwrap();
    let surroundings = surroundings(port, mailbox);
    let within = Arc::new(AtomicBool::new(false));
    let vcpu = Reader { kicked: Arc::default(), data: [0], within: Arc::clone(&within) };
    let mut cpu = CpuThread::start(0, Box::new(vcpu), surroundings, || {}).unwrap();
    for _ in 0..100 {
        cpu.resume();
        reads.recv().unwrap();
        cpu.pause();
        assert!(cpu.wait_parked());
        assert!(!within.load(Ordering::SeqCst), "its registers are still to be changed by an access");
    }
    cpu.end();
}

/// A CPU that writes a string to a port, and then goes on until it is kicked.
struct Writer {
    kicked: Arc<AtomicBool>,
    written: bool,
}

impl Vcpu for Writer {
    fn run(&mut self) -> Answer<Exit<'_>> {
        static WRITTEN: [u8; 4] = [3, 1, 0, 2];
        if !std::mem::replace(&mut self.written, true) {
            return Ok(Exit::PortWrite { port: 0x80, size: 1, data: &WRITTEN });
        }
        while !self.kicked.swap(false, Ordering::SeqCst) {
            std::thread::yield_now();
        }
        Ok(Exit::Interrupted)
    }
    fn kick_handle(&self) -> Arc<dyn Kick> {
        Arc::new(Flag(Arc::clone(&self.kicked)))
    }
    fn describe(&self) -> String {
        String::new()
    }
    fn native(&mut self) -> &mut dyn VcpuState {
        unreachable!("the test looks at no registers")
    }
}

/// Lets go of the CPU of the number written, if it is not 0.
struct Ejecting;

impl BusDevice for Ejecting {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}
    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<Effect> {
        (data[0] != 0).then(|| Effect::EjectCpu(data[0].into()))
    }
}

#[test]
fn each_access_of_a_string_instruction_has_its_effect() {
    let (inbox, events) = crate::message::Inbox::new();
    let port = BusHandle::default();
    port.change(|bus| bus.insert(Range { start: 0x80, size: 1 }, Arc::new(Mutex::new(Ejecting)))).unwrap();
    let surroundings = surroundings(port, inbox.mailbox(1));
    let vcpu = Writer { kicked: Arc::default(), written: false };
    let mut cpu = CpuThread::start(0, Box::new(vcpu), surroundings, || {}).unwrap();
    cpu.resume();
    let mut told = Vec::new();
    while told.len() < 3 {
        if let Event::Machine { message: Message::Effect { effect, .. }, .. } = events.recv().unwrap() {
            told.push(effect);
        }
    }
    assert_eq!(told, [3, 1, 2].map(Effect::EjectCpu));
    assert!(cpu.wait_parked());
    for left in [2, 1, 0] {
        cpu.effect_done();
        assert_eq!(cpu.inspect()["effects"], left);
    }
    cpu.end();
}
