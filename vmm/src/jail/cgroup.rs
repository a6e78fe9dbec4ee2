//! A control group (cgroup v2) of the jail's own.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Where the hierarchy is mounted.
const HIERARCHY: &str = "/sys/fs/cgroup";

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
        // A jail whose process was killed left its group, with limits of its own. One with a process in it stays.
        let _ = std::fs::remove_dir(hierarchy.join(parent).join(id));
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
