//! The interrupt controller and the CPUs of an Arm machine on the host's `/dev/kvm`: what is saved of one machine is there in
//! another. The guests are a few instructions; what a driver would keep in tables is made here.

#![cfg(target_arch = "aarch64")]

use hypervisor::aarch64::{
    CpuState, Gic, GicConfig, GicState, MpState, PendingEvents, RegisterId, VcpuFeatures, VcpuState,
};
use hypervisor::kvm::{DEFAULT_PATH, Kvm};
use hypervisor::{Error, Exit, Hypervisor, MemorySlot, Vcpu, Vm};
use machine::interrupt::{MsiMessage, MsiSource};
use machine::state::{SavedFields, SavedState};
use std::path::Path;
use std::sync::Arc;

const CONFIG: GicConfig = GicConfig {
    distributor: 0x800_0000,
    redistributors: 0x1000_0000,
    first_its: 0x808_0000,
    its_count: 2,
    cpus: 2,
    spis: 64,
};

const RAM: u64 = 1 << 30;
const RAM_SIZE: usize = 4 << 20;
/// Where guests tell of interrupts that they took: nothing is there, so a write exits.
const REPORT: u64 = 0x900_0000;

// Offsets in RAM.
const SETTER: usize = 0;
const TAKER: usize = 0x1000;
const WRITES: usize = 0x1_0000;
/// Priorities of message-signalled interrupts, a byte each from [`FIRST_LPI`] on.
const PRIORITIES: usize = 0x2_0000;
/// Which of them are pending, for each CPU.
const PENDING: [usize; 2] = [0x4_0000, 0x5_0000];
/// What each translation service has: devices, collections, commands, and the device's interrupts.
const TABLES: [usize; 2] = [0x10_0000, 0x20_0000];
const COLLECTIONS: usize = 0x1_0000;
const COMMANDS: usize = 0x2_0000;
const INTERRUPTS: usize = 0x3_0000;

const FIRST_LPI: u32 = 8192;
/// The requester whose messages the translation services know: the same in two PCI segments.
const REQUESTER: u16 = 0x10;

/// Lets all priorities but the lowest in, performs the writes in the list that `x3` points to, and reports 0. An entry is an
/// address and a value; one with an odd address writes 64 bits, others 32, and address 0 ends the list.
const SETTER_CODE: [u32; 14] = [
    0x5280_1e02, // mov w2, #0xf0
    0xd518_4602, // msr icc_pmr_el1, x2
    0x5280_0022, // mov w2, #1
    0xd518_cce2, // msr icc_igrpen1_el1, x2
    0xa8c1_1464, // next: ldp x4, x5, [x3], #16
    0xb400_00e4, // cbz x4, end
    0x3700_0064, // tbnz w4, #0, wide
    0xb900_0085, // str w5, [x4]
    0x17ff_fffc, // b next
    0xd100_0484, // wide: sub x4, x4, #1
    0xf900_0085, // str x5, [x4]
    0x17ff_fff9, // b next
    0xb900_001f, // end: str wzr, [x0]
    0x17ff_ffff, // b end
];

/// Takes interrupts, and reports the number of each before it ends it. It waits for them with interrupts masked, so it needs no
/// exception vectors.
const TAKER_CODE: [u32; 8] = [
    0xd503_207f, // again: wfi
    0xd538_cc01, // mrs x1, icc_iar1_el1
    0x5280_7fe2, // mov w2, #1023, which stands for none
    0x6b02_003f, // cmp w1, w2
    0x54ff_ff80, // b.eq again
    0xb900_0001, // str w1, [x0]
    0xd518_cc21, // msr icc_eoir1_el1, x1
    0x17ff_fff9, // b again
];

/// A machine. Memory goes last.
struct Machine {
    vcpus: Vec<Box<dyn Vcpu>>,
    gic: Arc<dyn Gic>,
    vm: Arc<dyn Vm>,
    memory: Memory,
}

struct Memory(*mut u8);

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped below with this size.
        unsafe { libc::munmap(self.0.cast(), RAM_SIZE) };
    }
}

impl Memory {
    fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), RAM_SIZE, access, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED);
        Self(address.cast())
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= RAM_SIZE);
        // SAFETY: within the mapping; the guest is not running.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(offset), bytes.len()) };
    }

    fn write_words(&self, offset: usize, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(offset, &bytes);
    }

    fn contents(&self) -> Vec<u8> {
        let mut contents = vec![0; RAM_SIZE];
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(self.0, contents.as_mut_ptr(), RAM_SIZE) };
        contents
    }
}

