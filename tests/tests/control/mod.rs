//! A machine thread on the simulated backend, to be called by tests.
#![allow(dead_code, reason = "each test takes what it needs")]

pub mod instructions;

use hypervisor::sim::{Sim, SimCpu};
use instructions::{read8, read32, write32};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use vivarium_tests::host::Folder;
use vivarium_tests::registers::Register;
use vivarium_tests::{native, tiny_kernel};
use vmm::api::request::{AddDevice, Inspect, Opening, RemoveDevice, VmState};
use vmm::api::{Answer, Call, ErrorKind, Interest, Reply, Request};
use vmm::config::{ByteSize, DeviceConfig, DiskConfig, VmConfig};
use vmm::event;
use vmm::machine::Ended;
use vmm::message::{Event, Inbox, Inquiry};
use vmm::monitor::{Limits, Monitor};

/// A call that takes longer has been forgotten, or waits for itself.
pub const STUCK: Duration = Duration::from_secs(60);

/// A machine thread, and a way to call it.
pub struct Control {
    inbox: Inbox,
    events: Receiver<Arc<event::Event>>,
    pub thread: JoinHandle<Ended>,
}

impl Control {
    /// Without a machine.
    pub fn start(sim: &Arc<Sim>) -> Self {
        Self::start_with(sim, Limits::default())
    }

    /// Without a machine, and with other limits than a person has.
    pub fn start_with(sim: &Arc<Sim>, limits: Limits) -> Self {
        let (sender, receiver) = channel();
        let (told, events) = channel();
        let sim = Arc::clone(sim);
        let thread = std::thread::spawn(move || {
            let mut monitor = Monitor::new(sim as _).unwrap();
            monitor.limit(limits);
            monitor.events().listen(None, Box::new(move |event| told.send(Arc::clone(event)).is_ok()));
            sender.send(monitor.inbox()).unwrap();
            monitor.run().unwrap()
        });
        Self { inbox: receiver.recv().unwrap(), events, thread }
    }

    /// A machine of `config`, running.
    pub fn boot(sim: &Arc<Sim>, config: Box<VmConfig>) -> Self {
        let control = Self::start(sim);
        control.done(Request::Create(config));
        control.done(Request::Boot);
        control
    }

    /// The part of the live tree at `path`.
    pub fn inspect(&self, path: &str) -> serde_json::Value {
        match self.call(Request::Inspect(Inspect { path: path.into() })) {
            Ok(Reply::Json(tree)) => tree,
            other => panic!("{path}: {other:?}"),
        }
    }

    pub fn begin(&self, request: Request) -> Receiver<Answer> {
        self.begin_for(request, Interest::default())
    }

    /// For somebody who may lose interest.
    pub fn begin_for(&self, request: Request, interest: Interest) -> Receiver<Answer> {
        let (sender, receiver) = channel();
        let respond = Box::new(move |answer| drop(sender.send(answer)));
        self.inbox.tell(Event::Call(Call { request, files: Vec::new(), respond, interest }));
        receiver
    }

    pub fn call(&self, request: Request) -> Answer {
        let name = format!("{request:?}");
        self.begin(request).recv_timeout(STUCK).unwrap_or_else(|_| panic!("{name} was never answered"))
    }

    pub fn done(&self, request: Request) {
        let name = format!("{request:?}");
        let answer = self.call(request);
        assert!(answer.is_ok(), "{name}: {answer:?}");
    }

    /// Has a debugger's request done on the machine thread.
    pub fn inquire(&self, inquiry: Inquiry) {
        self.inbox.tell(Event::Debugger(inquiry));
    }

    pub fn info(&self) -> serde_json::Value {
        match self.call(Request::Info) {
            Ok(Reply::Json(info)) => info,
            other => panic!("{other:?}"),
        }
    }

    pub fn state(&self) -> VmState {
        serde_json::from_value(self.info()["state"].clone()).unwrap()
    }

