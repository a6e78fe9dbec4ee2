//! `--channel`.

use super::options::options;
use super::validate::ConfigError;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The most channels: what ports the virtio console has beside the console itself.
const MOST: usize = devices::virtio::console::MAX_PORTS - 1;
/// The longest name in bytes.
const LONGEST_NAME: usize = 128;
/// The longest path of a UNIX socket in bytes (`sun_path` without its NUL).
const LONGEST_PATH: usize = 107;

options! {
    /// A named channel between a program in the guest and one on the host: a further port of the virtio console.
    pub struct ChannelConfig {
        /// The name by which the guest finds it, in Linux as `/dev/virtio-ports/<name>`.
        ["name"] name: String = String::new(),
        /// The UNIX socket by which a program on the host connects to it, one at a time.
        ["socket"] socket: Option<PathBuf> = None,
    }
}

/// Checks what `--channel` says.
///
/// # Errors
/// Names the channel at fault, and says what to do.
pub(super) fn check(channels: &[ChannelConfig]) -> Result<(), ConfigError> {
    let mut names = BTreeSet::new();
    for channel in channels {
        let name = channel.name.as_str();
        let wrong = |reason: String| {
            let option = if name.is_empty() { "--channel".into() } else { format!("--channel name={name}") };
            Err(ConfigError { option, reason })
        };
        if name.is_empty() {
            return wrong("has no name; add name=<name>, such as name=org.qemu.guest_agent.0".into());
        }
        if name.len() > LONGEST_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
            return wrong(format!(
                "the name has up to {LONGEST_NAME} letters, digits and other signs, but no blanks and no slash"
            ));
        }
        if !names.insert(name) {
            return wrong("is given to two channels; names must differ".into());
        }
        let Some(socket) = channel.socket.as_ref().filter(|socket| !socket.as_os_str().is_empty()) else {
            return wrong("has no socket; add socket=<path>".into());
        };
        if socket.as_os_str().len() > LONGEST_PATH {
            return wrong(format!("the path of its socket has more than {LONGEST_PATH} bytes; shorten it"));
        }
    }
    if channels.len() > MOST {
        let option = "--channel".into();
        return Err(ConfigError {
            option,
            reason: format!("is given {} times; a machine has at most {MOST}", channels.len()),
        });
    }
    Ok(())
}
