//! The simulated backend: what a program does is seen as exits, in its order.

#![cfg(target_arch = "x86_64")]

use hypervisor::sim::Sim;
use hypervisor::{AddressSpace, Exit, Hypervisor, MemorySlot, Vcpu};
use machine::clock::Clock;
use machine::doorbell::{Doorbell, DoorbellAddress};
use machine::interrupt::MsiMessage;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const TO_CPU_0: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x41, requester: 0 };

/// Page-aligned memory for slots.
#[repr(C, align(4096))]
struct Page([u8; 4096]);

fn slot(slot: u32, guest_address: u64, page: &mut Page, readonly: bool) -> MemorySlot {
    let host_address = page.0.as_mut_ptr();
    MemorySlot { slot, guest_address, size: 4096, host_address, readonly, log_dirty: false }
}

/// Runs until a write to port 0x80, completing nothing else.
fn run_to_mark(vcpu: &mut dyn Vcpu) -> u8 {
    match vcpu.run().unwrap() {
        Exit::PortWrite { port: 0x80, data: [mark], .. } => *mark,
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_is_ram_where_a_slot_is_and_exits_elsewhere() {
    let mut ram = Box::new(Page([0; 4096]));
    let mut rom = Box::new(Page([7; 4096]));
    let sim = Sim::new();
    sim.program(0, |cpu| {
        cpu.write32(0x1ffc, 0x0403_0201);
        assert_eq!(cpu.read16(0x1ffe), 0x0403);
        cpu.write8(0x2000, 9); // the ROM
        assert_eq!(cpu.read8(0x2000), 7);
        let mut block = [0; 12];
        cpu.read(0x5003, &mut block); // nothing there: 5 + 7 bytes
        assert_eq!(block, [1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5]);
        cpu.port_write8(0x80, 1);
    });
    let vm = sim.create_vm().unwrap();
    // SAFETY: the pages outlive the machine.
    unsafe {
        vm.map_memory(slot(0, 0x1000, &mut ram, false)).unwrap();
        vm.map_memory(slot(1, 0x2000, &mut rom, true)).unwrap();
        assert!(vm.map_memory(slot(2, 0x1000, &mut rom, false)).is_err(), "overlap");
    }
    let mut vcpu = vm.create_vcpu(0).unwrap();
    match vcpu.run().unwrap() {
        Exit::MmioWrite { address: 0x2000, data } => assert_eq!(data, [9]),
        other => panic!("{other:?}"),
    }
    let mut seen = Vec::new();
    for fill in 1.. {
        match vcpu.run().unwrap() {
            Exit::MmioRead { address, data } => {
                seen.push((address, data.len()));
                data.fill(fill);
            }
            Exit::PortWrite { port: 0x80, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, [(0x5003, 1), (0x5004, 4), (0x5008, 4), (0x500c, 2), (0x500e, 1)]);
    assert_eq!(ram.0[0xffc..], [1, 2, 3, 4]);
    vm.unmap_memory(0).unwrap();
    assert!(vm.unmap_memory(0).is_err());
}

#[test]
fn a_doorbell_rings_without_an_exit() {
    let sim = Sim::new();
    sim.program(0, |cpu| {
        cpu.write16(0xd000_0010, 3);
        cpu.write32(0xd000_0010, 3);
    });
    let vm = sim.create_vm().unwrap();
    let doorbell = Doorbell::new().unwrap();
    let address = DoorbellAddress { offset: 0x10, size: Some(2), value: Some(3), doorbell: doorbell.clone() };
    vm.attach_doorbell(AddressSpace::Mmio, 0xd000_0000, &address).unwrap();
    assert!(vm.attach_doorbell(AddressSpace::Mmio, 0xd000_0000, &address).is_err());
    let mut vcpu = vm.create_vcpu(0).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::MmioWrite { data: [3, 0, 0, 0], .. }), "another size");
    assert!(doorbell.take());
    vm.detach_doorbell(AddressSpace::Mmio, 0xd000_0000, &address).unwrap();
    assert!(vm.detach_doorbell(AddressSpace::Mmio, 0xd000_0000, &address).is_err());
}

#[test]
fn interrupts_wake_a_halted_cpu_by_message_by_event_and_by_cpu() {
    let sim = Sim::new();
    sim.program(0, |cpu| {
        for expected in [0x41, 0x42, 0x43] {
            assert_eq!(cpu.wait_interrupt(), expected);
            cpu.end_of_interrupt(expected);
            cpu.port_write8(0x80, expected);
        }
    });
    sim.program(1, |cpu| cpu.send_interrupt(0, 0x43));
    let vm = sim.create_vm().unwrap();
    let mut first = vm.create_vcpu(0).unwrap();
    let message = vm.allocate().unwrap();
    message.route(Some(TO_CPU_0)).unwrap();
    message.fire();
    assert_eq!(run_to_mark(&mut *first), 0x41);

    let event = vm.allocate().unwrap();
    event.route(Some(MsiMessage { data: 0x42, ..TO_CPU_0 })).unwrap();
    event.event().unwrap().write(1).unwrap();
    assert_eq!(run_to_mark(&mut *first), 0x42);

    let mut second = vm.create_vcpu(1).unwrap();
    second.x86_64().set_mp_state(hypervisor::x86_64::MpState::Runnable).unwrap();
    let kick = second.kick_handle();
    let thread = std::thread::spawn(move || matches!(second.run().unwrap(), Exit::Interrupted));
    assert_eq!(run_to_mark(&mut *first), 0x43);
    kick.kick();
    assert!(thread.join().unwrap());
}

#[test]
fn the_end_of_a_level_triggered_interrupt_exits() {
    let sim = Sim::new();
    sim.program(0, |cpu| {
        let vector = cpu.wait_interrupt();
        cpu.end_of_interrupt(vector);
        cpu.port_write8(0x80, vector);
    });
    let vm = sim.create_vm().unwrap();
    let pin = vm.ioapic_pin(9).unwrap();
    assert!(vm.ioapic_pin(24).is_err());
    pin.route(Some(MsiMessage { data: 0x8041, ..TO_CPU_0 })).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vm.ioapic_pin(9).unwrap().fire();
    assert!(matches!(vcpu.run().unwrap(), Exit::EndOfInterrupt { vector: 0x41 }));
    assert_eq!(run_to_mark(&mut *vcpu), 0x41);
}

#[test]
fn a_cpu_is_started_by_another_and_its_program_anew_by_its_registers() {
    let sim = Sim::new();
    sim.program(0, |cpu| {
        cpu.start_cpu(1);
        cpu.port_write8(0x80, 1);
        cpu.port_write8(0x80, 2);
    });
    sim.program(1, |cpu| cpu.port_write8(0x80, 10 + cpu.id() as u8));
    let vm = sim.create_vm().unwrap();
    let mut first = vm.create_vcpu(0).unwrap();
    let mut second = vm.create_vcpu(1).unwrap();
    second.kick_handle().kick();
    assert!(matches!(second.run().unwrap(), Exit::Interrupted), "it waits to be started");
    assert_eq!(run_to_mark(&mut *first), 1);
    assert_eq!(run_to_mark(&mut *second), 11);
    assert_eq!(run_to_mark(&mut *first), 2);
    let regs = first.x86_64().regs().unwrap();
    first.x86_64().set_regs(&regs).unwrap();
    assert_eq!(run_to_mark(&mut *first), 1, "from the start");
}

#[test]
fn a_kick_completes_an_access_and_ends_a_wait() {
    let sim = Sim::new();
    sim.program(0, |cpu| {
        let value = cpu.port_read8(0x60);
        cpu.port_write8(0x80, value);
        cpu.halt();
    });
    let vm = sim.create_vm().unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let kick = vcpu.kick_handle();
    let Exit::PortRead { data, .. } = vcpu.run().unwrap() else { panic!() };
    data[0] = 0x55;
    kick.kick();
    assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted));
    assert_eq!(run_to_mark(&mut *vcpu), 0x55, "the access is neither lost nor repeated");
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        send.send(()).unwrap();
        matches!(vcpu.run().unwrap(), Exit::Interrupted)
    });
    receive.recv().unwrap();
    kick.kick();
    assert!(thread.join().unwrap());
}

