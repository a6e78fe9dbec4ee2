//! `--channel`.

use super::ConsoleConfig;
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
    /// A named channel between a program in the guest and one on the host: a further port of a virtio console.
    pub struct ChannelOption {
        /// The name by which the guest finds it, in Linux as `/dev/virtio-ports/<name>`.
        ["name"] name: String = String::new(),
        /// The UNIX socket by which a program on the host connects to it, one at a time.
        ["socket"] socket: Option<PathBuf> = None,
        /// The id of the console that it is a port of; the first if not given.
        ["console"] console: Option<String> = None,
    }
}

options! {
    /// A named channel between a program in the guest and one on the host: a further port of the virtio console.
    pub struct ChannelConfig {
        /// The name by which the guest finds it, in Linux as `/dev/virtio-ports/<name>`.
        ["name"] name: String = String::new(),
        /// The UNIX socket by which a program on the host connects to it, one at a time.
        ["socket"] socket: Option<PathBuf> = None,
    }
}

/// Gives consoles their channels. There is a console for them in any case.
///
/// # Errors
/// When one names a console that is not there.
pub fn share_out(consoles: &mut Vec<ConsoleConfig>, channels: Vec<ChannelOption>) -> Result<(), ConfigError> {
    for ChannelOption { name, socket, console } in channels {
        let channel = ChannelConfig { name, socket };
        let place = match &console {
            None if consoles.is_empty() => {
                consoles.push(ConsoleConfig::default());
                consoles.first_mut()
            }
            None => consoles.first_mut(),
            Some(id) => consoles.iter_mut().find(|other| other.id.as_ref() == Some(id)),
        };
        let Some(place) = place else {
            return Err(ConfigError {
                option: format!("--channel name={}", channel.name),
                reason: format!(
                    "console={}: there is no --console of that id; give one id=, or leave this out",
                    console.unwrap_or_default()
                ),
            });
        };
        place.channels.push(channel);
    }
    Ok(())
}

/// Checks the channels of all consoles.
///
/// # Errors
/// Names the channel at fault, and says what to do.
pub(super) fn check(consoles: &[ConsoleConfig]) -> Result<(), ConfigError> {
    let mut names = BTreeSet::new();
    for channel in consoles.iter().flat_map(|console| &console.channels) {
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
    if let Some(console) = consoles.iter().find(|console| console.channels.len() > MOST) {
        let count = console.channels.len();
        return Err(ConfigError {
            option: "--channel".into(),
            reason: format!(
                "is given {count} times for one console, which has at most {MOST}; add a --console"
            ),
        });
    }
    Ok(())
}
