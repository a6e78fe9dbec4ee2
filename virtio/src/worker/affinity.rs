//! Which host CPUs a thread runs on.

use std::io;

/// Confines the calling thread to `cpus`.
pub(super) fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: a set of CPUs is bits, and zero of them is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        if cpu >= libc::CPU_SETSIZE as usize {
            let message = format!("host CPU {cpu} is past the {} that can be named", libc::CPU_SETSIZE);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // SAFETY: the number is within the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the set is valid and its size is told.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
