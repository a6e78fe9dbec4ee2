//! What the driver can find out and set: feature bits and the configuration space (virtio 1.2, 5.2.3 and 5.2.4).

use crate::image::{SECTOR, Topology};
use virtio::device::read_fields;

/// `VIRTIO_BLK_F_SEG_MAX`: the number of segments in a request is limited.
pub const SEG_MAX: u64 = 1 << 2;
/// `VIRTIO_BLK_F_RO`: the disk is read-only.
pub const RO: u64 = 1 << 5;
/// `VIRTIO_BLK_F_BLK_SIZE`: the block size is in the configuration space.
pub const BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`: flush requests.
pub const FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_TOPOLOGY`: I/O alignment is in the configuration space.
pub const TOPOLOGY: u64 = 1 << 10;
/// `VIRTIO_BLK_F_CONFIG_WCE`: the driver can switch between write-back and write-through.
pub const CONFIG_WCE: u64 = 1 << 11;
/// `VIRTIO_BLK_F_MQ`: several queues.
pub const MQ: u64 = 1 << 12;
/// `VIRTIO_BLK_F_DISCARD`: discard requests.
pub const DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`: write zeroes requests.
pub const WRITE_ZEROES: u64 = 1 << 14;

/// The most ranges in one discard or write zeroes request.
pub const RANGES_MAX: u32 = 64;
/// The most sectors in a range to discard: 2 GiB.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// The most sectors in a range to zero: 128 MiB, which may have to be written.
pub const ZERO_SECTORS_MAX: u32 = 1 << 18;

/// The most data segments in a request that a driver is told of, however large its queues are.
const SEG_MAX_OFFERED: u32 = 126;
/// The most segments of a request that are kept track of: as many as are offered, header and status, in pieces of guest memory
/// that are not in one piece in this process. Requests of more fail.
pub(super) const SEGMENTS_MAX: usize = 256;

/// Size of the part of the space that these features use.
const SIZE: usize = 60;
/// Where the cache mode is: the only writable field.
const WRITEBACK: u64 = 32;

/// What the space is made of.
pub(super) struct Space {
    pub(super) size: u64,
    pub(super) topology: Topology,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
    pub(super) write_back: bool,
    pub(super) read_only: bool,
}

impl Space {
    /// The features offered for such a disk.
    pub(super) fn features(&self) -> u64 {
        let mut features = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE;
        if self.queues > 1 {
            features |= MQ;
        }
        if self.read_only {
            features |= RO;
        } else {
            features |= WRITE_ZEROES;
            if self.topology.discard_granularity != 0 {
                features |= DISCARD;
            }
        }
        features
    }

    /// Copies from the space. Bytes past its end are left alone.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.bytes(), offset, data);
    }

    fn bytes(&self) -> [u8; SIZE] {
        let topology = &self.topology;
        let logical = topology.logical_block;
        let blocks = |bytes: u32| bytes.checked_div(logical).unwrap_or(0);
        let exponent = topology.physical_block.max(1).ilog2().saturating_sub(logical.max(1).ilog2());
        let features = self.features();
        let mut space = [0; SIZE];
        let mut put = |offset: usize, field: &[u8]| {
            let end = offset.saturating_add(field.len());
            if let Some(place) = space.get_mut(offset..end) {
                place.copy_from_slice(field);
            }
        };
        put(0, &self.size.checked_div(SECTOR).unwrap_or(0).to_le_bytes());
        put(12, &seg_max(self.queue_size).to_le_bytes());
        put(20, &logical.to_le_bytes());
        put(24, &[exponent as u8, blocks(topology.alignment_offset).min(255) as u8]);
        put(26, &(blocks(topology.minimum_io).min(u32::from(u16::MAX)) as u16).to_le_bytes());
        put(28, &blocks(topology.optimal_io).to_le_bytes());
        put(32, &[u8::from(self.write_back)]);
        put(34, &self.queues.to_le_bytes());
        if features & DISCARD != 0 {
            put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
            put(40, &RANGES_MAX.to_le_bytes());
            put(44, &(topology.discard_granularity.max(logical) >> 9).to_le_bytes());
        }
        if features & WRITE_ZEROES != 0 {
            put(48, &ZERO_SECTORS_MAX.to_le_bytes());
            put(52, &RANGES_MAX.to_le_bytes());
            put(56, &[u8::from(features & DISCARD != 0)]);
        }
        space
    }
}

/// The most data segments in a request: what one descriptor each for header and status leaves of the queue.
fn seg_max(queue_size: u16) -> u32 {
    u32::from(queue_size.saturating_sub(2)).clamp(1, SEG_MAX_OFFERED)
}

/// The cache mode that a write to the space sets, if it does.
pub(super) fn written_write_back(offset: u64, data: &[u8]) -> Option<bool> {
    let at = usize::try_from(WRITEBACK.checked_sub(offset)?).ok()?;
    data.get(at).map(|byte| byte & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> Space {
        let topology = Topology {
            logical_block: 512,
            physical_block: 4096,
            alignment_offset: 1024,
            minimum_io: 4096,
            optimal_io: 1 << 20,
            discard_granularity: 4096,
        };
        Space { size: 3 << 30, topology, queues: 4, queue_size: 256, write_back: true, read_only: false }
    }

    fn number(space: &Space, offset: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        space.read(offset, &mut bytes[..size]);
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let space = space();
        // Offset and size of each field, from struct virtio_blk_config.
        let fields = [
            (0, 8, 3 << 21),
            (8, 4, 0),
            (12, 4, 126),
            (20, 4, 512),
            (24, 1, 3),
            (25, 1, 2),
            (26, 2, 8),
            (28, 4, 2048),
            (32, 1, 1),
            (34, 2, 4),
            (36, 4, 1 << 22),
            (40, 4, 64),
            (44, 4, 8),
            (48, 4, 1 << 18),
            (52, 4, 64),
            (56, 1, 1),
            (60, 8, 0),
        ];
        for (offset, size, value) in fields {
            assert_eq!(number(&space, offset, size), value, "at {offset}");
        }
        let mut past = [0xaa; 4];
        space.read(58, &mut past);
        assert_eq!(past, [0, 0, 0xaa, 0xaa]);
        space.read(u64::MAX, &mut past);
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let space = Space { read_only: true, queues: 1, ..space() };
        assert_eq!(space.features() & (RO | DISCARD | WRITE_ZEROES | MQ), RO);
        assert_eq!(number(&space, 36, 8), 0);
        assert_eq!(number(&space, 48, 8), 0);
    }

    #[test]
    fn the_cache_mode_is_the_only_field_that_is_written() {
        assert_eq!(written_write_back(32, &[0]), Some(false));
        assert_eq!(written_write_back(32, &[1]), Some(true));
        assert_eq!(written_write_back(30, &[0, 0, 1, 0]), Some(true));
        for (offset, data) in [(33, &[0][..]), (0, &[0; 8]), (31, &[0]), (32, &[]), (u64::MAX, &[1; 8])] {
            assert_eq!(written_write_back(offset, data), None, "{offset} {data:?}");
        }
    }
}
