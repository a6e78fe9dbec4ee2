//! Memory shared with others.

use super::{Backend, Opened, Part, Seat, Site};
use crate::config::IvshmemConfig;
use crate::machine::control::Control;
use crate::machine::pci_bus::PlainDevice;
use crate::machine::shared_memory::SharedMemory;
use anyhow::{Context, Result};
use devices::ivshmem::server::{self, Link};
use devices::ivshmem::{Ivshmem, Peers};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a server may take for each of the messages that it sends at once.
const SERVER_PATIENCE: Duration = Duration::from_secs(5);

/// Opens shared memory.
///
/// # Errors
/// When its file or server cannot be had.
pub(super) fn open(site: &Site, config: &IvshmemConfig) -> Result<Opened> {
    let (device, memory, link) = match &config.socket {
        None => {
            let memory = SharedMemory::open(config)?;
            (Ivshmem::new(memory.size().0)?, memory, None)
        }
        Some(socket) => {
            let joined = server::join(socket, SERVER_PATIENCE)?;
            let memory = SharedMemory::given(joined.memory.try_clone()?)?;
            let msi = site.msi.upgrade().context("the machine has ended")?;
            let (size, peers) = (memory.size().0, Arc::<Peers>::default());
            let (device, vectors) =
                Ivshmem::with_doorbell(size, joined.number, Arc::clone(&peers), config.vectors, msi)?;
            (device, memory, Some(Link::new(joined, peers, vectors)?))
        }
    };
    let device = Arc::new(Mutex::new(device));
    let plain = PlainDevice {
        function: device.clone(),
        memory: Some((Ivshmem::MEMORY_BAR, memory)),
        task: link.map(Link::into_task),
    };
    let seat = Seat { control: Some(Control::SharedMemory(device)), ..Seat::of(config) };
    Ok(seat.with(Backend::Ready(Part::Plain(plain))))
}
