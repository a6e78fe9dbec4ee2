//! The KVM backend on the host's `/dev/kvm`, real or software: every guest here is a few integer
//! instructions in real mode, which any backend runs.

#![cfg(target_arch = "x86_64")]

use hypervisor::kvm::{DEFAULT_PATH, Kvm};
use hypervisor::x86_64::{MpState, Msr, Regs};
use hypervisor::{AddressSpace, Exit, Hypervisor, MemorySlot, Vcpu, Vm};
use machine::doorbell::{Doorbell, DoorbellAddress};
use machine::interrupt::MsiMessage;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

/// Guest memory of one machine: outlives it, since fields drop in order.
struct Machine {
    vm: Arc<dyn Vm>,
    memory: Memory,
}

struct Memory(*mut u8);

const MEMORY_SIZE: usize = 1 << 20;
const CODE: usize = 0x1000;
const STACK: u64 = 0x8000;

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped below with this size.
        unsafe { libc::munmap(self.0.cast(), MEMORY_SIZE) };
    }
}

fn kvm() -> Kvm {
    Kvm::open(Path::new(DEFAULT_PATH)).unwrap_or_else(|error| panic!("this test needs KVM: {error}"))
}

impl Machine {
    fn new(code: &[u8]) -> Self {
        Self::on(&kvm(), code)
    }

