//! Tasks that need no device: the boot line, exit costs, memory.

use super::{Context, Failure, Outcome};
use crate::command_line::Task;
use crate::{clock, cpu, memory, report};

/// `hello`: one line, as early as there can be one, and short, since each byte costs an exit.
pub fn hello(_context: &Context, _task: &Task) -> Outcome {
    report!("hello");
    Ok(())
}

/// `entered`: how long ago the guest came to ring 3. After `hello`, that is the time from there to the end of its line.
pub fn entered(context: &Context, _task: &Task) -> Outcome {
    let cycles = cpu::tsc().wrapping_sub(context.entered);
    report!("entered ns={} cycles={cycles} source={}", clock::nanoseconds(cycles), clock::source());
    Ok(())
}

/// `boot`: what the monitor passed: usable memory, entry (`pvh` or `linux`), RSDP, command line.
pub fn boot_task(context: &Context, _task: &Task) -> Outcome {
    for region in context.boot.regions() {
        report!("boot ram={:#x}..{:#x}", region.start, region.end);
    }
    let boot = context.boot;
    report!("boot entry={} rsdp={:#x} line={:?}", boot.entry.name(), boot.rsdp, boot.command_line());
    Ok(())
}

/// `clock`: the frequency of the time-stamp counter and where it is known from.
pub fn clock_task(_context: &Context, _task: &Task) -> Outcome {
    report!("clock tsc_khz={} source={}", clock::khz(), clock::source());
    Ok(())
}

/// `exits n=20000 kind=pio|mmio|pio-read|mmio-read at=`: cost of an exit to the monitor. The default port is 0x80, the
/// default address 0xfeff0000; nothing should answer there.
pub fn exits(_context: &Context, task: &Task) -> Outcome {
    let count = task.number("n", 20_000)?.max(1);
    let kind = task.text("kind").unwrap_or("pio");
    let port = task.number("at", 0x80)? as u16;
    let address = task.number("at", 0xfeff_0000)?;
    memory::map(address, 8);
    clock::khz();
    let start = cpu::tsc();
    match kind {
        "pio" => (0..count).for_each(|_| cpu::out8(port, 0)),
        "pio-read" => (0..count).for_each(|_| _ = cpu::in8(port)),
        "mmio" => (0..count).for_each(|_| cpu::write32(address, 0)),
        "mmio-read" => (0..count).for_each(|_| _ = cpu::read32(address)),
        _ => return Err(Failure::BadValue("kind")),
    }
    let cycles = cpu::tsc() - start;
    let ns = clock::nanoseconds(cycles);
    report!("exits kind={kind} n={count} ns={ns} cycles={cycles} ns_per_exit={}", ns / count);
    Ok(())
}

/// `memory touch=64`: writes a word into each 4 KiB page of so many MiB and reads all of them back.
pub fn memory_task(_context: &Context, task: &Task) -> Outcome {
    let size = task.number("touch", 64)? << 20;
    if size > memory::remaining() {
        return Err(Failure::Unsupported("not so much RAM below 4 GiB"));
    }
    let start = memory::take_as_it_is(size, 4096) as u64;
    let begun = cpu::tsc();
    for offset in (0..size).step_by(4096) {
        cpu::write64(start + offset, offset ^ 0x5a5a_5a5a);
    }
    let cycles = cpu::tsc() - begun;
    for offset in (0..size).step_by(4096) {
        if cpu::read64(start + offset) != offset ^ 0x5a5a_5a5a {
            return Err(Failure::Mismatch(offset));
        }
    }
    report!(
        "memory bytes={size} start={start:#x} limit={:#x} ns={} cycles={cycles} ns_per_page={}",
        memory::limit(),
        clock::nanoseconds(cycles),
        clock::nanoseconds(cycles) / (size / 4096).max(1)
    );
    Ok(())
}
