//! Decompresses a part of a file piece by piece. Memory it takes is bounded: by constants with gzip, and with zstd and xz by
//! how far back in their output these may refer, which is limited.

mod gzip;
mod xz;
mod zstd;

use crate::boot::{BootFile, Contents, KernelError};
use std::io::{self, BufReader, Read};

/// How far back in the output a compressed part may refer, at most. It is what kernels are compressed with (Linux,
/// `lib/decompress_unxz.c`, and `zstd --ultra -22`).
const WINDOW_LIMIT: u64 = 128 << 20;
/// How much is read from the file at once.
const BUFFER: usize = 1 << 16;

/// How something is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Gzip,
    Zstd,
    Xz,
}

impl Method {
    const ALL: [Self; 3] = [Self::Gzip, Self::Zstd, Self::Xz];

    /// That of a file that starts with `head`.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|method| head.starts_with(method.magic()))
    }

    fn magic(self) -> &'static [u8] {
        match self {
            Self::Gzip => b"\x1f\x8b",
            Self::Zstd => b"\x28\xb5\x2f\xfd",
            Self::Xz => b"\xfd7zXZ\0",
        }
    }

    /// What users call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        }
    }

    fn damaged(self, reason: impl Into<String>) -> KernelError {
        KernelError::Compressed { method: self.name(), reason: reason.into() }
    }
}

/// What comes out of a compressed part of a file. What follows its end in that part does not count.
pub(super) trait Decompress {
    /// Fills `out`, which is not empty, as far as there is something at hand, and says how far. 0: all came, and is as it was
    /// when it was compressed.
    fn read(&mut self, out: &mut [u8]) -> Result<usize, KernelError>;
}

/// Decompresses `size` bytes of the file from `start` on.
pub(super) fn open<'a, F: BootFile>(
    method: Method,
    contents: &'a mut Contents<'_, F>,
    start: u64,
    size: u64,
) -> Result<Box<dyn Decompress + 'a>, KernelError> {
    let section = Section { contents, next: start, end: start.saturating_add(size), ended: false };
    let source = BufReader::with_capacity(BUFFER, section);
    Ok(match method {
        Method::Gzip => Box::new(gzip::Gunzip::new(source)?),
        Method::Zstd => Box::new(zstd::Unzstd::new(source)?),
        Method::Xz => Box::new(xz::Unxz::new(source)),
    })
}

type Source<'a, 'b, F> = BufReader<Section<'a, 'b, F>>;

/// A part of a file.
struct Section<'a, 'b, F> {
    contents: &'a mut Contents<'b, F>,
    /// Where in the file to read on.
    next: u64,
    end: u64,
    /// More was asked for than there is.
    ended: bool,
}

impl<F: BootFile> Read for Section<'_, '_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.next)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let length = self.contents.read_at_most(self.next, buffer.get_mut(..wanted).unwrap_or_default())?;
        self.next = self.next.saturating_add(length as u64);
        self.ended |= length == 0;
        Ok(length)
    }
}

fn cut_off(method: Method) -> KernelError {
    method.damaged("it is cut off: copy the file again")
}
