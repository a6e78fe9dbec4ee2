//! Who the process is, and what it may do.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::RawFd;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The user this process acts as.
pub fn effective_user() -> u32 {
    // SAFETY: only reads the process's identity.
    unsafe { libc::geteuid() }
}

/// Sets both limits of a resource.
///
/// # Errors
/// The host's.
pub fn limit(resource: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the structure is initialized.
    check(unsafe { libc::setrlimit(resource, &limit) })
}

/// Closes one descriptor, which whoever this process was forked from goes on holding.
pub fn close(fd: RawFd) {
    // SAFETY: a plain number. What owns it in this process is never dropped here.
    unsafe { libc::close(fd) };
}

/// Closes all descriptors but the standard ones and `kept`: each is a way to what the host gave to whoever made the jail. Nothing in
/// this process has one of its own yet.
///
/// # Errors
/// The host's.
pub fn close_descriptors(kept: &[i32]) -> io::Result<()> {
    let kept: BTreeSet<_> =
        kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    let mut first = 3;
    for end in kept.into_iter().chain([u32::MAX]) {
        let last = if end == u32::MAX { end } else { end - 1 };
        // SAFETY: plain numbers. What is closed belongs to nothing in this process.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        first = end.saturating_add(1);
    }
    Ok(())
}

/// Becomes this user and group, in a user namespace with nobody else, without capabilities and without a way to get any.
///
/// # Errors
/// The host's.
pub fn drop_to(uid: u32, gid: u32) -> Result<()> {
    bound_capabilities();
    // SAFETY: an empty list of groups; then plain numbers.
    unsafe {
        check(libc::setgroups(0, std::ptr::null())).context("jail: leaving all groups")?;
        check(libc::setresgid(gid, gid, gid)).context("jail --gid: becoming the group")?;
        check(libc::setresuid(uid, uid, uid)).context("jail --uid: becoming the user")?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            .context("jail: forbidding new privileges")?;
    }
    // A process whose user changed cannot write the maps below unless it may be looked at by that user.
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })
        .context("jail: giving itself to its user")?;
    // SAFETY: plain flags; the process has one thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER) }).context("jail: making a user namespace")?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        std::fs::write(format!("/proc/self/{file}"), text)
            .with_context(|| format!("jail: writing the user namespace's {file}"))?;
    }
    // Who makes a user namespace has all capabilities in it.
    bound_capabilities();
    drop_capabilities().context("jail: dropping capabilities")
}

/// Lets no program that is started have any capability.
fn bound_capabilities() {
    // The last number is found by trying.
    for capability in 0..64 {
        // SAFETY: plain numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            break;
        }
    }
}

/// Gives up the process's own capabilities.
fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        process: i32,
    }
    // `_LINUX_CAPABILITY_VERSION_3`: two sets of three words.
    let header = Header { version: 0x2008_0522, process: 0 };
    let none = [0u32; 6];
    // SAFETY: the header names this process, and the sets have the size its version says.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
