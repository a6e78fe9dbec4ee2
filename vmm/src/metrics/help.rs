//! What each figure is, for whoever finds it in Prometheus.

/// The text for the figure `name` of a thing of this kind, on one line without backslashes.
pub fn of(kind: &str, name: &str) -> Option<&'static str> {
    let find = |kind: &str| {
        let mut lines = HELP.lines();
        lines.find_map(|line| {
            line.strip_prefix(kind)?.strip_prefix('.')?.strip_prefix(name)?.strip_prefix(": ")
        })
    };
    find(kind).or_else(|| find(""))
}

/// A line each: kind of thing (any, if empty), figure, text. It is one text, since a table of many would have to be relocated when the
/// program starts, and be memory of its own in each process.
const HELP: &str = "\
build.info: Always 1; the labels tell what runs.
vm.state: Always 1; the label tells the state of the machine.
vm.cpus: CPUs of the machine.
vm.memory_bytes: Memory that the guest can use.
queue.requests: Requests that were answered.
queue.read_bytes: Bytes that the device read from the driver's buffers.
queue.written_bytes: Bytes that the device wrote to the driver's buffers.
queue.interrupts: Interrupts sent to the guest.
queue.interrupts_suppressed: Interrupts that the driver did not want.
queue.latency: Time from taking requests to telling the driver of their answers.
queue.errors: Times that the driver broke the queue.
queue.frames: Frames that passed.
queue.bytes: Bytes of the frames that passed.
queue.dropped: Frames that were dropped, for want of buffers or of a link.
queue.malformed: Frames that the driver described wrongly.
queue.link_errors: Times that the host failed the link.
worker.wakeups: Times that the worker was woken.
worker.kicks: Times that the guest rang for it.
worker.runs: Times that a handler was run.
worker.polls_won: Times that polling found work before the worker slept.
worker.polls_lost: Times that polling found none.
worker.poll_ns: Time spent polling.
worker.busy: How long the worker was busy each time.
.read_ops: Reads that were completed.
.read_bytes: Bytes that the guest read.
.read_latency: Time from taking a read to answering it.
.write_ops: Writes that were completed.
.write_bytes: Bytes that the guest wrote.
.write_latency: Time from taking a write to answering it.
.flush_ops: Flushes that were completed.
.flush_latency: Time from taking a flush to answering it.
.discard_ops: Discards that were completed.
.discard_bytes: Bytes that the guest discarded.
.write_zeroes_ops: Requests to write zeroes that were completed.
.write_zeroes_bytes: Bytes of zeroes that the guest wrote.
.io_errors: Requests that the host failed.
.no_space: Writes that the host had no space for.
disk.refused: Requests that no disk can do.
.throttled: Times that a rate limit was met.
net.rx_frames: Frames that the guest received.
net.rx_bytes: Bytes that the guest received.
net.rx_dropped: Frames for the guest that were dropped.
net.rx_malformed: Frames for the guest that made no sense.
net.rx_link_errors: Times that the host failed to give frames.
net.tx_frames: Frames that the guest sent.
net.tx_bytes: Bytes that the guest sent.
net.tx_dropped: Frames of the guest that were dropped.
net.tx_malformed: Frames that the guest described wrongly.
net.tx_link_errors: Times that the host failed to take frames.
cpu.mmio_reads: Exits for a read of a register in memory.
cpu.mmio_read_ns: Time that those reads took.
cpu.mmio_writes: Exits for a write of a register in memory.
cpu.mmio_write_ns: Time that those writes took.
cpu.port_reads: Exits for a read of an I/O port.
cpu.port_read_ns: Time that those reads took.
cpu.port_writes: Exits for a write of an I/O port.
cpu.port_write_ns: Time that those writes took.
cpu.ends_of_interrupt: Exits for the end of an interrupt that is wired.
cpu.end_of_interrupt_ns: Time that those exits took.
cpu.interruptions: Exits because this process wanted the CPU.
cpu.interrupted_ns: Time until it ran the guest again.
cpu.debug_exits: Exits for a debugger.
cpu.debug_ns: Time that those exits took.
cpu.other_exits: Other exits.
cpu.other_ns: Time that those exits took.
cpu.unclaimed: Accesses where nothing is.
cpu.undescribed: Accesses that the host's hypervisor could not describe, which were aborted.
throttle.holds: Times that the CPUs were held to slow the guest down.
throttle.held_ns: Time for which they were held.
balloon.size_bytes: Memory that the guest is asked to give up.
balloon.actual_bytes: Memory that the guest has given up.
balloon.inflated_bytes: Memory that the guest gave up, all in all.
balloon.deflated_bytes: Memory that the guest took back, all in all.
balloon.reported_bytes: Memory that the guest reported as free.
balloon.hinted_bytes: Memory that the guest hinted at as free.
balloon.released_bytes: Memory that was given back to the host.
balloon.refused_pages: Pages that are not the guest's to give up.
balloon.release_errors: Times that the host did not take memory back.
balloon.swap_in: Memory that the guest read from its swap, as its driver tells.
balloon.swap_out: Memory that the guest wrote to its swap, as its driver tells.
balloon.major_faults: The guest's page faults that took a disk, as its driver tells.
balloon.minor_faults: The guest's other page faults, as its driver tells.
balloon.free_memory: The guest's unused memory in bytes, as its driver tells.
balloon.total_memory: The guest's memory in bytes, as its driver tells.
balloon.available_memory: What the guest could give programs without swapping, in bytes, as its driver tells.
balloon.disk_caches: The guest's cached files in bytes, as its driver tells.
balloon.hugetlb_allocations: Huge pages that the guest's programs got, as its driver tells.
balloon.hugetlb_failures: Huge pages that they did not get, as its driver tells.
balloon.oom_kill: Programs that the guest ended for want of memory, as its driver tells.
balloon.alloc_stall: Times that the guest waited for memory, as its driver tells.
balloon.async_scan: Memory that the guest looked through in the background, as its driver tells.
balloon.direct_scan: Memory that the guest looked through for want of it, as its driver tells.
balloon.async_reclaim: Memory that the guest reclaimed in the background, as its driver tells.
balloon.direct_reclaim: Memory that the guest reclaimed for want of it, as its driver tells.
memory.requested_bytes: Memory that the guest is asked to plug in.
memory.plugged_bytes: Memory that the guest has plugged in.
memory.plugs: Requests to plug memory in that were done.
memory.unplugs: Requests to unplug memory that were done.
memory.unplug_alls: Requests to unplug all memory that were done.
memory.refused: Requests that were refused.
memory.host_errors: Requests that the host failed.
log.left_out: Lines that were left out since a place in the program logged too many.
.lost: What could not be written in time.
";
