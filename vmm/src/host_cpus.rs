//! The host's CPUs, as far as threads are told which of them to run on.

use crate::cpu;

/// Whether threads of this process may run on each of `host_cpus`. It is found out by trying, on a thread of its own: what the
/// calling thread is confined to may be narrower.
///
/// # Errors
/// Names those that are not there or not permitted.
pub fn check(host_cpus: &[usize]) -> Result<(), String> {
    if host_cpus.is_empty() {
        return Err("names no host CPU; write those to run on, such as [0,2-3]".to_owned());
    }
    let wanted = host_cpus.to_vec();
    let refused = move || wanted.into_iter().filter(|cpu| cpu::set_affinity(&[*cpu]).is_err()).collect();
    let thread = std::thread::Builder::new().name("host-cpus".into()).stack_size(64 << 10).spawn(refused);
    let refused: Vec<usize> = match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(refused)) => refused,
        Ok(Err(_)) => return Err("the thread that tries host CPUs ended".to_owned()),
        Err(error) => return Err(format!("starting a thread that tries host CPUs: {error}")),
    };
    match refused.first() {
        None => Ok(()),
        Some(cpu) => Err(format!(
            "host CPU {cpu} is not there, or this process may not run on it; Cpus_allowed_list in /proc/PID/status has \
             those it may"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_cpus_that_are_not_there_are_named() {
        // SAFETY: only tells where this thread runs.
        let here = usize::try_from(unsafe { libc::sched_getcpu() }).unwrap();
        assert_eq!(check(&[here]), Ok(()));
        assert!(check(&[here, 1000]).unwrap_err().starts_with("host CPU 1000 is not there"));
        assert!(check(&[1 << 20]).unwrap_err().starts_with("host CPU 1048576"));
        assert!(check(&[]).is_err());
        // Those that do the asking stay where they were.
        assert_eq!(check(&[here]), Ok(()));
    }
}
