//! Taps: network interfaces of the host whose other end is a file (Linux, `Documentation/networking/tuntap.rst`).
//!
//! A tap is made, or is given by name or as open files, one for each queue pair. Packets cross with a 12-byte virtio header, so
//! that checksums and segmentation are left to whoever does them cheapest.

use super::interface::{Interface, InterfaceRequest, MAX_NAME, control};
use super::{Link, read, write};
use crate::features::Features;
use crate::mac::MacAddress;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use thiserror::Error;
use virtio::chain::Segment;

const DEVICE: &str = "/dev/net/tun";
/// The most queue pairs of a tap.
const MAX_PAIRS: u16 = 256;
/// What a tap is called that is given no name; the kernel puts a number in.
const NAME_TEMPLATE: &str = "vmtap%d";
/// Bytes in the header in front of each packet.
const HEADER_SIZE: libc::c_int = 12;

/// What tap to open, and how to set it up.
#[derive(Debug, Default)]
pub struct TapConfig {
    /// The interface's name. One that does not exist is made, and is gone when the tap is closed. `None`: made with a name the
    /// kernel chooses.
    pub name: Option<String>,
    /// Files of an opened tap, one for each queue pair; takes the place of `name`.
    pub files: Vec<OwnedFd>,
    /// Number of queue pairs, 1 to 256. Counts without `files` only.
    pub pairs: u16,
    /// Largest packet in bytes, without Ethernet's header; `None` leaves it.
    pub mtu: Option<u16>,
    /// The MAC address of the host's end; `None` leaves it.
    pub host_mac: Option<MacAddress>,
    /// The IP address of the host's end; `None` leaves it.
    pub address: Option<Ipv4Setting>,
}

/// An IPv4 address with its network's mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Setting {
    /// The address.
    pub address: Ipv4Addr,
    /// The mask.
    pub mask: Ipv4Addr,
}

