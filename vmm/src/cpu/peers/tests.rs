//! CPUs of the simulated hypervisor that start and stop each other.

use super::super::{CpuThread, Surroundings};
use super::Peers;
use crate::message::{Event, Inbox, Message};
use hypervisor::sim::{Sim, SimCpu};
use hypervisor::{CpuAnswer, CpuCall, CpuStart, Hypervisor, Vcpu};
use machine::bus::BusHandle;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier, Mutex};

/// How many CPUs there can be.
const LIMIT: u32 = 4;

/// CPUs that ask the monitor to start each other, of which CPU 0 is on.
struct Rig {
    vcpus: Vec<Box<dyn Vcpu>>,
    surroundings: Surroundings,
    events: Receiver<Event>,
}

impl Rig {
    fn new(sim: &Sim) -> Self {
        let vm = sim.create_vm().unwrap();
        assert!(vm.forward_cpu_calls().unwrap());
        let vcpus = (0..LIMIT).map(|id| vm.create_vcpu(id).unwrap()).collect();
        let (inbox, events) = Inbox::new();
        let surroundings = Surroundings {
            mmio: BusHandle::default(),
            port: BusHandle::default(),
            end_of_interrupt: Arc::new(|_| {}),
            peers: Arc::new(Peers::new(LIMIT)),
            mailbox: inbox.mailbox(1),
        };
        Self { vcpus, surroundings, events }
    }

    /// The threads of all CPUs, which know each other, paused.
    fn start(&mut self) -> Vec<CpuThread> {
        let start = |(id, vcpu)| CpuThread::start(id, vcpu, self.surroundings.clone(), || {}).unwrap();
        let threads: Vec<_> = (0..).zip(self.vcpus.drain(..)).map(start).collect();
        (0..).zip(&threads).for_each(|(id, thread)| thread.meet(id, &self.surroundings.peers));
        threads
    }

    fn peers(&self) -> &Peers {
        &self.surroundings.peers
    }
}

fn start(cpu: u32) -> CpuCall {
    CpuCall::Start { cpu: Some(cpu), start: CpuStart::default() }
}

fn wait_until_off(cpu: &mut SimCpu<'_>, other: u32) {
    while cpu.cpu_state(other..other + 1) != CpuAnswer::Off {}
}

#[test]
fn of_cpus_that_start_the_same_one_one_does() {
    const ROUNDS: usize = 200;
    const TARGET: u32 = 3;
    let sim = Sim::new();
    let (answers, told) = channel();
    let together = Arc::new(Barrier::new(3));
    for id in 0..3 {
        let (answers, together) = (Mutex::new(answers.clone()), Arc::clone(&together));
        sim.program(id, move |cpu| {
            if id == 0 {
                assert_eq!([1, 2].map(|other| cpu.start_cpu(other)), [CpuAnswer::Starts; 2]);
            }
            for _ in 0..ROUNDS {
                wait_until_off(cpu, TARGET);
                together.wait();
                answers.lock().unwrap().send(cpu.start_cpu(TARGET)).unwrap();
                together.wait();
            }
        });
    }
    // What has run and stops is started again.
    let (ran, runs) = channel();
    let (ran, goes) = (Mutex::new(ran), Arc::new(Barrier::new(2)));
    let stops = Arc::clone(&goes);
    sim.program(TARGET, move |cpu| {
        ran.lock().unwrap().send(()).unwrap();
        stops.wait();
        cpu.stop_cpu();
    });
    let mut rig = Rig::new(&sim);
    let threads = rig.start();
    threads.iter().for_each(CpuThread::resume);
    for round in 0..ROUNDS {
        let answers: Vec<_> = told.iter().take(3).collect();
        let count = |wanted| answers.iter().filter(|answer| **answer == wanted).count();
        assert_eq!((count(CpuAnswer::Starts), count(CpuAnswer::AlreadyOn)), (1, 2), "{round}: {answers:?}");
        runs.recv().unwrap();
        goes.wait();
    }
    assert!(runs.try_recv().is_err(), "once for each time that it was started");
}

#[test]
fn a_cpu_that_is_not_there_is_told_from_one_that_never_is() {
    let mut rig = Rig::new(&Sim::new());
    let peers = Arc::clone(&rig.surroundings.peers);
    let ask = |cpus| peers.answer(CpuCall::State { cpus });
    assert_eq!([0, 3, 4, u32::MAX].map(|cpu| peers.answer(start(cpu))), {
        use CpuAnswer::{Absent, NoSuchCpu};
        [Absent, Absent, NoSuchCpu, NoSuchCpu]
    });
    let unknown = CpuCall::Start { cpu: None, start: CpuStart::default() };
    assert_eq!(peers.answer(unknown), CpuAnswer::NoSuchCpu);
    assert_eq!([0..1, 3..4, 4..5, 0..0, 0..u32::MAX].map(ask), {
        use CpuAnswer::{NoSuchCpu, Off};
        [Off, Off, NoSuchCpu, NoSuchCpu, Off]
    });
    let mut threads = rig.start();
    assert_eq!([0..1, 1..2, 1..4, 0..4].map(ask), {
        use CpuAnswer::{Off, On};
        [On, Off, Off, On]
    });
    assert_eq!([0, 3].map(|cpu| peers.answer(start(cpu))), [CpuAnswer::AlreadyOn, CpuAnswer::Starts]);
    assert_eq!((ask(3..4), peers.answer(start(3))), (CpuAnswer::On, CpuAnswer::AlreadyOn));
    // One that ends runs no more, and one that was taken away is not there.
    threads[1].end();
    peers.remove(2);
    assert_eq!([1, 2].map(|cpu| peers.answer(start(cpu))), [CpuAnswer::Absent; 2]);
}

