//! Finds out a disk's block sizes from the file or device behind it.

use super::Topology;
use super::open::OpenError;
use crate::host::{self, DeviceNumber, DirectAlignment, device_number};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The page size of all storage formats: the largest block that is reported for a file.
const FILE_BLOCK_MAX: u64 = 4096;

/// What is behind an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    File,
    Device,
}

/// The topology of `file`, and the alignment that direct I/O requires if that is wanted.
pub(super) fn find(
    file: &File,
    backing: Backing,
    direct: bool,
) -> Result<(Topology, Option<DirectAlignment>), OpenError> {
    let mut topology = match backing {
        Backing::Device => device(file),
        Backing::File => regular(file),
    };
    if !direct {
        return Ok((topology, None));
    }
    let told = host::direct_alignment(file).map_err(|_| OpenError::DirectUnsupported)?;
    // Where the kernel does not tell: devices go by their blocks, and files by the largest block in use.
    let alignment = told.unwrap_or(match backing {
        Backing::Device => DirectAlignment { memory: topology.logical_block, offset: topology.logical_block },
        Backing::File => DirectAlignment { memory: FILE_BLOCK_MAX as u32, offset: topology.logical_block },
    });
    if alignment.offset > topology.logical_block {
        if backing == Backing::File {
            tracing::warn!(
                "the guest sees sectors of {} bytes, since direct=on allows no smaller ones on this file system",
                alignment.offset
            );
        }
        topology.logical_block = alignment.offset;
        topology.physical_block = topology.physical_block.max(alignment.offset);
    }
    Ok((topology, Some(alignment)))
}

fn regular(file: &File) -> Topology {
    let block = file.metadata().map_or(0, |metadata| metadata.blksize());
    let block = if block.is_power_of_two() { block.clamp(512, FILE_BLOCK_MAX) as u32 } else { 512 };
    Topology {
        logical_block: 512,
        physical_block: block,
        alignment_offset: 0,
        minimum_io: block,
        optimal_io: 0,
        discard_granularity: block,
    }
}

fn device(file: &File) -> Topology {
    let power = |number: u32, least: u32| if number.is_power_of_two() { number.max(least) } else { least };
    let logical_block = power(device_number(file, DeviceNumber::LogicalBlock), 512);
    let physical_block = power(device_number(file, DeviceNumber::PhysicalBlock), logical_block);
    Topology {
        logical_block,
        physical_block,
        alignment_offset: device_number(file, DeviceNumber::AlignmentOffset),
        minimum_io: device_number(file, DeviceNumber::MinimumIo),
        optimal_io: device_number(file, DeviceNumber::OptimalIo),
        discard_granularity: discard_granularity(file).unwrap_or(0),
    }
}

/// A block device's discard granularity, from sysfs; partitions have their disk's.
fn discard_granularity(file: &File) -> Option<u32> {
    let number = file.metadata().ok()?.rdev();
    let directory = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number)));
    let attribute = |name: &str| {
        let paths = [directory.join("queue").join(name), directory.join("../queue").join(name)];
        paths.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
    };
    if attribute("discard_max_bytes")? == 0 {
        return None;
    }
    u32::try_from(attribute("discard_granularity")?).ok()
}