/// Why a tap could not be opened or set up.
#[derive(Debug, Error)]
pub enum TapError {
    /// The name cannot be one.
    #[error("the tap name {name:?} {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More queue pairs than a tap has, or none.
    #[error("{0} queue pairs: a tap has 1 to {MAX_PAIRS}")]
    Pairs(u16),
    /// The host has no taps.
    #[error("{DEVICE}: not found: load the tun module (modprobe tun)")]
    Missing,
    /// This user may not make or open the tap.
    #[error(
        "tap {name}: not permitted: give the program the capability CAP_NET_ADMIN, or use a tap that exists and belongs to \
         the user (ip tuntap add NAME mode tap user USER)"
    )]
    NotPermitted {
        /// The tap.
        name: String,
    },
    /// Somebody else has it.
    #[error("tap {name}: in use by another process: stop that one, or use another tap")]
    Busy {
        /// The tap.
        name: String,
    },
    /// There is another kind of interface with this name.
    #[error("{name} is a network interface, but not a tap: choose another name")]
    NotATap {
        /// The name.
        name: String,
    },
    /// It has one queue, and several are asked for.
    #[error(
        "tap {name} has a single queue pair, and {pairs} are asked for: make it anew with multi_queue (ip tuntap add {name} \
         mode tap multi_queue), or ask for 1 pair (num_queues=2)"
    )]
    SingleQueue {
        /// The tap.
        name: String,
        /// What was asked for.
        pairs: u16,
    },
    /// A file given is not a tap.
    #[error("file descriptor {0} is not an open tap with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    NotATapFile(RawFd),
    /// The files given belong to different taps.
    #[error("the file descriptors given are of different taps, {0} and {1}")]
    DifferentTaps(String, String),
    /// The host refused a setting.
    #[error("tap {name}: the host refuses {key}={value}; {remedy}: {source}")]
    Setting {
        /// The tap.
        name: String,
        /// What is set.
        key: &'static str,
        /// To what.
        value: String,
        /// The host's answer.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The host refused something else.
    #[error("tap {name}: cannot {what}: {source}")]
    Host {
        /// The tap.
        name: String,
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    name: String,
    mtu: u16,
    queues: Vec<Arc<TapQueue>>,
}

/// One queue pair of a tap.
#[derive(Debug)]
pub struct TapQueue {
    file: OwnedFd,
    offloads: Features,
    multi_queue: bool,
    /// What was last set of whether it is in use.
    state: AtomicU8,
}

/// What [`TapQueue::state`] says: nothing, that it is not in use, or that it is.
const UNKNOWN: u8 = 0;
const DETACHED: u8 = 1;
const ATTACHED: u8 = 2;

impl Tap {
    /// Opens a tap and sets it up.
    ///
    /// # Errors
    /// When the name is none, the tap is another's, of another kind or not permitted, or the host refuses a setting.
    pub fn open(config: TapConfig) -> Result<Self, TapError> {
        let TapConfig { name, files, pairs, mtu, host_mac, address } = config;
        let (name, files, multi_queue) =
            if files.is_empty() { open_by_name(name.as_deref(), pairs)? } else { adopt(files)? };
        let host = |what| {
            let name = name.clone();
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted { name },
                _ => TapError::Host { name, what, source },
            }
        };
        for file in &files {
            let mut size = HEADER_SIZE;
            // SAFETY: it takes an `int`.
            unsafe { control(file, libc::TUNSETVNETHDRSZ, &mut size) }
                .map_err(host("set the size of packets' headers"))?;
        }
        let offloads = files.first().map_or(Features::empty(), supported_offloads);
        let interface = Interface::new(&name).map_err(host("open a socket to set it up"))?;
        let setting = |key, value: &dyn std::fmt::Display, remedy| {
            let (name, value) = (name.clone(), value.to_string());
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted { name },
                _ => TapError::Setting { name, key, value, source, remedy },
            }
        };
        if let Some(mac) = host_mac {
            let remedy = "give a unicast address, whose first byte is even";
            interface.set_mac(mac).map_err(setting("host_mac", &mac, remedy))?;
        }
        if let Some(Ipv4Setting { address, mask }) = address {
            let remedy = "give an address such as 192.168.249.1";
            interface.set_address(libc::SIOCSIFADDR, address).map_err(setting("ip", &address, remedy))?;
            let remedy = "give a mask such as 255.255.255.0";
            interface.set_address(libc::SIOCSIFNETMASK, mask).map_err(setting("mask", &mask, remedy))?;
        }
        let mut current = interface.mtu().map_err(host("read its MTU"))?;
        if let Some(mtu) = mtu.filter(|mtu| *mtu != current) {
            let remedy = "a tap of Linux takes 68 to 65521";
            interface.set_mtu(mtu).map_err(setting("mtu", &mtu, remedy))?;
            current = mtu;
        }
        interface.bring_up().map_err(host("bring it up"))?;
        let queue = |file| Arc::new(TapQueue { file, offloads, multi_queue, state: AtomicU8::new(UNKNOWN) });
        Ok(Self { mtu: current, queues: files.into_iter().map(queue).collect(), name })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Largest packet in bytes, without Ethernet's header.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The ends of its queue pairs.
    pub fn links(&self) -> Vec<Arc<dyn Link>> {
        self.queues.iter().map(|queue| Arc::clone(queue) as Arc<dyn Link>).collect()
    }
}

impl Link for TapQueue {
    unsafe fn receive(&self, into: &[Segment]) -> io::Result<usize> {
        // SAFETY: passed on from the caller.
        unsafe { read(self.file.as_raw_fd(), into) }
    }

    unsafe fn send(&self, from: &[Segment]) -> io::Result<usize> {
        // SAFETY: passed on from the caller.
        unsafe { write(self.file.as_raw_fd(), from) }
    }

    fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn offloads(&self) -> Features {
        self.offloads
    }

