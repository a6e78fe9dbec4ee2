//! `--rng`.

use super::device::device_options;
use super::several::Repeated;
use std::path::PathBuf;

device_options! {
    /// A source of entropy (virtio-rng). A machine has one in any case.
    pub struct RngConfig is "rng" first |_| "__rng".into(), told by src {
        /// Where the entropy comes from.
        ["src"] src: PathBuf = PathBuf::from("/dev/urandom"),
    }
}

impl Repeated for RngConfig {
    fn unless_said() -> Vec<Self> {
        vec![Self::default()]
    }
}