#[test]
fn a_kick_waits_for_what_a_program_that_computes_asks_for() {
    let (say, said) = mpsc::channel();
    let (let_go, held) = mpsc::channel::<()>();
    let sim = Sim::new();
    let (program_says, held) = (say.clone(), Mutex::new(held));
    sim.program(0, move |cpu| {
        cpu.port_read8(0x60);
        program_says.send("computes").unwrap();
        held.lock().unwrap().recv().unwrap_err();
        program_says.send("asks").unwrap();
        cpu.port_write8(0x80, 1);
    });
    let vm = sim.create_vm().unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let kick = vcpu.kick_handle();
    assert!(matches!(vcpu.run().unwrap(), Exit::PortRead { .. }));
    // Whether the kick or the program's computing comes first makes no difference.
    kick.kick();
    let thread = std::thread::spawn(move || {
        assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted));
        say.send("is interrupted").unwrap();
        vcpu
    });
    assert_eq!(said.recv().unwrap(), "computes");
    // Long enough for one that does not wait.
    for _ in 0..10_000 {
        assert_eq!(said.try_recv(), Err(mpsc::TryRecvError::Empty));
        std::thread::yield_now();
    }
    drop(let_go);
    assert_eq!(said.recv().unwrap(), "asks");
    assert_eq!(said.recv().unwrap(), "is interrupted");
    assert_eq!(run_to_mark(&mut *thread.join().unwrap()), 1);
}

#[test]
fn a_program_that_fails_says_why_and_time_moves_when_told() {
    let sim = Sim::new();
    sim.program(0, |cpu| {
        cpu.advance(Duration::from_secs(2));
        cpu.triple_fault();
        let value = cpu.port_read8(0x60);
        assert_eq!(value, 1, "the controller's answer");
    });
    let vm = sim.create_vm().unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::TripleFault));
    assert_eq!(sim.clock().monotonic_ns(), 2_000_000_000);
    let Exit::PortRead { data, .. } = vcpu.run().unwrap() else { panic!() };
    data[0] = 2;
    match vcpu.run().unwrap() {
        Exit::Failed { reason } => assert!(reason.contains("the controller's answer"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cpu_dropped_in_mid_program_ends_its_thread() {
    let alive = Arc::new(());
    let sim = Sim::new();
    let held = Arc::clone(&alive);
    sim.program(0, move |cpu| {
        let _held = Arc::clone(&held);
        loop {
            cpu.port_write8(0x80, 1);
        }
    });
    let vm = sim.create_vm().unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    assert!(vm.create_vcpu(0).is_err(), "the id is taken");
    assert_eq!(run_to_mark(&mut *vcpu), 1);
    assert_eq!(Arc::strong_count(&alive), 3);
    drop(vcpu);
    assert_eq!(Arc::strong_count(&alive), 2, "the program is gone");
}
