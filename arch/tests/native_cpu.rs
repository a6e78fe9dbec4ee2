//! CPU setup on the host's KVM: what is set is there, kernels start, and a reset leaves nothing behind.

#![cfg(target_arch = "x86_64")]

use arch::x86_64::boot::{EntryPoint, load_kernel};
use arch::x86_64::cpu::{CpuModel, CpuOptions, Topology, configure_vcpu, reset_vcpu};
use arch::x86_64::layout::{HIGH_RAM, LayoutRequest, MemoryLayout};
use hypervisor::kvm::{DEFAULT_PATH, Kvm};
use hypervisor::x86_64::{MpState, Msr, VcpuState};
use hypervisor::{Exit, Hypervisor, MemorySlot, Vcpu, Vm};
use machine::memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRam, Memory};
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

const RAM: u64 = 64 << 20;
/// `mov eax, [ebx]; out 0x10, eax; hlt`: tells the first word of the start information.
const PVH_CODE: &[u8] = &[0x8b, 0x03, 0xe7, 0x10, 0xf4];
/// `mov eax, [rsi + 0x202]; out 0x10, eax; hlt`: tells the setup header's magic number.
const LINUX_CODE: &[u8] = &[0x8b, 0x86, 0x02, 0x02, 0, 0, 0xe7, 0x10, 0xf4];

struct Machine {
    vcpu: Box<dyn Vcpu>,
    model: CpuModel,
    entry: EntryPoint,
    _vm: Arc<dyn Vm>,
    _memory: Memory,
}

