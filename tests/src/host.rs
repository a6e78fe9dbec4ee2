//! The host's side of a test: image files, commands, network interfaces.

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder of the test's own, removed with this.
pub struct Folder(PathBuf);

impl Folder {
    /// A new, empty folder.
    ///
    /// # Panics
    /// When the host has no room for one.
    pub fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// A new, empty folder on a file system that has direct I/O and can punch holes.
    ///
    /// # Panics
    /// When the host has no room for one.
    pub fn on_disk() -> Self {
        Self::below(&std::env::var_os("VIVARIUM_SCRATCH").map_or_else(|| "/var/tmp".into(), PathBuf::from))
    }

    fn below(base: &Path) -> Self {
        for n in 0..1000 {
            let path = base.join(format!("vivarium-test-{}-{n}", std::process::id()));
            if std::fs::create_dir(&path).is_ok() {
                return Self(path);
            }
        }
        panic!("no folder can be made in {}", base.display());
    }

    /// A path in the folder.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A sparse file of `size` bytes.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn sparse(&self, name: &str, size: u64) -> PathBuf {
        let path = self.join(name);
        std::fs::File::create(&path).and_then(|file| file.set_len(size)).expect("a file can be made");
        path
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file that cannot be opened until this is dropped: whoever tries waits, as on a file system that hangs. (By a lease, which the
/// kernel takes away after a time, usually 45 seconds.)
pub struct HangingFile(std::fs::File);

impl HangingFile {
    /// Takes hold of the file at `path`, which nobody has open.
    ///
    /// # Panics
    /// When the host cannot.
    pub fn new(path: &Path) -> Self {
        let file = std::fs::File::options().read(true).write(true).open(path).expect("the file is there");
        // SAFETY: the holder of a lease is told by this signal when somebody waits, which would end the process.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
        // SAFETY: the descriptor is open.
        let held = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
        assert_eq!(held, 0, "{}: {}", path.display(), std::io::Error::last_os_error());
        Self(file)
    }
}

impl Drop for HangingFile {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open.
        unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    }
}

/// Whether the host, or what emulates one for this program, lacks a system call. If so it says so, in the form that `scripts/test`
/// counts as a skipped test.
pub fn lacks_call(name: &str, number: libc::c_long) -> bool {
    // SAFETY: no call takes these for arguments that mean anything, so that one that is there does nothing.
    let result = unsafe { libc::syscall(number, -1, -1, -1, -1, -1, -1) };
    let error = std::io::Error::last_os_error().raw_os_error();
    let missing = result < 0 && matches!(error, Some(libc::ENOSYS | libc::EOPNOTSUPP));
    if missing {
        println!("@@SKIP the host has no system call {name}");
    }
    missing
}

/// The bytes that a file takes on its file system, holes not counted.
///
/// # Panics
/// When there is no such file.
pub fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).expect("the file is there").blocks() * 512
}

/// Runs a shell command on the host and returns what it printed.
///
/// # Panics
/// When it fails.
pub fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().expect("there is a shell");
    assert!(
        output.status.success(),
        "{command}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Panics
/// When it cannot be read.
pub fn sha256(path: &Path) -> String {
    let text = shell(&format!("sha256sum '{}'", path.display()));
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// A tap with an address, removed with this.
pub struct Tap {
    /// Its name.
    pub name: String,
}

impl Tap {
    /// Makes a tap, with `queues` pairs of queues, and gives it `address` (with its prefix length). The host sends nothing of
    /// its own on it: not the packets by which IPv6 makes itself known.
    ///
    /// # Panics
    /// When the host does not permit it.
    pub fn new(name: &str, queues: u32, address: &str) -> Self {
        let multi = if queues > 1 { "multi_queue" } else { "" };
        shell(&format!(
            "ip tuntap add dev {name} mode tap {multi} vnet_hdr; ip addr add {address} dev {name}\n\
             quiet=/proc/sys/net/ipv6/conf/{name}/disable_ipv6; if [ -e $quiet ]; then echo 1 > $quiet; fi\n\
             ip link set {name} up"
        ));
        Self { name: name.to_owned() }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.name]).output();
    }
}
