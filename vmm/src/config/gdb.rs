//! `--gdb`.

use super::options::options;
use std::path::PathBuf;

options! {
    /// A socket for a debugger.
    pub struct GdbConfig {
        /// The UNIX socket that GDB connects to (`target remote PATH`).
        ["path"] path: PathBuf = PathBuf::new(),
        /// Whether the machine waits for the debugger before its first instruction.
        ["wait"] wait: bool = true,
    }
}
