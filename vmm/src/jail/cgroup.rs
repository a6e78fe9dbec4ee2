//! A control group (cgroup v2) of the jail's own.

use anyhow::{Context, Result, bail};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the hierarchy is mounted.
const HIERARCHY: &str = "/sys/fs/cgroup";

/// How long a machine that was killed may take to end, and how often it is looked at.
const PATIENCE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(10);

/// The jail's group. Dropping it removes it, once nothing is in it.
pub struct Group {
    path: Option<PathBuf>,
}

impl Group {
    /// Makes group `id` below `parent`, with what `settings` (`FILE=VALUE` each) say. Without settings there is none.
    ///
    /// # Errors
    /// Names the setting, what the host lacks, or the machine that is still in the group.
    pub fn make(parent: &str, id: &str, settings: &[String]) -> Result<Self> {
        let hierarchy = Path::new(HIERARCHY);
        clear(&hierarchy.join(parent).join(id), PATIENCE)?;
        if settings.is_empty() {
            return Ok(Self { path: None });
        }
        if !hierarchy.join("cgroup.controllers").exists() {
            bail!("this host has no cgroup v2 at {HIERARCHY}; leave the limits out");
        }
        let parent = hierarchy.join(parent);
        let path = parent.join(id);
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        let group = Self { path: Some(path.clone()) };
        for setting in settings {
            let Some((file, value)) = setting.split_once('=') else {
                bail!("{setting}: is not of the form FILE=VALUE, such as memory.max=2G");
            };
            if file.contains('/') || !file.contains('.') {
                bail!("{file}: is no file of a control group; they are named like memory.max");
            }
            let controller = file.split('.').next().unwrap_or_default();
            // Each group hands a controller on to those below it, from the top on.
            let mut above: Vec<_> =
                parent.ancestors().take_while(|folder| folder.starts_with(hierarchy)).collect();
            above.reverse();
            for folder in above {
                // It may be on already, or not be one that can be switched.
                let _ = std::fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            std::fs::write(path.join(file), value).with_context(|| {
                format!("{setting}: writing it; see whether {HIERARCHY}/cgroup.controllers has {controller}")
            })?;
        }
        Ok(group)
    }

    /// Moves this process into the group.
    ///
    /// # Errors
    /// The host's.
    pub fn enter(&self) -> std::io::Result<()> {
        match &self.path {
            Some(path) => std::fs::write(path.join("cgroup.procs"), std::process::id().to_string()),
            None => Ok(()),
        }
    }
}

/// Takes away the group that a jail left whose process was killed, with limits of its own. The machine in it was killed with that, and
/// takes a moment to end: as long as `patience`.
///
/// # Errors
/// When there is still something in the group then.
fn clear(path: &Path, patience: Duration) -> Result<()> {
    let mut left = patience.as_millis() / STEP.as_millis();
    loop {
        match std::fs::remove_dir(path) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && left > 0 => std::thread::sleep(STEP),
            Err(error) if error.kind() == ErrorKind::ResourceBusy => bail!(
                "{}: is still in use, as a machine of that name has not ended; wait, or give another name",
                path.display()
            ),
            _ => return Ok(()),
        }
        left -= 1;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Out of it first: a group with a process in it stays.
            let outside = Path::new(HIERARCHY).join("cgroup.procs");
            let _ = std::fs::write(outside, std::process::id().to_string());
            let _ = std::fs::remove_dir(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_is_still_in_use_is_not_taken_over() {
        // A folder that cannot be removed for the same reason as a group with a process in it.
        let refused = clear(Path::new("/"), Duration::ZERO).unwrap_err().to_string();
        assert!(refused.contains("a machine of that name has not ended"), "{refused}");
        clear(Path::new("/proc/nope"), Duration::ZERO).unwrap();
    }
}
