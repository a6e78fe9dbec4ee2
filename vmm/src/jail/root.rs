//! The jail's root folder: an empty one in memory, into which files of the host are bound at the paths they have there.

use super::privileges::effective_user;
use anyhow::{Context, Result, bail};
use std::ffi::CString;
use std::fs::{self, File, Metadata, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

/// Device nodes that a machine may need: path, major and minor number.
const DEVICES: &[(&str, u32, u32)] = &[
    ("dev/kvm", 10, 232),
    ("dev/net/tun", 10, 200),
    ("dev/null", 1, 3),
    ("dev/urandom", 1, 9),
    ("dev/tty", 5, 0),
];

/// Folders of the host that tell what its devices are like.
const LOOKED_AT: &str = "/sys";

/// A file or folder that is bound into the jail.
#[derive(Clone, Debug)]
pub struct Needed {
    /// The option that names it.
    pub option: String,
    /// Its absolute path.
    pub path: PathBuf,
    /// It cannot be written to in the jail.
    pub read_only: bool,
}

/// The folder that the root is mounted on, removed when dropped. While it is there it is locked (flock(2)), which tells it from one
/// that a jail left whose process was killed.
pub struct Folder {
    path: PathBuf,
    lock: File,
}

impl Folder {
    /// Makes it, or takes over what a jail of that name left.
    ///
    /// # Errors
    /// When a jail of that name runs, others can write to the folder or to the one it is in, or the host refuses.
    pub fn make(path: &Path) -> Result<Self> {
        if let Some(base) = path.parent() {
            let what = || format!("making {}", base.display());
            fs::DirBuilder::new().recursive(true).mode(0o755).create(base).with_context(what)?;
            is_kept_by_us(base, &fs::metadata(base).with_context(what)?)?;
        }
        let what = || format!("making {}", path.display());
        loop {
            match fs::DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => result.with_context(what)?,
            }
            let folder = libc::O_DIRECTORY | libc::O_NOFOLLOW;
            let lock = match File::options().read(true).custom_flags(folder).open(path) {
                // The jail that it was of has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result.with_context(what)?,
            };
            match lock.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    bail!("a jail of that name runs; end it, or give another name")
                }
                Err(TryLockError::Error(error)) => return Err(error).with_context(what),
                Ok(()) => {}
            }
            // One that has ended meanwhile may have taken away what is locked.
            let same = |found: &Metadata, locked: &Metadata| {
                (found.dev(), found.ino()) == (locked.dev(), locked.ino())
            };
            let locked = lock.metadata().with_context(what)?;
            if fs::symlink_metadata(path).is_ok_and(|found| same(&found, &locked)) {
                if locked.uid() != effective_user() || locked.mode() & 0o077 != 0 {
                    bail!(
                        "{}: is there already and is no folder of a jail, which only its owner can enter; remove it, or give another name",
                        path.display()
                    );
                }
                return Ok(Self { path: path.to_owned(), lock });
            }
        }
    }

    /// The descriptor of the lock. The machine's own process closes it: the lock is held by the one that cleans up.
    pub fn descriptor(&self) -> RawFd {
        self.lock.as_raw_fd()
    }
}