/// An ELF with `code` at 1 MiB, which it enters there; with a PVH note, or without.
fn kernel(code: &[u8], pvh: bool) -> Vec<u8> {
    let mut note = Vec::new();
    for field in [4, 8, 18u32] {
        note.extend(field.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(HIGH_RAM.to_le_bytes());
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(64 + 2 * 56, 0);
    let mut put = |offset: usize, value: u64, size: usize| {
        image[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
    };
    for (offset, value) in [(16, 2), (18, 62), (54, 56), (56, 2)] {
        put(offset, value, 2);
    }
    put(24, HIGH_RAM, 8);
    put(32, 64, 8);
    for (at, kind, offset, size) in
        [(64, 1, 176, code.len()), (120, if pvh { 4 } else { 0 }, 176 + code.len(), note.len())]
    {
        put(at, kind, 4);
        put(at + 8, offset as u64, 8);
        put(at + 24, HIGH_RAM, 8);
        put(at + 32, size as u64, 8);
        put(at + 40, size as u64, 8);
    }
    image.extend(code);
    image.extend(note);
    image
}

/// A machine whose CPU number `index` is made and not set up.
fn machine(kernel: &[u8], index: u32) -> Machine {
    let kvm =
        Kvm::open(Path::new(DEFAULT_PATH)).unwrap_or_else(|error| panic!("this test needs KVM: {error}"));
    let supported = kvm.supported_cpuid().unwrap();
    let vm = kvm.create_vm().unwrap();
    let layout = MemoryLayout::new(&LayoutRequest::new(RAM, 36)).unwrap();
    let memory: Memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap());
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot = MemorySlot {
            slot,
            guest_address: region.start_addr().0,
            size: region.len(),
            host_address: region.as_ptr(),
            readonly: false,
            log_dirty: false,
        };
        // SAFETY: the machine is dropped before the memory.
        unsafe { vm.map_memory(slot) }.unwrap();
    }
    let none: Option<&mut Cursor<Vec<u8>>> = None;
    let entry = load_kernel(&memory, &layout, &mut Cursor::new(kernel), none, "").unwrap().entry;
    let topology = Topology::new(1, 3, 1, 2, 6).unwrap();
    let mut vcpu = vm.create_vcpu(topology.apic_id(index)).unwrap();
    let options = CpuOptions { tsc_khz: vcpu.x86_64().tsc_khz().ok(), ..CpuOptions::default() };
    let model = CpuModel::new(&supported, topology, &options);
    Machine { vcpu, model, entry, _vm: vm, _memory: memory }
}

/// Runs to the first port write.
fn first_output(vcpu: &mut dyn Vcpu) -> u32 {
    loop {
        match vcpu.run().unwrap() {
            Exit::PortWrite { port: 0x10, data, .. } => return u32::from_le_bytes(data.try_into().unwrap()),
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn both_protocols_start_and_find_their_boot_data() {
    for (kernel, expected) in
        [(kernel(PVH_CODE, true), 0x336e_c578), (kernel(LINUX_CODE, false), u32::from_le_bytes(*b"HdrS"))]
    {
        let mut m = machine(&kernel, 0);
        configure_vcpu(m.vcpu.x86_64(), &m.model, 0, &m.entry).unwrap();
        assert_eq!(first_output(&mut *m.vcpu), expected);
        reset_vcpu(m.vcpu.x86_64(), &m.model, 0, &m.entry).unwrap();
        assert_eq!(first_output(&mut *m.vcpu), expected, "and again after a reset");
    }
}

/// Registers that a guest writes, in all of which any value with few bits set is valid.
const WRITTEN: &[(u32, u64)] = &[
    (0x174, 0x10),
    (0x175, 0x1000),
    (0x176, 0x2000),
    (0x277, 0x0007_0106_0007_0106),
    (0x200, 0x8000_0006),
    (0x268, 0x0606_0606_0606_0606),
    (0x2ff, 0xc00),
    (0xc000_0081, 0x10_0000_0000),
    (0xc000_0082, 0x3000),
    (0xc000_0083, 0x4000),
    (0xc000_0084, 0x100),
    (0xc000_0102, 0x5000),
];

/// All that is read of a CPU, as text, but for what runs on its own.
fn state(vcpu: &dyn VcpuState) -> Vec<String> {
    let indices: Vec<_> = WRITTEN.iter().map(|msr| msr.0).chain([0x1a0]).collect();
    let lapic = vcpu.lapic().unwrap().regs;
    let lapic: Vec<_> = lapic.iter().enumerate().filter(|(_, byte)| **byte != 0).collect();
    vec![
        format!("{:x?}", vcpu.regs().unwrap()),
        format!("{:x?}", vcpu.sregs().unwrap()),
        format!("{:x?}", vcpu.xcrs().unwrap().xcrs[0]),
        format!("{:x?}", vcpu.fpu().unwrap()),
        format!("{:x?}", vcpu.msrs(&indices).unwrap()),
        format!("{lapic:x?}"),
        format!("{:x?}", vcpu.mp_state().unwrap()),
        format!("{:x?}", vcpu.debug_regs().unwrap()),
        format!("{:x?}", vcpu.vcpu_events().unwrap()),
    ]
}

#[test]
fn a_reset_leaves_nothing_of_what_the_guest_did() {
    for index in [0, 4] {
        let mut fresh = machine(&kernel(PVH_CODE, true), index);
        configure_vcpu(fresh.vcpu.x86_64(), &fresh.model, index, &fresh.entry).unwrap();
        let expected = state(fresh.vcpu.x86_64());

        let mut used = machine(&kernel(LINUX_CODE, false), index);
        configure_vcpu(used.vcpu.x86_64(), &used.model, index, &used.entry).unwrap();
        let vcpu = used.vcpu.x86_64();
        scribble(vcpu);
        assert_ne!(state(vcpu)[1..5], expected[1..5]);
        reset_vcpu(vcpu, &used.model, index, &fresh.entry).unwrap();
        let found = state(vcpu);
        if index == 0 {
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found, expected);
            }
            assert_eq!(vcpu.mp_state().unwrap(), MpState::Runnable);
        } else {
            // What a waiting CPU's general registers hold is the hypervisor's choice: they are set when it starts.
            for (found, expected) in found.iter().zip(&expected).skip(2) {
                assert_eq!(found, expected);
            }
            assert_eq!(vcpu.sregs().unwrap().apic_base, 0xfee0_0800);
            assert_eq!(vcpu.mp_state().unwrap(), MpState::Uninitialized);
        }
    }
}

#[test]
fn a_reset_withdraws_the_permission_to_turn_vmx_on() {
    let mut machine = machine(&kernel(PVH_CODE, true), 0);
    configure_vcpu(machine.vcpu.x86_64(), &machine.model, 0, &machine.entry).unwrap();
    let vcpu = machine.vcpu.x86_64();
    // IA32_FEATURE_CONTROL: locked, VMX permitted.
    if let Err(error) = vcpu.set_msrs(&[Msr { index: 0x3a, value: 5 }]) {
        println!("@@SKIP this host's KVM gives guests no VMX: {error}");
        return;
    }
    reset_vcpu(vcpu, &machine.model, 0, &machine.entry).unwrap();
    assert_eq!(vcpu.msrs(&[0x3a]).unwrap()[0].value, 0);
}

/// Does to a CPU what a guest does in its life.
fn scribble(vcpu: &mut dyn VcpuState) {
    let msrs: Vec<_> = WRITTEN.iter().map(|&(index, value)| Msr { index, value }).collect();
    vcpu.set_msrs(&msrs).unwrap();
    let mut regs = vcpu.regs().unwrap();
    (regs.rax, regs.r15, regs.rsp, regs.rflags) = (1, 2, 3, 0x202);
    vcpu.set_regs(&regs).unwrap();
    let mut sregs = vcpu.sregs().unwrap();
    sregs.apic_base |= 1 << 10; // x2APIC
    (sregs.cr2, sregs.cr8) = (0x1234, 5);
    sregs.fs.base = 0x6000;
    vcpu.set_sregs(&sregs).unwrap();
    let mut fpu = vcpu.fpu().unwrap();
    (fpu.fcw, fpu.mxcsr) = (0x27f, 0x1fa0);
    fpu.xmm[3] = [7; 16];
    vcpu.set_fpu(&fpu).unwrap();
    let mut debug = vcpu.debug_regs().unwrap();
    (debug.db[0], debug.dr7) = (0x7000, 0x401);
    vcpu.set_debug_regs(&debug).unwrap();
    let mut lapic = vcpu.lapic().unwrap();
    lapic.regs[0x320] = 0x33; // timer's vector
    lapic.regs[0xf1] = 1; // enabled
    vcpu.set_lapic(&lapic).unwrap();
    vcpu.nmi().unwrap();
}

#[test]
fn cpuid_is_accepted_for_every_cpu_of_a_large_machine() {
    let kvm =
        Kvm::open(Path::new(DEFAULT_PATH)).unwrap_or_else(|error| panic!("this test needs KVM: {error}"));
    let supported = kvm.supported_cpuid().unwrap();
    let vm = kvm.create_vm().unwrap();
    let topology = Topology::new(2, 20, 2, 3, 240).unwrap();
    let model = CpuModel::new(&supported, topology, &CpuOptions::default());
    for index in [0, 1, 41, 239] {
        let mut vcpu = vm.create_vcpu(topology.apic_id(index)).unwrap();
        vcpu.x86_64().set_cpuid(&model.cpuid(index)).unwrap();
    }
}
