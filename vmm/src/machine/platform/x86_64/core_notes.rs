//! What a core dump holds of each CPU: its registers, as the kernel writes those of threads (`elf_prstatus`) and as QEMU adds what
//! is the system's.

use crate::machine::coredump::notes::{NT_FPREGSET, NT_OTHER, NT_PRSTATUS, note, prstatus};
use arch::x86_64::paging;
use hypervisor::x86_64::{DescriptorTable, Regs, Segment, Sregs, VcpuState};

/// The architecture's number in an ELF file (`EM_X86_64`).
pub const MACHINE: u16 = 62;

/// MSR that holds the base which SWAPGS takes.
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// Bytes of the FXSAVE area, with which the XSAVE area begins.
const FXSAVE_SIZE: usize = 512;

/// A CPU's registers.
pub struct CpuState {
    /// The general ones.
    regs: Regs,
    /// The system's.
    sregs: Sregs,
    /// The x87's and SSE's, as FXSAVE writes them.
    fxsave: Vec<u8>,
    kernel_gs_base: u64,
}

impl CpuState {
    /// Reads them.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn read(cpu: &mut dyn VcpuState) -> hypervisor::Result<Self> {
        let words = cpu.xsave()?;
        let fxsave = words.iter().flat_map(|word| word.to_le_bytes()).take(FXSAVE_SIZE).collect();
        let kernel_gs_base = cpu.msrs(&[KERNEL_GS_BASE])?.first().map_or(0, |msr| msr.value);
        Ok(Self { regs: cpu.regs()?, sregs: cpu.sregs()?, fxsave, kernel_gs_base })
    }

    /// How it finds memory.
    pub fn paging(&self) -> &paging::State {
        &self.sregs
    }
}

/// The CPUs' notes: first all threads, then all of QEMU's, as tools expect them.
pub fn of_cpus(cpus: &[CpuState]) -> Vec<u8> {
    let mut notes = Vec::new();
    for (number, cpu) in (1u32..).zip(cpus) {
        note(&mut notes, b"CORE", NT_PRSTATUS, &prstatus(number, &general(cpu)));
        note(&mut notes, b"CORE", NT_FPREGSET, &cpu.fxsave);
    }
    for cpu in cpus {
        note(&mut notes, b"QEMU", NT_OTHER, &qemu_state(cpu));
    }
    notes
}

/// The general registers, in the order of Linux's `struct user_regs_struct`.
fn general(CpuState { regs, sregs, .. }: &CpuState) -> [u64; 27] {
    let selector = |segment: &Segment| u64::from(segment.selector);
    [
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.rbp,
        regs.rbx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        // The number of a system call: none.
        u64::MAX,
        regs.rip,
        selector(&sregs.cs),
        regs.rflags,
        regs.rsp,
        selector(&sregs.ss),
        sregs.fs.base,
        sregs.gs.base,
        selector(&sregs.ds),
        selector(&sregs.es),
        selector(&sregs.fs),
        selector(&sregs.gs),
    ]
}

/// What QEMU writes of an x86 CPU, version 1.
fn qemu_state(CpuState { regs, sregs, kernel_gs_base, .. }: &CpuState) -> Vec<u8> {
    const VERSION: u32 = 1;
    const SIZE: u32 = 440;
    let mut state = Vec::with_capacity(SIZE as usize);
    state.extend(VERSION.to_le_bytes());
    state.extend(SIZE.to_le_bytes());
    for register in [
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rsp,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rip,
        regs.rflags,
    ] {
        state.extend(register.to_le_bytes());
    }
    let mut segment = |selector: u16, limit: u32, flags: u32, base: u64| {
        for word in [u32::from(selector), limit, flags, 0] {
            state.extend(word.to_le_bytes());
        }
        state.extend(base.to_le_bytes());
    };
    for s in [&sregs.cs, &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss, &sregs.ldt, &sregs.tr] {
        // As in the upper half of a descriptor.
        let flags = [
            (s.type_, 8),
            (s.s, 12),
            (s.dpl, 13),
            (s.present, 15),
            (s.avl, 20),
            (s.l, 21),
            (s.db, 22),
            (s.g, 23),
        ]
        .iter()
        .fold(0, |flags, (field, shift)| flags | u32::from(*field) << shift);
        segment(s.selector, s.limit, flags, s.base);
    }
    let mut table = |table: &DescriptorTable| segment(0, table.limit.into(), 0, table.base);
    table(&sregs.gdt);
    table(&sregs.idt);
    for register in [sregs.cr0, 0, sregs.cr2, sregs.cr3, sregs.cr4, *kernel_gs_base] {
        state.extend(register.to_le_bytes());
    }
    state
}
