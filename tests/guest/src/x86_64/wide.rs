//! Accesses that the processor does not describe to a hypervisor. Of x86_64 a hypervisor reads the instruction: there are none.

/// What accesses the bytes at an address, and where the address is after it.
pub type Access = fn(u64) -> u64;

/// The accesses by their names.
pub const ACCESSES: &[(&str, Access)] = &[];

/// No access is answered by an exception.
pub fn aborted(_access: Access, _address: u64) -> Option<bool> {
    None
}
