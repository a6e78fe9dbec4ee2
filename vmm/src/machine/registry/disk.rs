//! Disks.

use super::{Opened, Seat, Site, affinity, limiter};
use crate::config::DiskConfig;
use crate::config::disk::DiskEngine;
use crate::machine::control::Control;
use crate::machine::workers::{self, Sharing};
use crate::seccomp::{self, ThreadKind};
use anyhow::Result;
use block::engine::EngineKind;
use block::image::{self, OpenOptions};
use block::virtio_blk::{Block, BlockOptions, HostError, OnError};
use std::sync::Arc;
use std::time::Duration;
use virtio::pci_transport;

/// Opens a disk.
///
/// # Errors
/// When its image cannot be had.
pub(super) fn open(site: &Site, disk: &DiskConfig) -> Result<Opened> {
    let seat = Seat::of(disk);
    let device = open_image(site, disk, &seat.id)?;
    let seat = Seat {
        transport: pci_transport::Options { packed: disk.packed, ..seat.transport },
        workers: workers::Options {
            poll: Duration::from_micros(disk.poll_us.into()),
            affinity: affinity(&disk.queue_affinity)?,
            sharing: disk.workers.map(|workers| Sharing { workers, together: 1 }),
            ..seat.workers
        },
        control: Some(Control::Disk(device.control())),
        ..seat
    };
    Ok(seat.with_virtio(device))
}

fn open_image(site: &Site, disk: &DiskConfig, id: &str) -> Result<Block> {
    let image = image::open(&OpenOptions {
        path: disk.path.clone().unwrap_or_default(),
        read_only: disk.readonly,
        direct: disk.direct,
        engine: match disk.engine {
            DiskEngine::Auto => EngineKind::Auto,
            DiskEngine::IoUring => EngineKind::IoUring,
            DiskEngine::Threads => EngineKind::Threads,
        },
        thread_start: Some(Arc::new(|| seccomp::confine(ThreadKind::Worker))),
        ..OpenOptions::default()
    })?;
    let own = || limiter(disk.rate_limiter_config.as_ref(), &site.clock);
    let shared = disk.rate_limit_group.as_deref().and_then(|group| site.groups.get(group).cloned());
    let options = BlockOptions {
        name: id.to_owned(),
        serial: disk.serial.clone().unwrap_or_default(),
        queues: disk.num_queues,
        queue_size: disk.queue_size,
        write_back: disk.writeback,
        limiter: Some(shared.unwrap_or_else(own)),
        on_error: Some(tell_of_errors(site, id)),
    };
    Ok(Block::new(image, options)?)
}

/// Tells of the requests of disk `id` that the host fails.
fn tell_of_errors(site: &Site, id: &str) -> OnError {
    let (events, id) = (site.events.clone(), id.to_owned());
    Arc::new(move |HostError { operation, reason, errors }| {
        let properties = [
            ("id", id.as_str().into()),
            ("operation", operation.as_str().into()),
            ("reason", reason.as_str().into()),
            ("errors", (*errors).into()),
        ];
        events.emit_for_guest("vm", "disk-error", properties);
    })
}