    pub fn disks(&self) -> BTreeSet<String> {
        let info = self.info();
        info["config"]["disks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|disk| disk["id"].as_str().unwrap().into())
            .collect()
    }

    /// Waits until an event of that name is told, and returns what it tells.
    pub fn wait_for(&self, name: &str) -> serde_json::Value {
        loop {
            let event = self.events.recv_timeout(STUCK).unwrap_or_else(|_| panic!("{name} never came"));
            if event.event == name {
                return serde_json::to_value(&event.properties).unwrap();
            }
        }
    }

    pub fn end(self) -> Ended {
        self.done(Request::VmmShutdown);
        self.thread.join().unwrap()
    }
}

pub fn kind(answer: Answer) -> ErrorKind {
    answer.unwrap_err().kind
}

pub fn config(folder: &Folder) -> Box<VmConfig> {
    let kernel = folder.join("kernel");
    // Once: a machine that restarts may be reading it.
    if !kernel.exists() {
        std::fs::write(&kernel, tiny_kernel::bytes()).unwrap();
    }
    let mut config = VmConfig::default();
    config.payload.kernel = Some(kernel);
    config.memory.size = ByteSize(64 << 20);
    // On Arm nothing comes and goes without.
    config.platform.acpi = Some(true);
    Box::new(config)
}

pub fn disk(path: PathBuf, id: &str) -> Request {
    let id = Some(id.to_owned());
    add(DiskConfig { path: Some(path), id, ..DiskConfig::default() })
}

/// Adds a device.
pub fn add(device: impl Into<DeviceConfig>) -> Request {
    Request::Add(AddDevice { device: device.into(), opening: Opening::default() })
}

pub fn remove(id: &str, force: bool, timeout_ms: u64) -> Request {
    Request::RemoveDevice(RemoveDevice { id: id.into(), force, timeout_ms: Some(timeout_ms) })
}

// The PCI hotplug controller's registers.

pub fn down() -> Register {
    native().pci_hotplug().after(8)
}

pub fn eject() -> Register {
    native().pci_hotplug().after(12)
}

/// Releases what it is asked for, for ever.
pub fn obey(cpu: &mut SimCpu<'_>) {
    loop {
        release(cpu);
        // Those who wait for it need the host's CPU.
        std::thread::yield_now();
    }
}

/// Releases what it is asked for, once.
pub fn release(cpu: &mut SimCpu<'_>) {
    let devices = read32(cpu, down());
    if devices != 0 {
        write32(cpu, eject(), devices);
    }
}

/// Releases what devices, CPUs and memory it is asked for, and takes what came, once. `before` is called before each access.
pub fn release_all(cpu: &mut SimCpu<'_>, before: impl Fn(&mut SimCpu<'_>)) {
    // Registers of the controllers of CPUs and of memory.
    const STATUS: u16 = 4;
    const NEXT: u16 = 8;
    const CAME: u32 = 2;
    const GOING: u32 = 4;
    const LET_GO: u32 = 8;
    let read = |cpu: &mut SimCpu<'_>, register| {
        before(cpu);
        read32(cpu, register)
    };
    let write = |cpu: &mut SimCpu<'_>, register, value| {
        before(cpu);
        write32(cpu, register, value);
    };
    let devices = read(cpu, down());
    if devices != 0 {
        write(cpu, eject(), devices);
    }
    for controller in [native().cpu_hotplug(), native().memory_hotplug()] {
        let number = read(cpu, controller.after(NEXT));
        if number != u32::MAX {
            write(cpu, controller, number);
            let status = read(cpu, controller.after(STATUS));
            let answer = if status & GOING == 0 { 0 } else { LET_GO };
            write(cpu, controller.after(STATUS), status & (CAME | GOING) | answer);
        }
    }
}

pub fn ignore(cpu: &mut SimCpu<'_>) {
    loop {
        idle(cpu);
        std::thread::yield_now();
    }
}

/// An access without effect.
pub fn idle(cpu: &mut SimCpu<'_>) {
    read8(cpu, native().idle());
}

/// Random numbers that a seed decides.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
