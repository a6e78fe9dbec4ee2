//! A driver for a whole device behind its PCI transport, as a guest has one.

use super::ring::{Buffer, DriverRing};
use crate::device::{QueueTask, VirtioDevice};
use crate::features::Features;
use crate::pci_transport::common::register;
use crate::pci_transport::layout::{COMMON, DEVICE, ISR, NOTIFY, NOTIFY_MULTIPLIER, REGISTERS_BAR};
use crate::pci_transport::{Capabilities, Options, VirtioPci, status};
use crate::worker::{Rest, run_until_idle};
use machine::clock::ManualClock;
use machine::effect::DeviceChange;
use machine::interrupt::recording::{Pins, Sources};
use machine::interrupt::{InterruptLine, MsiMessage};
use machine::memory::{Bytes, GuestAddress, Memory};
use machine::metrics::Latency;
use pci::config::command;
use pci::config::register::COMMAND;
use pci::function::Function;
use pci::intx::Intx;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Guest RAM of a test machine: rings in the first quarter, buffers in the rest.
const RAM: u64 = 64 << 20;
const RINGS: u64 = 0x1000;
const BUFFERS: u64 = RAM / 4;

/// How the driver uses the rings.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Packed rings.
    pub packed: bool,
    /// Event indices.
    pub event_idx: bool,
    /// Requests of several buffers go through indirect tables.
    pub indirect: bool,
}

impl Layout {
    /// Every combination.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..8).map(|n| Self { packed: n & 1 != 0, event_idx: n & 2 != 0, indirect: n & 4 != 0 })
    }

    /// The usual one of a Linux guest without packed rings.
    pub const SPLIT: Self = Self { packed: false, event_idx: true, indirect: true };
    /// The same with packed rings.
    pub const PACKED: Self = Self { packed: true, event_idx: true, indirect: true };

    fn features(self) -> Features {
        let mut features = Features::VERSION_1 | Features::RING_RESET;
        features.set(Features::RING_PACKED, self.packed);
        features.set(Features::EVENT_IDX, self.event_idx);
        features.set(Features::INDIRECT_DESC, self.indirect);
        features
    }
}

/// A request that the device finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What [`Driver::request`] returned for it.
    pub id: u16,
    /// How many bytes the device says it wrote.
    pub written: u32,
    /// All writable bytes of the request, whether written or not.
    pub data: Vec<u8>,
}

/// A device, its transport, its running handlers, and a driver for it. Everything happens in the calling thread.
pub struct Driver {
    /// The function.
    pub function: VirtioPci,
    /// Guest memory.
    pub memory: Memory,
    /// The interrupt vectors: the first for configuration changes, then one for each queue.
    pub vectors: Arc<Sources>,
    /// The device's time.
    pub clock: Arc<ManualClock>,
    /// The handlers that run.
    pub tasks: Vec<QueueTask>,
    rings: BTreeMap<u16, DriverRing>,
    /// Buffers that the device writes, by queue and id.
    writable: BTreeMap<(u16, u16), Vec<Buffer>>,
    features: Features,
    next_buffer: u64,
}

impl Driver {
    /// The device behind its transport, untouched by a driver: memory, interrupts and time are made for it.
    ///
    /// # Panics
    /// When the device does not fit a PCI function.
    pub fn attach(device: Box<dyn VirtioDevice>) -> Self {
        Self::attach_with(Arc::new(ManualClock::default()), device)
    }

    /// As [`Self::attach`], with a clock that the device has already.
    ///
    /// # Panics
    /// When the device does not fit a PCI function.
    pub fn attach_with(clock: Arc<ManualClock>, device: Box<dyn VirtioDevice>) -> Self {
        let memory = super::memory(RAM as usize);
        let vectors = Arc::new(Sources::default());
        let capabilities = Capabilities {
            memory: Arc::clone(&memory),
            msi: vectors.clone(),
            intx: Some(Intx::new(InterruptLine::new(Arc::new(Pins::default()), 16))),
            clock: clock.clone(),
        };
        let function = VirtioPci::new(device, Options::default(), capabilities).expect("the device fits");
        Self {
            function,
            memory,
            vectors,
            clock,
            tasks: Vec::new(),
            rings: BTreeMap::new(),
            writable: BTreeMap::new(),
            features: Features::empty(),
            next_buffer: BUFFERS,
        }
    }