    fn on(kvm: &Kvm, code: &[u8]) -> Self {
        let vm = kvm.create_vm().unwrap();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let host_address = unsafe {
            libc::mmap(std::ptr::null_mut(), MEMORY_SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(host_address, libc::MAP_FAILED);
        let memory = Memory(host_address.cast());
        let slot = MemorySlot {
            slot: 0,
            guest_address: 0,
            size: MEMORY_SIZE as u64,
            host_address: memory.0,
            readonly: false,
            log_dirty: false,
        };
        // SAFETY: `Machine` unmaps after the machine is gone.
        unsafe { vm.map_memory(slot) }.unwrap();
        let machine = Self { vm, memory };
        machine.write(CODE, code);
        machine
    }

    fn write(&self, address: usize, bytes: &[u8]) {
        assert!(address + bytes.len() <= MEMORY_SIZE);
        // SAFETY: within the mapping; the guest is not running.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.0.add(address), bytes.len()) };
    }

    /// A CPU in real mode at the code.
    fn vcpu(&self) -> Box<dyn Vcpu> {
        let mut vcpu = self.vm.create_vcpu(0).unwrap();
        let state = vcpu.x86_64();
        state.set_cpuid(&kvm().supported_cpuid().unwrap()).unwrap();
        let mut sregs = state.sregs().unwrap();
        for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            segment.base = 0;
            segment.selector = 0;
        }
        state.set_sregs(&sregs).unwrap();
        state.set_regs(&Regs { rip: CODE as u64, rsp: STACK, rflags: 2, ..Default::default() }).unwrap();
        vcpu
    }
}

#[test]
fn port_and_memory_accesses_exit_with_their_size_and_data() {
    let machine = Machine::new(&[
        0xb0, 0x42, 0xe6, 0x10, // mov al, 0x42; out 0x10, al
        0xe5, 0x20, // in ax, 0x20
        0xe7, 0x30, // out 0x30, ax
        0xb8, 0x00, 0xf0, 0x8e, 0xd8, // mov ax, 0xf000; mov ds, ax
        0xba, 0x10, 0x00, 0x8e, 0xda, // mov dx, 0x10; mov ds, dx (RAM again)
        0xf4, // hlt
    ]);
    let mut vcpu = machine.vcpu();
    match vcpu.run().unwrap() {
        Exit::PortWrite { port: 0x10, size: 1, data } => assert_eq!(data, [0x42]),
        other => panic!("{other:?}"),
    }
    match vcpu.run().unwrap() {
        Exit::PortRead { port: 0x20, size: 2, data } => data.copy_from_slice(&[0x34, 0x12]),
        other => panic!("{other:?}"),
    }
    match vcpu.run().unwrap() {
        Exit::PortWrite { port: 0x30, size: 2, data } => assert_eq!(data, [0x34, 0x12]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_without_a_slot_exits_and_a_read_returns_what_was_filled_in() {
    let machine = Machine::new(&[
        0x66, 0xbb, 0x00, 0x00, 0x10, 0x00, // mov ebx, 0x100000: one past the memory
        0x67, 0xc6, 0x03, 0x5a, // mov byte [ebx], 0x5a
        0x67, 0x8b, 0x03, // mov ax, [ebx]
        0xe7, 0x30, // out 0x30, ax
    ]);
    let mut vcpu = machine.vcpu();
    let mut sregs = vcpu.x86_64().sregs().unwrap();
    sregs.ds.limit = u32::MAX;
    sregs.ds.g = 1;
    vcpu.x86_64().set_sregs(&sregs).unwrap();
    match vcpu.run().unwrap() {
        Exit::MmioWrite { address: 0x10_0000, data } => assert_eq!(data, [0x5a]),
        other => panic!("{other:?}"),
    }
    match vcpu.run().unwrap() {
        Exit::MmioRead { address: 0x10_0000, data } => data.copy_from_slice(&[0xcd, 0xab]),
        other => panic!("{other:?}"),
    }
    match vcpu.run().unwrap() {
        Exit::PortWrite { data, .. } => assert_eq!(data, [0xcd, 0xab]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_doorbell_rings_without_an_exit_for_its_size_and_value_only() {
    let machine = Machine::new(&[
        0xb8, 0x07, 0x00, // mov ax, 7
        0xe7, 0x40, // out 0x40, ax: rings `any` at 0x40
        0xe6, 0x50, // out 0x50, al: wrong size for `word` at 0x50
        0xe7, 0x50, // out 0x50, ax: rings `word`
        0xe7, 0x60, // out 0x60, ax: rings `seven`
        0xb0, 0x08, // mov al, 8
        0xe7, 0x60, // out 0x60, ax: another value
        0xe7, 0x40, // out 0x40, ax: detached meanwhile
    ]);
    let bell =
        |offset, size, value| DoorbellAddress { offset, size, value, doorbell: Doorbell::new().unwrap() };
    let any = bell(0x10, None, None);
    let word = bell(0x20, Some(2), None);
    let seven = bell(0x30, Some(2), Some(7));
    for bell in [&any, &word, &seven] {
        machine.vm.attach_doorbell(AddressSpace::Port, 0x30, bell).unwrap();
    }
    assert!(machine.vm.attach_doorbell(AddressSpace::Port, 0x30, &any).is_err(), "it is taken");
    let no_size = bell(0x80, None, Some(1));
    assert!(machine.vm.attach_doorbell(AddressSpace::Port, 0, &no_size).is_err());

    let mut vcpu = machine.vcpu();
    assert!(matches!(vcpu.run().unwrap(), Exit::PortWrite { port: 0x50, size: 1, .. }));
    assert!(any.doorbell.take());
    assert!(!word.doorbell.take());
    assert!(matches!(vcpu.run().unwrap(), Exit::PortWrite { port: 0x60, size: 2, data: [8, 0] }));
    assert!(word.doorbell.take());
    assert!(seven.doorbell.take());
    machine.vm.detach_doorbell(AddressSpace::Port, 0x30, &any).unwrap();
    assert!(machine.vm.detach_doorbell(AddressSpace::Port, 0x30, &any).is_err());
    assert!(matches!(vcpu.run().unwrap(), Exit::PortWrite { port: 0x40, .. }));
    assert!(!any.doorbell.take());
}

/// Enables the local APIC by its spurious vector register, through its state.
fn enable_lapic(vcpu: &mut dyn Vcpu) {
    const SPURIOUS: usize = 0xf0;
    let state = vcpu.x86_64();
    let mut lapic = state.lapic().unwrap();
    lapic.regs[SPURIOUS] = -1;
    lapic.regs[SPURIOUS + 1] = 1;
    state.set_lapic(&lapic).unwrap();
}

/// Real-mode code that waits for interrupt 0x41, and its handler, which writes 0x99 to port 0x10.
fn interruptible() -> Machine {
    let machine = Machine::new(&[0xfb, 0xf4, 0xeb, 0xfd]); // sti; hlt; jmp hlt
    machine.write(0x2000, &[0xb0, 0x99, 0xe6, 0x10, 0xcf]); // mov al, 0x99; out 0x10, al; iret
    machine.write(0x41 * 4, &[0x00, 0x20, 0x00, 0x00]);
    machine
}

const TO_CPU_0: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x41, requester: 0 };

#[test]
fn a_fired_message_interrupts_a_halted_cpu() {
    let machine = interruptible();
    let source = machine.vm.allocate().unwrap();
    let unrouted = machine.vm.allocate().unwrap();
    unrouted.fire();
    source.route(Some(TO_CPU_0)).unwrap();
    let mut vcpu = machine.vcpu();
    enable_lapic(&mut *vcpu);
    source.fire();
    assert!(matches!(vcpu.run().unwrap(), Exit::PortWrite { port: 0x10, data: [0x99], .. }));
}

#[test]
fn a_route_that_is_withdrawn_delivers_nothing_and_its_number_is_used_again() {
    let machine = interruptible();
    let withdrawn = machine.vm.allocate().unwrap();
    withdrawn.route(Some(TO_CPU_0)).unwrap();
    withdrawn.route(None).unwrap();
    withdrawn.fire();
    // All interrupt numbers there are, several times over: freed ones are used again.
    for _ in 0..3 {
        let sources: Vec<_> = std::iter::from_fn(|| machine.vm.allocate().ok()).collect();
        assert!(sources.len() > 4000, "{}", sources.len());
        sources.last().unwrap().route(Some(TO_CPU_0)).unwrap();
    }
    let mut vcpu = machine.vcpu();
    enable_lapic(&mut *vcpu);
    let kick = vcpu.kick_handle();
    kick.kick();
    assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted), "no interrupt came");
    // The event of an outside party fires as well.
    withdrawn.route(Some(TO_CPU_0)).unwrap();
    withdrawn.event().unwrap().write(1).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::PortWrite { port: 0x10, .. }));
}

#[test]
fn the_end_of_a_level_triggered_pin_interrupt_is_reported() {
    const LEVEL: u32 = 1 << 15;
    const ASSERT: u32 = 1 << 14;
    let machine = interruptible();
    // The handler ends the interrupt by the x2APIC's register: mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr.
    machine.write(
        0x2000,
        &[
            0x66, 0xb9, 0x0b, 0x08, 0, 0, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30, 0xb0, 0x99, 0xe6,
            0x10, 0xcf,
        ],
    );
    let pin = machine.vm.ioapic_pin(5).unwrap();
    assert!(machine.vm.ioapic_pin(24).is_err());
    let mut vcpu = machine.vcpu();
    const APIC_BASE: u32 = 0x1b;
    const X2APIC: u64 = 0xfee0_0d00;
    vcpu.x86_64().set_msrs(&[Msr { index: APIC_BASE, value: X2APIC }]).unwrap();
    enable_lapic(&mut *vcpu);
    pin.route(Some(MsiMessage { data: 0x41 | LEVEL | ASSERT, ..TO_CPU_0 })).unwrap();
    pin.fire();
    // A backend that emulates several instructions in one go reports the end of the interrupt a little late.
    let mut ended = false;
    let mut handled = false;
    for _ in 0..2 {
        match vcpu.run().unwrap() {
            Exit::EndOfInterrupt { vector: 0x41 } => ended = true,
            Exit::PortWrite { port: 0x10, data: [0x99], .. } => handled = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(ended && handled);
}

#[test]
fn a_kick_stops_a_cpu_that_spins_and_one_that_halts() {
    for code in [&[0xeb_u8, 0xfe][..], &[0xf4][..]] {
        let machine = Machine::new(code);
        let mut vcpu = machine.vcpu();
        let (send, receive) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            send.send(vcpu.kick_handle()).unwrap();
            matches!(vcpu.run().unwrap(), Exit::Interrupted)
        });
        let kick = receive.recv().unwrap();
        kick.kick();
        assert!(thread.join().unwrap());
        kick.kick(); // The CPU and its thread are gone.
    }
}

#[test]
fn a_kick_before_the_run_is_not_lost_and_completes_the_access_first() {
    let machine = Machine::new(&[0xe4, 0x20, 0xe6, 0x30]); // in al, 0x20; out 0x30, al
    let mut vcpu = machine.vcpu();
    let kick = vcpu.kick_handle();
    let Exit::PortRead { data, .. } = vcpu.run().unwrap() else { panic!() };
    data[0] = 0x77;
    kick.kick();
    assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted));
    assert_eq!(vcpu.x86_64().regs().unwrap().rax & 0xff, 0x77);
    assert!(
        matches!(vcpu.run().unwrap(), Exit::PortWrite { port: 0x30, data: [0x77], .. }),
        "it was taken once"
    );
}

