//! The guests that tests boot.

use crate::host::{Folder, shell};
use crate::{Architecture, Feature, has, native, required};
use std::path::PathBuf;

/// A stock distribution kernel. Debian has both; another distribution's only series stands for either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's 6.1.
    V6_1,
    /// Debian's 6.12.
    V6_12,
    /// Debian's 6.12 for any machine, where the others are those for clouds. Only Arm's differ in what tests need.
    V6_12Generic,
}

/// The form a kernel is given in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The image distributions ship: compressed on x86_64, plain on Arm.
    BzImage,
    /// The uncompressed ELF, entered through its PVH note. Arm kernels have no such form; the plain image serves.
    Elf,
    /// An Arm kernel's image compressed by gzip, as some distributions ship it.
    Gzip,
    /// An Arm kernel's image in an EFI zboot image, compressed by a method of this name.
    Zboot(&'static str),
}

impl Kernel {
    /// Those there are for this architecture, the newest first.
    pub fn all() -> &'static [Self] {
        if has(Feature::OlderKernel) { &[Self::V6_12, Self::V6_1] } else { &[Self::V6_12] }
    }

    /// One that has drivers which the newest of all may lack.
    pub fn with_more_drivers() -> Self {
        match native() {
            Architecture::X86_64 => Self::V6_12,
            Architecture::Aarch64 => Self::V6_12Generic,
        }
    }

    fn version(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V6_12Generic => "6.12-generic",
        }
    }

    /// A file of the kernel's series; of the only series, where the distribution has another one.
    fn file(self, before: &str, after: &str) -> PathBuf {
        let guests = required("VIVARIUM_GUESTS");
        let named = guests.join(format!("{before}{}{after}", self.version()));
        if named.exists() {
            return named;
        }
        let is_series = |name: &str| name.starts_with(|first: char| first.is_ascii_digit());
        let entries = std::fs::read_dir(&guests).into_iter().flatten().flatten();
        let other = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).find(|name| {
            name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)).is_some_and(is_series)
        });
        other.map_or(named, |name| guests.join(name))
    }

    /// The kernel's file.
    pub fn path(self, form: Form) -> PathBuf {
        match (form, native()) {
            (Form::BzImage, _) | (Form::Elf, Architecture::Aarch64) => self.file("vmlinuz-", ""),
            (Form::Elf, Architecture::X86_64) | (Form::Gzip, _) => self.file("vmlinux-", ""),
            (Form::Zboot(method), _) => self.file(&format!("zboot-{method}-"), ""),
        }
    }

    /// The kernel's series, as the start of what `uname -r` prints.
    pub fn series(self) -> String {
        let path = self.path(Form::BzImage);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.trim_start_matches("vmlinuz-").trim_end_matches("-generic").to_owned()
    }

    /// An initial RAM file system whose init runs a script from the kernel's command line.
    pub fn initramfs(self) -> PathBuf {
        self.file("initramfs-", ".cpio")
    }

    /// The same with file system, network and PCI tools.
    pub fn tools(self) -> PathBuf {
        self.file("initramfs-tools-", ".cpio")
    }
}

/// EFI firmware.
pub fn firmware() -> PathBuf {
    required("VIVARIUM_GUESTS").join("AAVMF_CODE.fd")
}

/// The template of its variables.
pub fn firmware_variables() -> PathBuf {
    required("VIVARIUM_GUESTS").join("AAVMF_VARS.fd")
}

/// A disk from which firmware boots a boot loader, which boots a kernel. Its init runs the script that the second disk has.
pub fn efi_disk() -> PathBuf {
    Kernel::V6_12.file("efi-", ".img")
}

/// A copy, in `folder`, of the root file system of Debian with systemd.
///
/// # Panics
/// When there is none to copy.
pub fn debian_root(folder: &Folder) -> PathBuf {
    let guests = required("VIVARIUM_GUESTS");
    let entries = std::fs::read_dir(&guests).unwrap_or_else(|error| panic!("{}: {error}", guests.display()));
    let root = entries.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("root-") && name.ends_with(".ext4")
    });
    let root = root
        .unwrap_or_else(|| panic!("there is no root-*.ext4 in {}; scripts/test makes it", guests.display()));
    let copy = folder.join("root");
    // Only what the file system uses, which is a small part of it.
    shell(&format!("e2image -ra {} {} 2>&1", root.display(), copy.display()));
    copy
}
