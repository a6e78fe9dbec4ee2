//! Gives back to the host what building a machine, or answering calls, has left behind in the process.
//!
//! To read options, lay out memory and write tables takes most of the program's code, and to run the machine little of it.
//! The kernel maps code in pieces around what is used, and never takes it away by itself. Pages that are let go stay in
//! the host's page cache, and come back when they are used; until then no machine counts as holding them, and the host
//! can have them for something else.

use std::ffi::c_void;
use std::hint::black_box;

/// What of the stack stays below the frame that asks: what the calls it makes need, and the processor's red zone.
const KEPT: usize = 4 << 10;
/// How far below the rest is looked for. The kernel keeps eight times as much free below the first thread's stack.
const DEEPEST: usize = 128 << 10;

/// Lets go of free memory of the allocator, of what deep calls left of the stack, and of pages of the program's file. To be
/// called when the machine runs, and when no client of the API has asked for anything for a while.
pub fn settle() {
    // SAFETY: only returns free memory.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    let_go_of_stack();
    // A debugger of the monitor itself would lose breakpoints it has set in the code.
    if cfg!(debug_assertions) || is_traced() {
        return;
    }
    // SAFETY: the callback takes no data and only looks at what it is given.
    unsafe {
        libc::dl_iterate_phdr(Some(let_go), std::ptr::null_mut());
    }
}

/// Whether a debugger has hold of this process (proc_pid_status(5), `TracerPid`). If it cannot be told, none has.
fn is_traced() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}

/// Lets go of the stack's pages below what is in use.
fn let_go_of_stack() {
    // SAFETY: take no pointers.
    let first_thread = unsafe { libc::getpid() == libc::gettid() };
    if !first_thread {
        return;
    }
    let here = 0_u8;
    let page = page_size();
    let end = (black_box(&raw const here) as usize - KEPT) & !(page - 1);
    // SAFETY: nothing below the live frames of a stack is ever read before it is written. The first thread's stack grows
    // downward into a space that has no other mapping, and where it has not grown to yet the call has no effect.
    unsafe {
        libc::madvise((end - DEEPEST) as *mut c_void, DEEPEST, libc::MADV_DONTNEED);
    }
}

fn page_size() -> usize {
    // SAFETY: takes no pointers.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Lets go of the pages of an object that nobody can have written to: they are the same when they are read again from its
/// file.
unsafe extern "C" fn let_go(object: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> libc::c_int {
    // SAFETY: the loader gives a valid object, which stays loaded during the call.
    let object = unsafe { &*object };
    if object.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the loader gives as many headers as it says.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    let page = page_size() as u64;
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (object.dlpi_addr + header.p_vaddr) & !(page - 1);
        // No further than the file goes: what is behind may have been another object's.
        let end = (object.dlpi_addr + header.p_vaddr + header.p_filesz) & !(page - 1);
        // SAFETY: whole pages of a private mapping of a file, which is never written to, so that nothing is lost. It may fail
        // (for the vDSO, which is the kernel's), and then nothing has changed.
        unsafe {
            libc::madvise(start as *mut c_void, end.saturating_sub(start) as usize, libc::MADV_DONTNEED);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_after_its_code_was_let_go() {
        let squares: Vec<u64> = (0..100).map(|number| number * number).collect();
        settle();
        // SAFETY: as in `settle`, in debug builds too.
        unsafe { libc::dl_iterate_phdr(Some(let_go), std::ptr::null_mut()) };
        assert_eq!(squares.iter().sum::<u64>(), 328_350);
        assert_eq!(format!("{:?}", "text".repeat(2)), "\"texttext\"");
    }
}