#[test]
fn faults_without_handlers_end_in_a_triple_fault() {
    let machine = Machine::new(&[0x0f, 0x0b]); // ud2
    let mut vcpu = machine.vcpu();
    // Protected mode, in which every vector is beyond the interrupt table's end.
    let mut sregs = vcpu.x86_64().sregs().unwrap();
    sregs.idt.limit = 0;
    sregs.cr0 |= 1;
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        (segment.limit, segment.g, segment.db) = (u32::MAX, 1, 1);
    }
    (sregs.cs.type_, sregs.cs.selector) = (11, 8);
    vcpu.x86_64().set_sregs(&sregs).unwrap();
    let exit = vcpu.run().unwrap();
    assert!(matches!(exit, Exit::TripleFault), "{exit:?}");
    assert!(vcpu.describe().contains("cr0"), "{}", vcpu.describe());
}

#[test]
fn a_second_cpu_waits_to_be_started() {
    let machine = Machine::new(&[0xf4]);
    let mut second = machine.vm.create_vcpu(1).unwrap();
    second.x86_64().set_cpuid(&kvm().supported_cpuid().unwrap()).unwrap();
    assert_eq!(second.x86_64().mp_state().unwrap(), MpState::Uninitialized);
    let kick = second.kick_handle();
    kick.kick();
    assert!(matches!(second.run().unwrap(), Exit::Interrupted));
    assert!(machine.vm.create_vcpu(1).is_err(), "the id is taken");
}

