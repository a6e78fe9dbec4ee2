//! The registers a CPU starts with: as the boot protocol says, or as after power-on.

use crate::x86_64::boot::long_mode::{CODE, DATA, GDT_SIZE, TASK, TASK_LIMIT};
use crate::x86_64::boot::{EntryPoint, Protocol};
use crate::x86_64::layout::{GDT, LOCAL_APIC, PAGE_TABLES};
use hypervisor::x86_64::{DescriptorTable, Regs, Segment, Sregs};

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_ONE: u64 = 1 << 1;

const APIC_BASE_BOOT_CPU: u64 = 1 << 8;
const APIC_BASE_ENABLED: u64 = 1 << 11;

// Segment types (Intel SDM 3, 3.4.5.1 and 3.5).
const EXECUTE_READ_ACCESSED: u8 = 0xb;
const READ_WRITE_ACCESSED: u8 = 0x3;
const LDT: u8 = 0x2;
const BUSY_TASK: u8 = 0xb;

/// A flat segment of 4 GiB.
fn flat(selector: u16, type_: u8) -> Segment {
    Segment { base: 0, limit: 0xffff_ffff, selector, type_, present: 1, s: 1, g: 1, ..Default::default() }
}

/// The local APIC enabled, in xAPIC mode.
fn apic_base(boot_cpu: bool) -> u64 {
    LOCAL_APIC.start | APIC_BASE_ENABLED | if boot_cpu { APIC_BASE_BOOT_CPU } else { 0 }
}

/// The boot CPU's state at the kernel's entry.
///
/// Linux: `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol". PVH: Xen, `docs/misc/pvh.pandoc`.
pub(super) fn at_entry(entry: &EntryPoint) -> (Regs, Sregs) {
    let mut regs = Regs { rip: entry.address.0, rflags: RFLAGS_ONE, ..Default::default() };
    let data = Segment { db: 1, ..flat(DATA, READ_WRITE_ACCESSED) };
    let mut sregs = Sregs {
        cs: flat(CODE, EXECUTE_READ_ACCESSED),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment { limit: TASK_LIMIT, selector: TASK, type_: BUSY_TASK, present: 1, ..Default::default() },
        ldt: Segment { limit: 0xffff, type_: LDT, present: 1, ..Default::default() },
        gdt: DescriptorTable { base: GDT.0, limit: GDT_SIZE - 1, ..Default::default() },
        idt: DescriptorTable::default(),
        cr0: CR0_PE | CR0_ET,
        apic_base: apic_base(true),
        ..Default::default()
    };
    match entry.protocol {
        Protocol::Linux64 => {
            regs.rsi = entry.boot_data.0;
            sregs.cs.l = 1;
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = PAGE_TABLES.0;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Protocol::Pvh => {
            regs.rbx = entry.boot_data.0;
            sregs.cs.db = 1;
        }
    }
    (regs, sregs)
}

/// The state after power-on and reset (Intel SDM 3, table 10-1).
pub(super) fn at_reset(boot_cpu: bool) -> (Regs, Sregs) {
    let segment = |selector: u16, base: u64, type_: u8| Segment {
        base,
        limit: 0xffff,
        selector,
        type_,
        present: 1,
        s: 1,
        ..Default::default()
    };
    let data = segment(0, 0, READ_WRITE_ACCESSED);
    let table = DescriptorTable { base: 0, limit: 0xffff, ..Default::default() };
    let sregs = Sregs {
        cs: segment(0xf000, 0xffff_0000, EXECUTE_READ_ACCESSED),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment { s: 0, ..segment(0, 0, BUSY_TASK) },
        ldt: Segment { s: 0, ..segment(0, 0, LDT) },
        gdt: table,
        idt: table,
        cr0: CR0_CD | CR0_NW | CR0_ET,
        apic_base: apic_base(boot_cpu),
        ..Default::default()
    };
    (Regs { rip: 0xfff0, rflags: RFLAGS_ONE, ..Default::default() }, sregs)
}
