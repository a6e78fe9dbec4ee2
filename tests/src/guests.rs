//! The guests that tests boot.

use crate::required;
use std::path::PathBuf;

/// A stock distribution kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's 6.1.
    V6_1,
    /// Debian's 6.12.
    V6_12,
}

/// The form a kernel is given in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The compressed image distributions ship.
    BzImage,
    /// The uncompressed ELF, entered through its PVH note.
    Elf,
}

impl Kernel {
    fn version(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// The kernel's file.
    pub fn path(self, form: Form) -> PathBuf {
        let name = match form {
            Form::BzImage => "vmlinuz",
            Form::Elf => "vmlinux",
        };
        required("VIVARIUM_GUESTS").join(format!("{name}-{}", self.version()))
    }

    /// An initial RAM file system whose init runs a script from the kernel's command line.
    pub fn initramfs(self) -> PathBuf {
        required("VIVARIUM_GUESTS").join(format!("initramfs-{}.cpio", self.version()))
    }

    /// The same with file system, network and PCI tools.
    pub fn tools(self) -> PathBuf {
        required("VIVARIUM_GUESTS").join(format!("initramfs-tools-{}.cpio", self.version()))
    }
}