impl Machine {
    fn new() -> Self {
        let kvm =
            Kvm::open(Path::new(DEFAULT_PATH)).unwrap_or_else(|error| panic!("this test needs KVM: {error}"));
        let vm = kvm.create_vm().unwrap();
        let memory = Memory::new();
        let slot = MemorySlot {
            slot: 0,
            guest_address: RAM,
            size: RAM_SIZE as u64,
            host_address: memory.0,
            readonly: false,
            log_dirty: false,
        };
        // SAFETY: `Machine` unmaps after the machine is gone.
        unsafe { vm.map_memory(slot) }.unwrap();
        let mut vcpus: Vec<_> = (0..CONFIG.cpus).map(|id| vm.create_vcpu(id).unwrap()).collect();
        for vcpu in &mut vcpus {
            vcpu.native().init(&VcpuFeatures::default()).unwrap();
        }
        let gic = vm.create_gic(&CONFIG).unwrap();
        let words = |code: &[u32]| code.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        memory.write(SETTER, &words(&SETTER_CODE));
        memory.write(TAKER, &words(&TAKER_CODE));
        Self { vcpus, gic, vm, memory }
    }

    fn cpu(&mut self, number: usize) -> &mut dyn VcpuState {
        self.vcpus[number].native()
    }

    fn start(&mut self, number: usize, code: usize, list: usize) {
        let cpu = self.cpu(number);
        cpu.set_register(RegisterId::PC, RAM + code as u64).unwrap();
        cpu.set_register(RegisterId::x(0), REPORT).unwrap();
        cpu.set_register(RegisterId::x(3), RAM + list as u64).unwrap();
    }

