//! Landlock: the files that a machine can reach are those that its configuration names.
//!
//! The rules are made of the configuration itself. They hold for the machine thread and every thread it starts from then on, and
//! are never lifted; a file that a device added later needs has to be allowed from the start, with `--landlock-rules`.

use crate::config::VmConfig;
use crate::config::landlock::LandlockAccess;
use anyhow::{Context, Result, bail};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The newest rules this knows. A kernel that knows fewer enforces those.
const RULES: ABI = ABI::V5;

/// What a machine may need whatever its configuration says: a file or folder, whether it is written to, and why.
const ALWAYS: &[(&str, bool, &str)] = &[
    ("/dev/kvm", true, "machines"),
    ("/dev/net/tun", true, "taps"),
    ("/dev/urandom", false, "network addresses; entropy"),
    ("/dev/ptmx", true, "pseudo-terminals"),
    ("/dev/pts", true, "pseudo-terminals"),
    ("/dev/tty", true, "the terminal"),
    ("/proc/self", true, "the streams this was started with"),
    ("/proc/meminfo", false, "how much memory there is"),
    ("/proc/locks", false, "who holds an image"),
    ("/sys/kernel/mm/hugepages", false, "how many huge pages there are"),
    ("/sys/dev/block", false, "what a disk is like"),
    ("/sys/block", false, "what a disk is like"),
    ("/sys/devices", false, "what a disk is like"),
    ("/sys/class/net", false, "what a tap is like"),
    ("/sys/devices/system/cpu", false, "which CPUs there are"),
];

static ENFORCED: AtomicBool = AtomicBool::new(false);

/// Whether rules are in force.
pub fn enforced() -> bool {
    ENFORCED.load(Ordering::Relaxed)
}

/// What is said to a user whose file cannot be reached, if it may be for these rules.
pub fn hint(error: &anyhow::Error) -> &'static str {
    let denied = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
            || ["Permission denied", "not permitted"].iter().any(|words| cause.to_string().contains(words))
    });
    if denied && enforced() {
        "; --landlock lets this machine reach only the files that its configuration named at the start: allow others then, \
         with --landlock-rules path=<folder>,access=rw"
    } else {
        ""
    }
}

/// What a machine may reach.
pub struct Rules(RulesetCreated);

impl Rules {
    /// Confines the calling thread, and those it starts from now on.
    ///
    /// # Errors
    /// When the kernel has no Landlock.
    pub fn enforce(self) -> Result<()> {
        let status = self.0.restrict_self().context("--landlock: enforcing the rules")?;
        if status.ruleset == RulesetStatus::NotEnforced {
            bail!(
                "--landlock: this host's kernel has no Landlock; boot it with landlock among lsm=, or leave the option out"
            );
        }
        ENFORCED.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Allows the files that `config` names. `own_sockets` are there already, and are taken away at the end. This opens the files,
/// which takes as long as their file systems do.
///
/// # Errors
/// When a file cannot be had.
pub fn rules(config: &VmConfig, own_sockets: &[PathBuf]) -> Result<Rules> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(RULES))
        .context("--landlock: choosing what is restricted")?
        .create()
        .context("--landlock: making the rules")?;
    let (read, both) = (AccessFs::from_read(RULES) & !AccessFs::Execute, read_write());
    for &(path, written, _) in ALWAYS {
        if Path::new(path).exists() {
            rules = allow(rules, "--landlock", Path::new(path), if written { both } else { read })?;
        }
    }
    for socket in own_sockets {
        rules = allow(rules, "--landlock", folder_of(socket), AccessFs::RemoveFile.into())?;
    }
    for file in config.named_files() {
        let parent = folder_of(&file.path);
        if file.socket {
            rules = allow(rules, &file.option, parent, AccessFs::MakeSock | AccessFs::RemoveFile)?;
        } else if file.anew {
            // One that is there now may have been taken away by then; a part of one is removed again.
            rules = allow(rules, &file.option, parent, both | AccessFs::MakeReg | AccessFs::RemoveFile)?;
        } else if file.read_only || file.path.exists() {
            rules = allow(rules, &file.option, &file.path, if file.read_only { read } else { both })?;
        } else if file.made {
            rules = allow(rules, &file.option, parent, both | AccessFs::MakeReg)?;
        }
        // What is missing and not made is found to be so when it is opened.
    }
    for rule in &config.landlock_rules {
        let making = AccessFs::MakeReg | AccessFs::MakeSock | AccessFs::RemoveFile;
        let access = match rule.access {
            LandlockAccess::Read => read,
            LandlockAccess::Write => (both & !read) | making,
            LandlockAccess::ReadWrite => both | making,
        };
        rules = allow(rules, "--landlock-rules path", &rule.path, access)?;
    }
    Ok(Rules(rules))
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reading and writing what is there.
fn read_write() -> BitFlags<AccessFs> {
    let write = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    (AccessFs::from_read(RULES) & !AccessFs::Execute) | write
}

fn allow(
    rules: RulesetCreated,
    option: &str,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated> {
    let place = PathFd::new(path)
        .map_err(|error| anyhow::anyhow!("{option}={}: {error}; correct the path", path.display()))?;
    // What concerns folders means nothing for a file.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(RULES) };
    rules
        .add_rule(PathBeneath::new(place, access))
        .with_context(|| format!("{option}={}: allowing it", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CrashConfig;
    use std::fs::{self, File};

    /// On a kernel without Landlock nothing is refused to begin with.
    #[test]
    fn a_core_dump_can_be_made_and_taken_away_also_where_one_was() {
        let folder = std::env::temp_dir().join(format!("vivarium-landlock-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("vm.core");
        File::create(&path).unwrap();
        let on_crash = CrashConfig { coredump: Some(path.clone()), ..CrashConfig::default() };
        let config = VmConfig { on_crash: Some(on_crash), ..VmConfig::default() };
        let rules = rules(&config, &[]).unwrap();
        fs::remove_file(&path).unwrap();
        let confined = std::thread::spawn(move || {
            rules.0.restrict_self().unwrap();
            File::create_new(&path).and_then(|file| file.set_len(4096))?;
            fs::remove_file(&path)
        });
        let result = confined.join().unwrap();
        fs::remove_dir_all(folder).unwrap();
        result.unwrap();
    }
}
