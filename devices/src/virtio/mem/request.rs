//! Requests and their answers (virtio 1.2, 5.15.6).

use virtio::chain::Chain;

/// Bytes of a request.
const REQUEST: usize = 24;
/// Bytes of an answer.
pub(super) const ANSWER: usize = 10;

/// What the driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Plug these blocks: address and number.
    Plug(u64, u16),
    /// Unplug these.
    Unplug(u64, u16),
    /// Unplug every block.
    UnplugAll,
    /// Tell whether these are plugged.
    State(u64, u16),
    /// Something that no driver asks for.
    Unknown(u16),
}

impl Request {
    /// What `chain` holds. Missing bytes are zero.
    pub(super) fn read(chain: &Chain) -> Self {
        let mut bytes = [0; REQUEST];
        let _ = chain.read_at(0, &mut bytes);
        let [t0, t1, _, _, _, _, _, _, a0, a1, a2, a3, a4, a5, a6, a7, n0, n1, ..] = bytes;
        let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let count = u16::from_le_bytes([n0, n1]);
        match u16::from_le_bytes([t0, t1]) {
            0 => Self::Plug(address, count),
            1 => Self::Unplug(address, count),
            2 => Self::UnplugAll,
            3 => Self::State(address, count),
            other => Self::Unknown(other),
        }
    }
}

/// What the device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is done.
    Ack,
    /// Not now: the host does not want so much plugged.
    Nack,
    /// Not now: the host has no memory, or does not take it back.
    Busy,
    /// The request makes no sense.
    Error,
    /// The blocks are plugged (0), unplugged (1) or some of each (2).
    State(u16),
}

impl Answer {
    pub(super) fn bytes(self) -> [u8; ANSWER] {
        let (kind, state) = match self {
            Self::Ack => (0_u8, 0),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
            Self::State(state) => (0, state),
        };
        let [s0, s1] = state.to_le_bytes();
        [kind, 0, 0, 0, 0, 0, 0, 0, s0, s1]
    }
}