    /// The device attached and driven: all of its features and those of `layout` are accepted.
    ///
    /// # Panics
    /// When the device does not work as the specification says.
    pub fn new(device: Box<dyn VirtioDevice>, layout: Layout) -> Self {
        let mut driver = Self::attach(device);
        driver.initialize(layout, u64::MAX);
        driver
    }

    /// Makes the device ready, accepting those of its features that are in `device_features`, and enabling all of its
    /// queues.
    ///
    /// # Panics
    /// When the device does not work as the specification says.
    pub fn initialize(&mut self, layout: Layout, device_features: u64) {
        self.negotiate(layout, device_features);
        for queue in 0..self.read_common(register::NUM_QUEUES, 2) as u16 {
            self.enable_queue(queue);
        }
        self.set_status(status::DRIVER_OK);
        let status = self.status();
        assert_eq!(status & status::DEVICE_NEEDS_RESET, 0, "the device starts");
    }

    /// Resets the device and agrees with it upon features.
    ///
    /// # Panics
    /// When the device does not accept what it offered.
    pub fn negotiate(&mut self, layout: Layout, device_features: u64) {
        self.reset();
        self.write_command(command::MEMORY | command::BUS_MASTER);
        self.enable_vectors();
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::DRIVER);
        let wanted = Features::device_type(device_features) | layout.features().bits();
        let accepted = self.offered_features() & wanted;
        self.accept_features(accepted);
        self.set_status(status::FEATURES_OK);
        assert_ne!(self.status() & status::FEATURES_OK, 0, "the device accepts what it offered");
        self.features = Features::from_bits_retain(accepted);
        self.write_common(register::CONFIG_MSIX_VECTOR, 2, 0);
    }

    /// Writes the PCI command register.
    pub fn write_command(&mut self, value: u16) {
        let change = self.function.config_write(COMMAND, &value.to_le_bytes());
        self.apply(change);
    }

    /// Lays a queue out and enables it.
    pub fn enable_queue(&mut self, queue: u16) {
        let mut size_of = |queue: u16| {
            self.write_common(register::QUEUE_SELECT, 2, queue.into());
            let size = self.read_common(register::QUEUE_SIZE, 2) as u16;
            // Room for the largest ring for each, as long as there are few.
            if queue < 8 { size } else { size.min(256) }
        };
        let before: u64 = (0..queue).map(|queue| DriverRing::footprint(size_of(queue))).sum();
        let size = size_of(queue);
        self.write_common(register::QUEUE_SIZE, 2, size.into());
        let base = RINGS + before;
        assert!(base + DriverRing::footprint(size) <= BUFFERS, "the rings fit in memory");
        let ring = DriverRing::new(&self.memory, base, size, self.features);
        let state = ring.state();
        self.rings.insert(queue, ring);
        self.write_common(register::QUEUE_DESC, 8, state.descriptor_area);
        self.write_common(register::QUEUE_DRIVER, 8, state.driver_area);
        self.write_common(register::QUEUE_DEVICE, 8, state.device_area);
        self.write_common(register::QUEUE_MSIX_VECTOR, 2, u64::from(queue) + 1);
        self.write_common(register::QUEUE_ENABLE, 2, 1);
    }

    /// Enables MSI-X and routes every vector, the `n`th with data `n`.
    fn enable_vectors(&mut self) {
        let count = self.function.config().msix().expect("a virtio function has MSI-X").vectors();
        let capability = self.find_capability(pci::capability::id::MSI_X);
        for vector in 0..u64::from(count) {
            let message = MsiMessage { address: 0xfee0_0000, data: vector as u32, requester: 0 };
            let at = u64::from(crate::pci_transport::layout::MSIX_TABLE) + vector * 16;
            self.write(at, &message.address.to_le_bytes());
            self.write(at + 8, &u64::from(message.data).to_le_bytes());
        }
        self.function.config_write(capability + 2, &0x8000_u16.to_le_bytes());
    }

    fn find_capability(&self, id: u8) -> u16 {
        let config = self.function.config();
        let mut at = config.word(0x34) & 0xff;
        while at != 0 && config.word(at) as u8 != id {
            at = config.word(at) >> 8;
        }
        at
    }

    /// How many interrupts a queue raised since the device was attached.
    pub fn interrupts(&self, queue: u16) -> u64 {
        // Sources are handed out in the order in which vectors were unmasked.
        self.vectors.get(usize::from(queue) + 1).map_or(0, |source| source.fired())
    }

    /// How long the requests of a queue took, if it times them.
    pub fn latency(&self, queue: u16) -> Latency {
        let counters = self.function.queue_counters().get(usize::from(queue));
        Latency::of(counters.and_then(|counters| counters.latency.as_deref()))
    }

    /// How many configuration-change interrupts there were since the device was attached.
    pub fn config_interrupts(&self) -> u64 {
        self.vectors.get(0).map_or(0, |source| source.fired())
    }

    /// Reads BAR 0.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.function.bar_read(REGISTERS_BAR, offset, data);
    }

    /// Writes BAR 0, and does what the device then asks for.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let change = self.function.bar_write(REGISTERS_BAR, offset, data);
        self.apply(change);
    }

    /// Does for the device what the machine does.
    pub fn apply(&mut self, change: Option<DeviceChange>) {
        match change {
            // There is nothing below the function, and no virtio device has a deadline or hears of panics.
            None | Some(DeviceChange::ResetBelow | DeviceChange::Deadline | DeviceChange::Panicked(_)) => {}
            // The test machine has no map that could change.
            Some(DeviceChange::Remap) => {
                let unsettled = self.function.unsettled();
                self.apply(unsettled);
            }
            Some(DeviceChange::Start) => self.start(),
            Some(DeviceChange::Stop) => {
                self.stop();
            }
            Some(DeviceChange::StartQueue(_) | DeviceChange::StopQueue(_)) => {
                let again = self.stop();
                if again {
                    self.start();
                }
            }
            Some(DeviceChange::Reset) => {
                self.stop();
                self.function.reset();
            }
        }
    }

    /// Takes the handlers, if the driver set the device up so that it works.
    pub fn start(&mut self) {
        if let Ok(tasks) = self.function.start() {
            self.tasks.extend(tasks);
        }
    }

    /// Brings the handlers to rest and gives them back, as for a pause. `true`: they are to run again.
    ///
    /// # Panics
    /// When a handler does not come to rest.
    pub fn stop(&mut self) -> bool {
        let mut tasks = std::mem::take(&mut self.tasks);
        for task in &mut tasks {
            let mut patience = 1_000_000;
            while !task.handler.quiesce() {
                patience -= 1;
                assert!(patience > 0, "handler {} comes to rest", task.name);
                std::thread::yield_now();
            }
        }
        self.function.stopped(tasks)
    }

    /// Runs the handlers until they have nothing to do.
    pub fn run(&mut self) -> Rest {
        run_until_idle(&mut self.tasks, &*self.clock)
    }

    /// Runs the handlers until they have nothing to do now or later, moving time forward as far as they want to wait.
    pub fn run_to_the_end(&mut self) {
        while let Rest::Until(time) = self.run() {
            let now = machine::clock::Clock::monotonic_ns(self.clock.as_ref());
            self.clock.advance(Duration::from_nanos(time.saturating_sub(now).max(1)));
        }
    }

    /// Waits until an event source of a handler is readable, and runs the handlers.
    ///
    /// # Panics
    /// When there is none, or it stays silent for ten seconds.
    pub fn wait(&mut self) {
        let sources = self.tasks.iter().flat_map(|task| task.handler.event_sources());
        let mut polled: Vec<_> =
            sources.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
        // SAFETY: the array is as long as it is said to be.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 10_000) };
        assert!(ready > 0 && !polled.is_empty(), "the backend answers");
        self.run_to_the_end();
    }

    /// Reads a field of the common configuration.
    pub fn read_common(&mut self, field: u64, size: usize) -> u64 {
        let mut data = [0; 8];
        self.read(COMMON + field, &mut data[..size]);
        u64::from_le_bytes(data)
    }

    /// Writes a field of the common configuration.
    pub fn write_common(&mut self, field: u64, size: usize, value: u64) {
        self.write(COMMON + field, &value.to_le_bytes()[..size]);
    }

    /// The device status.
    pub fn status(&mut self) -> u8 {
        self.read_common(register::DEVICE_STATUS, 1) as u8
    }

    /// Adds bits to the device status.
    pub fn set_status(&mut self, bits: u8) {
        let status = self.status() | bits;
        self.write_common(register::DEVICE_STATUS, 1, status.into());
    }

    /// Resets the device, and waits for it to be done.
    ///
    /// # Panics
    /// When the status does not become 0.
    pub fn reset(&mut self) {
        self.write_common(register::DEVICE_STATUS, 1, 0);
        assert_eq!(self.status(), 0, "the reset completes");
        self.rings.clear();
        self.writable.clear();
    }

    /// The features the device offers.
    pub fn offered_features(&mut self) -> u64 {
        let mut half = |select| {
            self.write_common(register::DEVICE_FEATURE_SELECT, 4, select);
            self.read_common(register::DEVICE_FEATURE, 4)
        };
        half(0) | half(1) << 32
    }

    /// Writes the features the driver accepts.
    pub fn accept_features(&mut self, features: u64) {
        for select in 0..2 {
            self.write_common(register::DRIVER_FEATURE_SELECT, 4, select);
            self.write_common(register::DRIVER_FEATURE, 4, features >> (32 * select) & 0xffff_ffff);
        }
    }

    /// The features agreed upon.
    pub fn features(&self) -> u64 {
        self.features.bits()
    }

    /// Reads the device's configuration space.
    pub fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        for (at, part) in (offset..).step_by(4).zip(data.chunks_mut(4)) {
            self.read(DEVICE + at, part);
        }
    }

    /// Writes the device's configuration space.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.write(DEVICE + offset, data);
    }

    /// Reads, and so clears, the ISR status.
    pub fn take_isr(&mut self) -> u8 {
        let mut isr = [0];
        self.read(ISR, &mut isr);
        isr[0]
    }

    /// The driver's side of a queue.
    ///
    /// # Panics
    /// When the queue is not enabled.
    pub fn ring(&mut self, queue: u16) -> &mut DriverRing {
        self.rings.get_mut(&queue).expect("the queue is enabled")
    }

    /// Guest memory for a buffer. It is used anew when all of memory was.
    ///
    /// # Panics
    /// When more is asked for than there is.
    pub fn allocate(&mut self, len: u64) -> u64 {
        assert!(len <= RAM - BUFFERS, "the buffer fits in memory");
        if self.next_buffer + len > RAM {
            self.next_buffer = BUFFERS;
        }
        let at = self.next_buffer;
        self.next_buffer = (at + len).next_multiple_of(16);
        at
    }

    /// Makes a request available: what the device reads, and the sizes of what it writes. `None`: the ring is full. The bell is
    /// not rung; see [`Self::kick`].
    pub fn request(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Option<u16> {
        let mut buffers = Vec::new();
        for data in readable {
            let address = self.allocate(data.len() as u64);
            self.memory.write_slice(data, GuestAddress(address)).expect("buffers lie in memory");
            buffers.push(Buffer { address, len: data.len() as u32, writable: false });
        }
        for &len in writable {
            let address = self.allocate(len.into());
            buffers.push(Buffer { address, len, writable: true });
        }
        self.submit(queue, &buffers)
    }

    /// Makes a request of buffers in guest memory available. `None`: the ring is full.
    pub fn submit(&mut self, queue: u16, buffers: &[Buffer]) -> Option<u16> {
        let indirect = self.features.contains(Features::INDIRECT_DESC) && buffers.len() > 1;
        let table = if indirect { self.allocate(buffers.len() as u64 * 16) } else { 0 };
        let ring = self.ring(queue);
        let id = if indirect { ring.add_indirect(table, buffers) } else { ring.add(buffers) }?;
        let writable = buffers.iter().filter(|buffer| buffer.writable).copied().collect();
        self.writable.insert((queue, id), writable);
        Some(id)
    }

    /// Rings a queue's bell if the device wants that. Returns whether it did.
    pub fn kick(&mut self, queue: u16) -> bool {
        let kick = self.ring(queue).take_kick();
        if kick {
            self.write(NOTIFY + u64::from(queue) * u64::from(NOTIFY_MULTIPLIER), &queue.to_le_bytes());
        }
        kick
    }

    /// Takes the next request that the device finished.
    pub fn completion(&mut self, queue: u16) -> Option<Completion> {
        let used = self.ring(queue).take_used()?;
        let mut data = Vec::new();
        for buffer in self.writable.remove(&(queue, used.id)).unwrap_or_default() {
            let start = data.len();
            data.resize(start + buffer.len as usize, 0);
            self.memory
                .read_slice(&mut data[start..], GuestAddress(buffer.address))
                .expect("buffers lie in memory");
        }
        Some(Completion { id: used.id, written: used.written, data })
    }

    /// Makes one request, runs the device until it is finished, and takes the answer.
    ///
    /// # Panics
    /// When there is no room for the request or no answer.
    pub fn call(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Completion {
        let id = self.request(queue, readable, writable).expect("there is room");
        self.kick(queue);
        self.run_to_the_end();
        let completion = loop {
            match self.completion(queue) {
                Some(completion) => break completion,
                None => self.wait(),
            }
        };
        assert_eq!(completion.id, id, "the device answers what it was asked");
        completion
    }
}
