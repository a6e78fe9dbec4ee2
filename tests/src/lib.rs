//! What tests of whole machines share: finding the programs, running a monitor, talking to its guest.
//!
//! A test binary named `linux_*` boots stock Linux kernels and needs a KVM that can run them; one named `native_*`
//! needs any `/dev/kvm` and boots the bare-metal guest of `tests/guest`. `scripts/test` sets the environment:
//!
//! | variable | what it names |
//! |---|---|
//! | `VIVARIUM_BIN` | the monitor |
//! | `VIVARIUM_GUESTS` | the folder with kernels and initial RAM file systems |
//! | `VIVARIUM_BARE_GUEST` | the bare-metal guest |
//! | `VIVARIUM_SCRATCH` | a folder on a file system with direct I/O and holes, for disk images |

pub mod architecture;
pub mod core_scheduling;
pub mod ctl;
pub mod events;
pub mod guests;
pub mod host;
pub mod kernel_log;
pub mod monitor;
pub mod movable_memory;
pub mod rate;
pub mod registers;
pub mod report;
pub mod shared_memory;
pub mod terminal;
pub mod tiny_kernel;
pub mod transfer;

pub use architecture::{Architecture, Feature, has, lacks, native};
pub use events::events;
pub use guests::{Form, Kernel};
pub use monitor::{Exit, Monitor, MonitorBuilder};
pub use report::Report;

use std::path::PathBuf;

/// A path from the environment.
///
/// # Panics
/// When the variable is not set: the tests are run by `scripts/test`, which sets it.
pub fn required(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(value) => value.into(),
        None => panic!("{variable} is not set; run this test by scripts/test, which prepares what it needs"),
    }
}