    fn set_offloads(&self, offloads: Features) -> io::Result<()> {
        set_offloads(&self.file, offloads)
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        if !self.multi_queue {
            return Ok(());
        }
        let state = if enabled { ATTACHED } else { DETACHED };
        // It takes a lock that all networks of the host share.
        if self.state.load(Ordering::Relaxed) == state {
            return Ok(());
        }
        let flags = if enabled { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        let mut request = InterfaceRequest::new("", flags as u16);
        // SAFETY: it takes a `struct ifreq`.
        match unsafe { control(&self.file, libc::TUNSETQUEUE, &mut request) } {
            // It is already so.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => result?,
        }
        self.state.store(state, Ordering::Relaxed);
        Ok(())
    }
}

/// Opens or makes a tap. Returns its name, its files, and whether it can have several.
fn open_by_name(name: Option<&str>, pairs: u16) -> Result<(String, Vec<OwnedFd>, bool), TapError> {
    if pairs == 0 || pairs > MAX_PAIRS {
        return Err(TapError::Pairs(pairs));
    }
    let mut multi_queue = pairs > 1;
    if let Some(name) = name {
        check_name(name)?;
        match existing(name) {
            Existing::Nothing => {}
            Existing::Other => return Err(TapError::NotATap { name: name.to_owned() }),
            Existing::Tap { multi_queue: false } if multi_queue => {
                return Err(TapError::SingleQueue { name: name.to_owned(), pairs });
            }
            Existing::Tap { multi_queue: existing } => multi_queue = existing,
        }
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut name = name.unwrap_or(NAME_TEMPLATE).to_owned();
    let mut files = Vec::new();
    for _ in 0..pairs {
        let file = open_device(&name)?;
        let mut request = InterfaceRequest::new(&name, flags as u16);
        // SAFETY: it takes a `struct ifreq`.
        let opened = unsafe { control(&file, libc::TUNSETIFF, &mut request) };
        opened.map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted { name: name.clone() },
            Some(libc::EBUSY) => TapError::Busy { name: name.clone() },
            _ => TapError::Host { name: name.clone(), what: "open it", source },
        })?;
        name = request.name();
        files.push(file.into());
    }
    Ok((name, files, multi_queue))
}

/// Takes over files of an open tap.
fn adopt(files: Vec<OwnedFd>) -> Result<(String, Vec<OwnedFd>, bool), TapError> {
    let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let mut name: Option<String> = None;
    let mut multi_queue = false;
    for file in &files {
        let mut request = InterfaceRequest::new("", 0);
        let not_a_tap = TapError::NotATapFile(file.as_raw_fd());
        // SAFETY: it takes a `struct ifreq`.
        if unsafe { control(file, libc::TUNGETIFF, &mut request) }.is_err() {
            return Err(not_a_tap);
        }
        let flags = libc::c_int::from(request.flags());
        if flags & needed != needed {
            return Err(not_a_tap);
        }
        multi_queue = flags & libc::IFF_MULTI_QUEUE != 0;
        let this = request.name();
        match &name {
            Some(name) if *name != this => return Err(TapError::DifferentTaps(name.clone(), this)),
            _ => name = Some(this),
        }
    }
    let name = name.unwrap_or_default();
    for file in &files {
        set_nonblocking(file).map_err(|source| TapError::Host {
            name: name.clone(),
            what: "make its file non-blocking",
            source,
        })?;
    }
    Ok((name, files, multi_queue))
}

fn check_name(name: &str) -> Result<(), TapError> {
    match wrong_name(name) {
        None => Ok(()),
        Some(reason) => Err(TapError::Name { name: name.to_owned(), reason }),
    }
}

/// Why an interface cannot have this name; `None` if it can.
pub fn wrong_name(name: &str) -> Option<&'static str> {
    let reason = if name.is_empty() {
        "is empty: leave it out to have one chosen"
    } else if name.len() > MAX_NAME {
        "is too long: an interface's name has at most 15 bytes"
    } else if name == "."
        || name == ".."
        || name.contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace())
    {
        "cannot be an interface's: it may not contain / : % or spaces, nor be . or .."
    } else if name.contains('\0') {
        "contains a zero byte"
    } else {
        return None;
    };
    Some(reason)
}

/// What interface has a name already.
enum Existing {
    Nothing,
    Tap { multi_queue: bool },
    Other,
}