#[test]
fn a_cpu_that_is_paused_is_started_and_runs_when_it_goes_on() {
    let sim = Sim::new();
    let (ran, runs) = channel();
    let ran = Mutex::new(ran);
    sim.program(1, move |_| ran.lock().unwrap().send(()).unwrap());
    let mut rig = Rig::new(&sim);
    let threads = rig.start();
    let is_off = |cpu: &CpuThread| cpu.call(|vcpu| vcpu.is_off()).unwrap();
    assert!(is_off(&threads[1]) && threads[1].inspect()["off"] == true);
    assert_eq!(rig.peers().answer(start(1)), CpuAnswer::Starts);
    assert!(!is_off(&threads[1]) && threads[1].inspect()["off"] == false);
    assert!(threads[1].wait_parked() && runs.try_recv().is_err());
    threads[1].resume();
    runs.recv().unwrap();
}

#[test]
fn a_cpu_that_is_off_is_parked_and_a_task_may_turn_it_off() {
    let sim = Sim::new();
    sim.program(0, |cpu| cpu.stop_cpu());
    let mut rig = Rig::new(&sim);
    let threads = rig.start();
    threads.iter().for_each(CpuThread::resume);
    // The first runs before it stops.
    while rig.peers().answer(CpuCall::State { cpus: 0..LIMIT }) != CpuAnswer::Off {
        std::thread::yield_now();
    }
    assert!(
        threads.iter().all(CpuThread::wait_parked),
        "one that stopped, and those that were never started"
    );
    assert_eq!(rig.peers().answer(start(0)), CpuAnswer::Starts);
    // It stops again.
    while rig.peers().answer(CpuCall::State { cpus: 0..1 }) != CpuAnswer::Off {
        std::thread::yield_now();
    }
    threads[1].call(|vcpu| vcpu.start(&CpuStart::default())).unwrap().unwrap();
    assert_eq!(rig.peers().answer(start(1)), CpuAnswer::AlreadyOn);
}

/// A CPU that is off when it is said to be, and can be started or not.
struct Switched {
    cpu: Box<dyn Vcpu>,
    off: Arc<AtomicBool>,
    starts: bool,
}

impl Vcpu for Switched {
    fn run(&mut self) -> hypervisor::Result<hypervisor::Exit<'_>> {
        unreachable!("it stays paused")
    }
    fn is_off(&self) -> bool {
        self.off.load(Ordering::SeqCst)
    }
    fn start(&mut self, _: &CpuStart) -> hypervisor::Result<()> {
        if !self.starts {
            let source = std::io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(hypervisor::Error::Vcpu { id: 1, what: "set the CPU's features", source });
        }
        self.off.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn kick_handle(&self) -> Arc<dyn hypervisor::Kick> {
        self.cpu.kick_handle()
    }
    fn describe(&self) -> String {
        self.cpu.describe()
    }
    fn native(&mut self) -> &mut dyn hypervisor::native::VcpuState {
        self.cpu.native()
    }
}

/// CPUs of which CPU 1 is off.
fn switched(starts: bool) -> (Rig, Arc<AtomicBool>) {
    let mut rig = Rig::new(&Sim::new());
    let off = Arc::new(AtomicBool::new(true));
    let cpu = rig.vcpus.remove(1);
    rig.vcpus.insert(1, Box::new(Switched { cpu, off: Arc::clone(&off), starts }));
    (rig, off)
}

#[test]
fn what_was_done_to_a_cpu_counts_when_it_is_told() {
    let (mut rig, off) = switched(true);
    let threads = rig.start();
    for _ in 0..1000 {
        assert_eq!(rig.peers().answer(start(1)), CpuAnswer::Starts);
        let off = Arc::clone(&off);
        threads[1].call(move |_| off.store(true, Ordering::SeqCst)).unwrap();
    }
}

#[test]
fn a_cpu_that_the_host_does_not_start_fails_the_machine() {
    let (mut rig, _) = switched(false);
    let threads = rig.start();
    assert_eq!(rig.peers().answer(start(1)), CpuAnswer::Starts);
    let failure = rig.events.iter().find_map(|event| match event {
        Event::Machine { message: Message::CpuFailed { failure, .. }, .. } => Some(failure.to_string()),
        _ => None,
    });
    assert!(failure.unwrap().contains("CPU 1 cannot go on: "), "names the CPU");
    assert!(threads[1].wait_parked());
}
