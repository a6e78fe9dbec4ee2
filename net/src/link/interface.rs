//! Setting up a network interface of the host (`netdevice(7)`).

use crate::mac::MacAddress;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The longest name of an interface, in bytes.
pub(super) const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// `struct ifreq`: an interface's name and, by the request, one of many things (`netdevice(7)`).
#[repr(C)]
pub(super) struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl InterfaceRequest {
    pub(super) fn new(name: &str, flags: u16) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], value: [0; 24] };
        request.name.iter_mut().take(MAX_NAME).zip(name.bytes()).for_each(|(to, from)| *to = from);
        request.set(0, &flags.to_ne_bytes());
        request
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.value.iter_mut().skip(offset).zip(bytes).for_each(|(to, from)| *to = *from);
    }

    pub(super) fn flags(&self) -> u16 {
        let [a, b, ..] = self.value;
        u16::from_ne_bytes([a, b])
    }

    fn number(&self) -> i32 {
        let [a, b, c, d, ..] = self.value;
        i32::from_ne_bytes([a, b, c, d])
    }

    pub(super) fn name(&self) -> String {
        let bytes: Vec<u8> = self.name.iter().copied().take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Makes a request whose argument is a pointer to `argument`: an `int` or a `struct ifreq`, as the request wants.
///
/// # Safety
/// `argument` is of the type that `request` takes.
pub(super) unsafe fn control<T>(
    file: &impl AsRawFd,
    request: libc::Ioctl,
    argument: &mut T,
) -> io::Result<()> {
    // SAFETY: the caller gives what the request takes.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// An interface of the host, to be set up.
pub(super) struct Interface<'a> {
    name: &'a str,
    socket: OwnedFd,
}

impl<'a> Interface<'a> {
    pub(super) fn new(name: &'a str) -> io::Result<Self> {
        // SAFETY: opens a socket.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and nobody else has it.
        Ok(Self { name, socket: unsafe { OwnedFd::from_raw_fd(socket) } })
    }

    fn request(
        &self,
        request: libc::Ioctl,
        set: impl FnOnce(&mut InterfaceRequest),
    ) -> io::Result<InterfaceRequest> {
        let mut argument = InterfaceRequest::new(self.name, 0);
        set(&mut argument);
        // SAFETY: the requests of this file take a `struct ifreq`.
        unsafe { control(&self.socket, request, &mut argument) }?;
        Ok(argument)
    }

    pub(super) fn mtu(&self) -> io::Result<u16> {
        Ok(u16::try_from(self.request(libc::SIOCGIFMTU, |_| ())?.number()).unwrap_or(u16::MAX))
    }

    pub(super) fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        self.request(libc::SIOCSIFMTU, |request| request.set(0, &i32::from(mtu).to_ne_bytes())).map(drop)
    }

    pub(super) fn set_mac(&self, mac: MacAddress) -> io::Result<()> {
        self.request(libc::SIOCSIFHWADDR, |request| {
            request.set(0, &libc::ARPHRD_ETHER.to_ne_bytes());
            request.set(2, &mac.bytes());
        })
        .map(drop)
    }

    pub(super) fn set_address(&self, what: libc::Ioctl, address: Ipv4Addr) -> io::Result<()> {
        self.request(what, |request| {
            request.set(0, &(libc::AF_INET as u16).to_ne_bytes());
            request.set(4, &address.octets());
        })
        .map(drop)
    }

    /// Brings it up, unless it is: that much is also allowed to those who may not.
    pub(super) fn bring_up(&self) -> io::Result<()> {
        let flags = self.request(libc::SIOCGIFFLAGS, |_| ())?.flags();
        let up = libc::IFF_UP as u16;
        if flags & up != 0 {
            return Ok(());
        }
        self.request(libc::SIOCSIFFLAGS, |request| request.set(0, &(flags | up).to_ne_bytes())).map(drop)
    }
}
