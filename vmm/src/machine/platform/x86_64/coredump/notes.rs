//! The notes of a core dump: each CPU's registers, as the kernel writes those of threads (`elf_prstatus`) and as QEMU adds what is
//! the system's; and the kernel's own note (VMCOREINFO), by which tools find their way in its memory.

use hypervisor::x86_64::{DescriptorTable, Regs, Segment, Sregs, VcpuState};
use machine::memory::{Bytes, GuestRegion};
use vm_memory::MemoryRegionAddress;

/// MSR that holds the base which SWAPGS takes.
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// Bytes of the FXSAVE area, with which the XSAVE area begins.
const FXSAVE_SIZE: usize = 512;

const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
/// The type of QEMU's notes and of the kernel's.
const NT_OTHER: u32 = 0;

/// A CPU's registers.
pub struct CpuState {
    /// The general ones.
    pub regs: Regs,
    /// The system's.
    pub sregs: Sregs,
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
}

/// The CPUs' notes: first all threads, then all of QEMU's, as tools expect them.
pub fn of_cpus(cpus: &[CpuState]) -> Vec<u8> {
    let mut notes = Vec::new();
    for (number, cpu) in (1u32..).zip(cpus) {
        note(&mut notes, b"CORE", NT_PRSTATUS, &prstatus(number, cpu));
        note(&mut notes, b"CORE", NT_FPREGSET, &cpu.fxsave);
    }
    for cpu in cpus {
        note(&mut notes, b"QEMU", NT_OTHER, &qemu_state(cpu));
    }
    notes
}

/// Adds the kernel's note if it is what the page at `offset` begins with. The guest can put anything there: it is copied, and
/// never read here.
pub fn add_kernel_note(region: &GuestRegion, offset: u64, notes: &mut Vec<u8>) {
    /// `n_namesz` and `n_type`, and the name with its padding.
    const NAME: &[u8; 12] = b"VMCOREINFO\0\0";
    const HEADER: usize = 12 + NAME.len();
    const FIRST: &[u8] = b"OSRELEASE=";
    /// Notes of this many CPUs and more are not looked for.
    const LARGEST: usize = 4096 - HEADER;
    let mut page = [0; 4096];
    // The name alone decides for nearly all pages.
    let mut start = [0; HEADER];
    if region.read_slice(&mut start, MemoryRegionAddress(offset)).is_err() || start[12..] != *NAME {
        return;
    }
    let word = |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    let size = word(4) as usize;
    if word(0) != 11 || word(8) != 0 || size > LARGEST {
        return;
    }
    if region.read_slice(&mut page, MemoryRegionAddress(offset)).is_ok()
        && page[HEADER..HEADER + size].starts_with(FIRST)
        && !notes.windows(NAME.len()).any(|window| window == NAME)
    {
        kernel_note(notes, &page[HEADER..HEADER + size]);
    }
}

/// Appends the kernel's own note.
pub fn kernel_note(notes: &mut Vec<u8>, content: &[u8]) {
    note(notes, b"VMCOREINFO", NT_OTHER, content);
}

/// Appends a note.
fn note(notes: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    for word in [name.len() as u32 + 1, content.len() as u32, kind] {
        notes.extend(word.to_le_bytes());
    }
    for part in [name, content] {
        notes.extend(part);
        // A name ends with a zero, and both are padded to words.
        let padding = if std::ptr::eq(part, name) {
            4 - part.len() % 4
        } else {
            part.len().next_multiple_of(4) - part.len()
        };
        notes.extend(std::iter::repeat_n(0, padding));
    }
}

/// `struct elf_prstatus` of Linux.
fn prstatus(number: u32, CpuState { regs, sregs, .. }: &CpuState) -> Vec<u8> {
    /// Where the thread's number and the registers are.
    const NUMBER: usize = 32;
    const REGISTERS: usize = 112;
    const SIZE: usize = 336;
    let selector = |segment: &Segment| u64::from(segment.selector);
    let registers = [
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
    ];
    let mut status = vec![0; SIZE];
    status[NUMBER..NUMBER + 4].copy_from_slice(&number.to_le_bytes());
    for (place, register) in status[REGISTERS..].chunks_exact_mut(8).zip(registers) {
        place.copy_from_slice(&register.to_le_bytes());
    }
    status
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