    /// Runs a CPU until it reports a number.
    fn report(&mut self, number: usize) -> u32 {
        match self.vcpus[number].run().unwrap() {
            Exit::MmioWrite { address: REPORT, data } => {
                u32::from_le_bytes(data.as_ref().try_into().unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Has a CPU complete what it exited for.
    fn complete(&mut self, number: usize) {
        self.vcpus[number].kick_handle().kick();
        assert!(matches!(self.vcpus[number].run().unwrap(), Exit::Interrupted));
    }

    /// Has a CPU perform writes to registers, of 64 bits where the address is odd, in their order.
    fn perform(&mut self, number: usize, writes: &[(u64, u64)]) {
        let words: Vec<_> =
            writes.iter().flat_map(|&(address, value)| [address, value]).chain([0, 0]).collect();
        self.memory.write_words(WRITES, &words);
        self.start(number, SETTER, WRITES);
        assert_eq!(self.report(number), 0);
        self.complete(number);
    }

    /// A source of messages with this event number, in a PCI segment.
    fn source(&self, segment: u64, event: u32) -> Arc<dyn MsiSource> {
        /// GITS_TRANSLATER.
        const TRANSLATER: u64 = 0x1_0040;
        let address = CONFIG.first_its + segment * GicConfig::ITS_SIZE + TRANSLATER;
        let source = self.vm.allocate().unwrap();
        source.route(Some(MsiMessage { address, data: event, requester: REQUESTER })).unwrap();
        source
    }
}

/// Writes 64 bits to this register.
fn wide(address: u64) -> u64 {
    address | 1
}

fn redistributor(cpu: u64) -> u64 {
    CONFIG.redistributors + cpu * GicConfig::REDISTRIBUTOR_SIZE
}

/// Commands of a translation service (GIC architecture, 5.3).
mod command {
    use super::REQUESTER;

    const VALID: u64 = 1 << 63;

    /// MAPD: the device has two interrupts, and its table is there.
    pub fn map_device(table: u64) -> [u64; 4] {
        [8 | u64::from(REQUESTER) << 32, 0, VALID | table, 0]
    }

    /// MAPC: a collection goes to the CPU of the same number.
    pub fn map_collection(number: u64) -> [u64; 4] {
        [9, 0, VALID | number << 16 | number, 0]
    }

    /// MAPTI: an event of the device is an interrupt, and in a collection.
    pub fn map_event(event: u64, interrupt: u32, collection: u64) -> [u64; 4] {
        [10 | u64::from(REQUESTER) << 32, event | u64::from(interrupt) << 32, collection, 0]
    }

    /// INT: as if the device had sent the message.
    pub fn interrupt(event: u64) -> [u64; 4] {
        [3 | u64::from(REQUESTER) << 32, event, 0, 0]
    }
}

/// The writes that have a translation service perform commands.
fn translation(machine: &Machine, number: usize, commands: &[[u64; 4]]) -> Vec<(u64, u64)> {
    const VALID: u64 = 1 << 63;
    let registers = CONFIG.first_its + number as u64 * GicConfig::ITS_SIZE;
    let tables = RAM + TABLES[number] as u64;
    machine.memory.write_words(TABLES[number] + COMMANDS, &commands.concat());
    vec![
        (wide(registers + 0x80), VALID | (tables + COMMANDS as u64)), // GITS_CBASER: one page of commands
        (wide(registers + 0x100), VALID | 2 << 8 | tables), // GITS_BASER0: a page of 64 KiB of devices
        (wide(registers + 0x108), VALID | 2 << 8 | (tables + COLLECTIONS as u64)), // GITS_BASER1
        (registers, 1),                                     // GITS_CTLR
        (wide(registers + 0x88), commands.len() as u64 * 32), // GITS_CWRITER
    ]
}

const EDGE: u32 = 5;
const LEVEL: u32 = 7;

/// A machine of two CPUs to which interrupts of all kinds were sent. CPU 0 is in the handling of one, CPU 1 has taken none.
fn busy() -> Machine {
    let mut machine = Machine::new();
    // Priority 0xb0, and of the first one 0x20. Bit 0: enabled.
    machine.memory.write(PRIORITIES, &[0xb1; 0x8000]);
    machine.memory.write(PRIORITIES, &[0x21]);
    let d = CONFIG.distributor;
    let mut writes = vec![
        (d, 0x12),                            // GICD_CTLR: affinity routing, group 1
        (d + 0x84, 0xffff_ffff),              // GICD_IGROUPR1
        (d + 0xc08, 2 << (EDGE * 2)),         // GICD_ICFGR2: edge-triggered
        (d + 0x424, 0xa0a0_40a0),             // GICD_IPRIORITYR9: 0x40 for interrupt 37, 0xa0 for 39
        (wide(d + 0x6000 + (32 + 5) * 8), 1), // GICD_IROUTER37: to CPU 1
        (d + 0x104, 1 << EDGE | 1 << LEVEL),  // GICD_ISENABLER1
    ];
    for cpu in 0..2 {
        let r = redistributor(cpu);
        writes.extend([
            (wide(r + 0x70), (RAM + PRIORITIES as u64) | 14), // GICR_PROPBASER: numbers of 15 bits
            (wide(r + 0x78), RAM + PENDING[cpu as usize] as u64), // GICR_PENDBASER
            (r, 1),                                           // GICR_CTLR
            (r + 0x1_0080, 0xffff_ffff),                      // GICR_IGROUPR0
            (r + 0x1_0400, 0x8060_a0a0), // GICR_IPRIORITYR0: 0x60 for interrupt 2, 0x80 for 3
            (r + 0x1_0100, 0xffff),      // GICR_ISENABLER0
        ]);
    }
    let table = |number: usize| RAM + (TABLES[number] + INTERRUPTS) as u64;
    let common =
        |number| [command::map_device(table(number)), command::map_collection(0), command::map_collection(1)];
    let mut first = common(0).to_vec();
    first.extend([
        command::map_event(0, FIRST_LPI, 1),
        command::map_event(1, FIRST_LPI + 1, 0),
        command::interrupt(0),
    ]);
    let mut second = common(1).to_vec();
    second.push(command::map_event(0, FIRST_LPI + 2, 1));
    writes.extend(translation(&machine, 0, &first));
    writes.extend(translation(&machine, 1, &second));
    writes.extend([
        (redistributor(1) + 0x1_0200, 1 << 3), // GICR_ISPENDR0
        (redistributor(0) + 0x1_0200, 1 << 2),
    ]);
    machine.perform(0, &writes);
    machine.perform(1, &[]);
    machine.gic.pulse(EDGE);
    machine.gic.set_level(LEVEL, true);
    machine.start(0, TAKER, 0);
    assert_eq!(machine.report(0), 2);
    machine.complete(0);
    machine.start(1, TAKER, 0);
    machine
}

/// What is left of a state after it was written to a file and read.
fn through_a_file<T: SavedFields>(state: &T) -> T {
    let text = serde_json::to_string(&SavedState::of(state).unwrap()).unwrap();
    serde_json::from_str::<SavedState>(&text).unwrap().read().unwrap()
}

/// The machine's counters go on by themselves.
fn without_counters(mut state: CpuState) -> CpuState {
    let counters = [RegisterId::system(3, 3, 14, 3, 2), RegisterId::system(3, 3, 14, 0, 1)];
    state.registers.retain(|register| !counters.contains(&register.id));
    state
}

#[test]
fn interrupts_on_their_way_arrive_in_the_machine_that_is_restored() {
    let mut first = busy();
    let cpus: Vec<CpuState> = (0..2).map(|cpu| through_a_file(&first.cpu(cpu).save().unwrap())).collect();
    let saved: GicState = through_a_file(&first.gic.save().unwrap());
    let contents = first.memory.contents();
    drop(first);
    assert_eq!(saved.shared.ispendr[0], 1 << EDGE, "by an edge");
    assert_eq!(saved.shared.line_level[0], 1 << LEVEL);
    assert_eq!(saved.cpus[0].private.isactiver, [1 << 2]);
    assert_eq!(saved.cpus[1].private.ispendr, [1 << 3]);
    assert_eq!(contents[PENDING[1] + FIRST_LPI as usize / 8], 1, "the message's, in the guest's table");
    assert!(saved.its.iter().all(|its| its.creadr == its.cwriter && its.creadr != 0), "{:?}", saved.its);

    let mut second = Machine::new();
    second.memory.write(0, &contents);
    // The device that holds the pin.
    second.gic.set_level(LEVEL, true);
    for (number, state) in cpus.iter().enumerate() {
        second.cpu(number).restore(state).unwrap();
    }
    second.gic.restore(&saved).unwrap();
    assert_eq!(second.gic.save().unwrap(), saved);
    for (number, state) in cpus.into_iter().enumerate() {
        assert_eq!(without_counters(second.cpu(number).save().unwrap()), without_counters(state));
    }

    // The most urgent first: the message, the edge, the one from a CPU.
    assert_eq!([0; 3].map(|_| second.report(1)), [FIRST_LPI, 32 + EDGE, 3]);
    // CPU 0 first ends the one that it was in the handling of.
    assert_eq!(second.report(0), 32 + LEVEL);
    second.gic.set_level(LEVEL, false);
    // The same device and event number are another interrupt in each segment.
    let sources = [second.source(0, 1), second.source(1, 0)];
    sources.iter().for_each(|source| source.fire());
    assert_eq!(second.report(0), FIRST_LPI + 1);
    assert_eq!(second.report(1), FIRST_LPI + 2);
}

#[test]
fn a_reset_leaves_no_interrupt() {
    let machine = busy();
    machine.gic.set_level(LEVEL, false);
    machine.gic.reset().unwrap();
    let state = machine.gic.save().unwrap();
    let runs = state.cpus.iter().map(|cpu| &cpu.private).chain([&state.shared]);
    for interrupts in runs {
        let words =
            [&interrupts.isenabler, &interrupts.ispendr, &interrupts.isactiver, &interrupts.ipriorityr];
        assert!(words.into_iter().flatten().all(|word| *word == 0), "{interrupts:?}");
    }
    for cpu in &state.cpus {
        let interface = &cpu.interface;
        // Bit 0: message-signalled ones are enabled. Others tell what the redistributor can do.
        assert_eq!((cpu.gicr_ctlr & 1, interface.pmr, interface.igrpen1), (0, 0, 0));
        assert!(interface.ap0r.iter().chain(&interface.ap1r).all(|word| *word == 0), "{interface:?}");
    }
    assert!(state.its.iter().all(|its| its.ctlr & 1 == 0 && its.cbaser == 0), "{:?}", state.its);
}

#[test]
fn a_state_of_a_machine_with_other_parts_is_refused() {
    let machine = Machine::new();
    let mut state = machine.gic.save().unwrap();
    state.its.pop();
    let refusal = machine.gic.restore(&state).unwrap_err();
    assert!(matches!(refusal, Error::State(_)), "{refusal}");
    machine.gic.restore(&GicState { its: vec![Default::default(); 2], ..state }).unwrap();
}

#[test]
fn whether_a_cpu_runs_and_what_waits_for_it_are_restored() {
    let mut first = Machine::new();
    first.cpu(1).set_mp_state(MpState::PoweredOff).unwrap();
    first.cpu(1).set_events(&PendingEvents { serror: true, serror_syndrome: None }).unwrap();
    let pending = first.cpu(1).events().unwrap();
    assert!(pending.serror);
    let saved: CpuState = through_a_file(&first.cpu(1).save().unwrap());
    let mut second = Machine::new();
    second.cpu(1).restore(&saved).unwrap();
    assert_eq!(second.cpu(1).mp_state().unwrap(), MpState::PoweredOff);
    assert_eq!(second.cpu(1).events().unwrap(), pending);
    let mut unknown = saved;
    unknown.registers[0].id = RegisterId::system(3, 7, 15, 15, 7);
    let refusal = second.cpu(1).restore(&unknown).unwrap_err().to_string();
    assert!(refusal.contains("cannot read register 0x603000000013ffff"), "{refusal}");
}