/// Checks that nobody else can take away what this process makes in `base`.
fn is_kept_by_us(base: &Path, found: &Metadata) -> Result<()> {
    let others = found.mode() & 0o022 != 0 && found.mode() & libc::S_ISVTX == 0;
    if others || ![0, effective_user()].contains(&found.uid()) {
        bail!(
            "{}: others can change what is in it; give a --base that only root can write to",
            base.display()
        );
    }
    Ok(())
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn mount(source: &Path, target: &Path, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (source, target, kind, data) =
        (text(source)?, text(target)?, text(Path::new(kind))?, text(Path::new(data))?);
    // SAFETY: all four are C strings that outlive the call.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Binds `source`, with what is mounted in it, at the same path below `root`.
fn bind(root: &Path, source: &Path, read_only: bool) -> io::Result<()> {
    let target = root.join(source.strip_prefix("/").unwrap_or(source));
    if source.is_dir() {
        fs::create_dir_all(&target)?;
    } else if !target.exists() {
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&target, [])?;
    }
    mount(source, &target, "", libc::MS_BIND | libc::MS_REC, "")?;
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    if read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    add_attributes(&target, attributes)
}

/// Binds what tells of the host's devices, which is to be looked at only. What is mounted in it, such as control groups, is left out.
fn bind_looked_at(root: &Path) -> io::Result<()> {
    let (source, target) = (Path::new(LOOKED_AT), root.join(LOOKED_AT.trim_start_matches('/')));
    fs::create_dir_all(&target)?;
    mount(source, &target, "", libc::MS_BIND, "")?;
    let all =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    add_attributes(&target, all)
}

/// Gives a mount, and all that is mounted in it, further attributes (`MOUNT_ATTR_*`) beside those it has (mount_setattr(2)).
fn add_attributes(target: &Path, attributes: u64) -> io::Result<()> {
    let target = text(target)?;
    let wanted = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: a C string, and a structure of the size that is told; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the root folder at `root`, with `needed` and the devices in it, and makes it this process's, in a mount namespace of its
/// own. Devices belong to `uid` and `gid`.
///
/// # Errors
/// The host's, naming what was being put into the jail.
pub fn enter(root: &Path, needed: &[Needed], uid: u32, gid: u32) -> Result<()> {
    let none = Path::new("none");
    // The control group becomes the root of its namespace here, and not before: who cleans up after the jail stays in the host's, and
    // can leave the group.
    // SAFETY: plain flags; the process has one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP) } < 0 {
        return Err(io::Error::last_os_error()).context("making namespaces of mounts and control groups");
    }
    // Nothing that is mounted from here on is seen by the host.
    mount(none, Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")
        .context("hiding mounts from the host")?;
    mount(Path::new("tmpfs"), root, "tmpfs", libc::MS_NOSUID | libc::MS_NOEXEC, "size=1M,mode=755")
        .context("mounting the root folder")?;
    fs::create_dir_all(root.join("dev/net"))?;
    for &(path, major, minor) in DEVICES {
        let place = root.join(path);
        let name = text(&place)?;
        // SAFETY: the name is a C string that outlives the call.
        let made = unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o660, libc::makedev(major, minor)) };
        if made < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("making /{path}"));
        }
        chown(&place, Some(uid), Some(gid)).with_context(|| format!("giving /{path} to the user"))?;
    }
    let terminals = root.join("dev/pts");
    fs::create_dir(&terminals)?;
    mount(
        Path::new("devpts"),
        &terminals,
        "devpts",
        libc::MS_NOSUID | libc::MS_NOEXEC,
        "newinstance,ptmxmode=0666",
    )
    .context("mounting pseudo-terminals")?;
    std::os::unix::fs::symlink("pts/ptmx", root.join("dev/ptmx"))?;
    let processes = root.join("proc");
    fs::create_dir(&processes)?;
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV;
    mount(Path::new("proc"), &processes, "proc", flags, "").context("mounting /proc")?;
    bind_looked_at(root).with_context(|| format!("binding {LOOKED_AT}"))?;
    for file in needed.iter().filter(|file| !file.path.starts_with("/dev/urandom")) {
        let what = || format!("{}: putting {} into the jail", file.option, file.path.display());
        bind(root, &file.path, file.read_only).with_context(what)?;
    }
    std::env::set_current_dir(root).context("entering the root folder")?;
    let here = c".";
    // SAFETY: both arguments are the same C string, which outlives the call.
    if unsafe { libc::syscall(libc::SYS_pivot_root, here.as_ptr(), here.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error()).context("changing the root folder");
    }
    // The old root now lies on top of the new one.
    // SAFETY: a C string that outlives the call.
    if unsafe { libc::umount2(here.as_ptr(), libc::MNT_DETACH) } < 0 {
        return Err(io::Error::last_os_error()).context("letting go of the host's files");
    }
    std::env::set_current_dir("/").context("entering the root folder")?;
    // Folders are there by now; nothing more is made in the root itself.
    mount(none, Path::new("/"), "", libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID, "")
        .context("closing the root folder")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_is_one_jails_and_what_a_killed_one_left_is_taken_over() {
        let base = std::env::temp_dir().join(format!("vivarium-jail-{}", std::process::id()));
        let path = base.join("web1");
        let first = Folder::make(&path).unwrap();
        let refused = Folder::make(&path).err().unwrap().to_string();
        assert!(refused.starts_with("a jail of that name runs"), "{refused}");
        drop(first);
        assert!(!path.exists());
        // A process that is killed lets go of the lock, and leaves the folder.
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        drop(Folder::make(&path).unwrap());
        assert!(!path.exists());
        fs::remove_dir(base).unwrap();
    }

    #[test]
    fn a_folder_that_others_can_change_is_not_taken_over() {
        let base = std::env::temp_dir().join(format!("vivarium-jail-open-{}", std::process::id()));
        let path = base.join("web1");
        fs::create_dir_all(&path).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = || Folder::make(&path).err().map(|error| error.to_string()).unwrap_or_default();
        mode(&base, 0o755);
        mode(&path, 0o750);
        assert!(refused().contains("is no folder of a jail"), "{}", refused());
        mode(&path, 0o700);
        mode(&base, 0o777);
        assert!(refused().contains("others can change what is in it"), "{}", refused());
        // As in /tmp: others can make files, and take away only their own.
        mode(&base, 0o1777);
        drop(Folder::make(&path).unwrap());
        fs::remove_dir(base).unwrap();
    }
}