fn existing(name: &str) -> Existing {
    let directory = std::path::Path::new("/sys/class/net").join(name);
    if !directory.exists() {
        return Existing::Nothing;
    }
    let flags = std::fs::read_to_string(directory.join("tun_flags")).unwrap_or_default();
    let flags =
        flags.trim().strip_prefix("0x").and_then(|digits| libc::c_int::from_str_radix(digits, 16).ok());
    match flags {
        Some(flags) if flags & libc::IFF_TAP != 0 => {
            Existing::Tap { multi_queue: flags & libc::IFF_MULTI_QUEUE != 0 }
        }
        _ => Existing::Other,
    }
}

fn open_device(name: &str) -> Result<File, TapError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    options.open(DEVICE).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::Missing,
        Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted { name: name.to_owned() },
        _ => TapError::Host { name: name.to_owned(), what: "open /dev/net/tun", source },
    })
}

/// Which offloads this kernel's taps know: tried out, since there is no other way to tell.
fn supported_offloads(file: &OwnedFd) -> Features {
    let mut supported = Features::empty();
    let groups = [
        Features::GUEST_CSUM,
        Features::GUEST_TSO4 | Features::GUEST_TSO6 | Features::GUEST_ECN,
        Features::GUEST_UFO,
        Features::GUEST_USO4 | Features::GUEST_USO6,
    ];
    for group in groups {
        if set_offloads(file, Features::GUEST_CSUM | group).is_ok() {
            supported |= group;
        }
    }
    // Until a driver asks for more.
    let _ = set_offloads(file, Features::empty());
    supported
}

fn set_offloads(file: &OwnedFd, offloads: Features) -> io::Result<()> {
    let mut flags = 0;
    // Without checksums nothing else can be left to the guest, and UDP segmentation only for both versions of IP.
    if offloads.contains(Features::GUEST_CSUM) {
        flags |= libc::TUN_F_CSUM;
        for (feature, flag) in [
            (Features::GUEST_TSO4, libc::TUN_F_TSO4),
            (Features::GUEST_TSO6, libc::TUN_F_TSO6),
            (Features::GUEST_ECN, libc::TUN_F_TSO_ECN),
            (Features::GUEST_UFO, libc::TUN_F_UFO),
            (Features::GUEST_USO4 | Features::GUEST_USO6, libc::TUN_F_USO4 | libc::TUN_F_USO6),
        ] {
            if offloads.contains(feature) {
                flags |= flag;
            }
        }
    }
    // SAFETY: the request takes its argument by value.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_nonblocking(file: &OwnedFd) -> io::Result<()> {
    // SAFETY: reads and sets a flag of an open file.
    let result = unsafe {
        match libc::fcntl(file.as_raw_fd(), libc::F_GETFL) {
            -1 => -1,
            flags => libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK),
        }
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> TapConfig {
        TapConfig { name: Some(name.to_owned()), pairs: 1, ..TapConfig::default() }
    }

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for name in ["", "a-name-of-16-byte", "a/b", "a b", ".", "..", "a%d", "a:b", "a\0b"] {
            assert!(matches!(Tap::open(named(name)), Err(TapError::Name { .. })), "{name:?}");
        }
        let error = Tap::open(named("0123456789abcdef")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the tap name \"0123456789abcdef\" is too long: an interface's name has at most 15 bytes"
        );
    }

    #[test]
    fn an_interface_that_is_no_tap_and_a_file_that_is_none_are_refused() {
        assert!(matches!(Tap::open(named("lo")), Err(TapError::NotATap { .. })));
        let file = File::open("/dev/null").unwrap();
        let config = TapConfig { files: vec![file.into()], ..TapConfig::default() };
        assert!(matches!(Tap::open(config), Err(TapError::NotATapFile(_))));
        for pairs in [0, 257] {
            let config = TapConfig { pairs, ..TapConfig::default() };
            assert!(matches!(Tap::open(config), Err(TapError::Pairs(_))));
        }
    }
}
