//! The header in front of each packet (virtio 1.2, 5.1.6).

use crate::features::Features;

/// Its size in bytes.
pub const SIZE: usize = 12;
/// Where in it the number of buffers is, of a packet received.
pub(super) const NUM_BUFFERS: u64 = 10;

/// The smallest packet that is one: Ethernet's header.
pub(super) const MIN_FRAME: u64 = 14;
/// The largest packet with segmentation left to do, header included (virtio 1.2, 5.1.6.3.1).
pub(super) const MAX_LARGE: u64 = 65562;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Makes a header the driver gave fit to be passed on. `false`: it asks for what was not negotiated.
pub(super) fn sanitize(header: &mut [u8; SIZE], features: Features) -> bool {
    let [flags, gso_type, _, _, gso_a, gso_b, _, _, _, _, buffers @ ..] = header;
    // Other flags are for packets the driver receives, as is the number of buffers.
    *flags &= NEEDS_CSUM;
    *buffers = [0; 2];
    let ecn = *gso_type & GSO_ECN != 0;
    let needed = match *gso_type & !GSO_ECN {
        GSO_NONE if ecn => return false,
        GSO_NONE => Features::empty(),
        GSO_TCPV4 => Features::HOST_TSO4,
        GSO_TCPV6 => Features::HOST_TSO6,
        GSO_UDP => Features::HOST_UFO,
        GSO_UDP_L4 => Features::HOST_USO,
        _ => return false,
    };
    let segmented = !needed.is_empty();
    if segmented && [*gso_a, *gso_b] == [0; 2] {
        return false;
    }
    let mut needed = needed;
    if ecn {
        needed |= Features::HOST_ECN;
    }
    if *flags & NEEDS_CSUM != 0 {
        needed |= Features::CSUM;
    }
    features.contains(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_negotiated_passes() {
        let all = Features::CSUM | Features::HOST_TSO4 | Features::HOST_ECN;
        let header = |flags, gso_type, size: u8| {
            let mut header = [0; SIZE];
            (header[0], header[1], header[4], header[11]) = (flags, gso_type, size, 7);
            header
        };
        for (flags, gso_type, size, passes) in [
            (0, 0, 0, true),
            (1, 0, 0, true),
            (1, 1, 100, true),
            (1, 0x81, 100, true),
            (1, 1, 0, false),
            (1, 2, 100, false),
            (1, 4, 100, false),
            (1, 5, 100, false),
            (1, 0x80, 100, false),
        ] {
            let mut header = header(flags, gso_type, size);
            assert_eq!(sanitize(&mut header, all), passes, "{flags} {gso_type} {size}");
            assert_eq!(header[11], 0, "the number of buffers is not the driver's to say");
        }
        assert!(!sanitize(&mut header(1, 0, 0), Features::empty()));
        let mut odd = header(0xfe, 0, 0);
        assert!(sanitize(&mut odd, all));
        assert_eq!(odd[0], 0);
    }
}