#[test]
fn cpu_state_reads_back_as_it_was_set() {
    let machine = Machine::new(&[0xf4]);
    let mut vcpu = machine.vcpu();
    let state = vcpu.x86_64();
    const SYSENTER_ESP: u32 = 0x175;
    state.set_msrs(&[Msr { index: SYSENTER_ESP, value: 0x1234_5678 }]).unwrap();
    assert_eq!(state.msrs(&[SYSENTER_ESP]).unwrap(), [Msr { index: SYSENTER_ESP, value: 0x1234_5678 }]);
    let unknown = state.msrs(&[SYSENTER_ESP, 0x1234_0000]).unwrap_err();
    assert!(unknown.to_string().contains("0x12340000"), "{unknown}");

    // The area starts with the FPU's control word; XSTATE_BV, its words from 512 bytes on, says the FPU is in use.
    let mut area = state.xsave().unwrap();
    area[0] = area[0] & !0xffff | 0x27f;
    area[512 / 4] |= 3;
    state.set_xsave(&area).unwrap();
    assert_eq!(state.xsave().unwrap(), area);
    let mut fpu = state.fpu().unwrap();
    assert_eq!(fpu.fcw, 0x27f);
    fpu.fcw = 0x37f;
    state.set_fpu(&fpu).unwrap();
    assert_eq!(state.xsave().unwrap()[0] & 0xffff, 0x37f);
    assert!(state.set_xsave(&area[1..100]).is_err());

    let xcrs = state.xcrs().unwrap();
    state.set_xcrs(&xcrs).unwrap();
    let events = state.vcpu_events().unwrap();
    state.set_vcpu_events(&events).unwrap();
    let mut debug = state.debug_regs().unwrap();
    debug.db[0] = 0x1000;
    state.set_debug_regs(&debug).unwrap();
    assert_eq!(state.debug_regs().unwrap().db[0], 0x1000);
    state.set_mp_state(MpState::Halted).unwrap();
    assert_eq!(state.mp_state().unwrap(), MpState::Halted);
    assert!(state.tsc_khz().unwrap() > 100_000);
    state.nmi().unwrap();
}

#[test]
fn a_slot_can_be_taken_back() {
    let machine = Machine::new(&[0xf4]);
    machine.vm.unmap_memory(0).unwrap();
    assert!(machine.vm.unmap_memory(7).is_err());
}

#[test]
fn a_host_without_virtualization_in_its_processor_says_linux_cannot_run() {
    let kvm = kvm();
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let virtualizes = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let software = Path::new("/sys/module/kvm_pvm").exists();
    let start = Instant::now();
    let reason = kvm.cannot_run_linux();
    println!("{reason:?} after {:?}", start.elapsed());
    assert_eq!(reason.is_some(), software || !virtualizes, "{reason:?}");
}
