//! A control group (cgroup v2) of the jail's own.

use anyhow::{Context, Result, bail};
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
    /// Names the setting, or what the host lacks.
    pub fn make(parent: &str, id: &str, settings: &[String]) -> Result<Self> {
        let hierarchy = Path::new(HIERARCHY);
        clear(&hierarchy.join(parent).join(id));
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
/// takes a moment to end. A group that still has a process in it then stays.
fn clear(path: &Path) {
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        match std::fs::remove_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => std::thread::sleep(STEP),
            _ => break,
        }
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
