//! Files that are read into guest memory.

use super::BootError;
use machine::memory::{Bytes, GuestAddress, GuestMemoryBackend, Memory};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use vm_memory::ReadVolatile;

/// What a kernel or initramfs is read from: a [`std::fs::File`], or in tests a [`std::io::Cursor`].
pub trait BootFile: Read + Seek + ReadVolatile {}

impl<T: Read + Seek + ReadVolatile> BootFile for T {}

/// A file of known size.
pub(crate) struct Contents<'a, F> {
    file: &'a mut F,
    size: u64,
}

impl<'a, F: BootFile> Contents<'a, F> {
    pub(crate) fn new(file: &'a mut F) -> io::Result<Self> {
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, size })
    }

    /// Bytes in the file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset` on, as far as the file goes, and says how far.
    pub(crate) fn read_at_most(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.seek(SeekFrom::Start(offset))?;
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read(rest) {
                Ok(0) => break,
                Ok(n) => done = done.saturating_add(n),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Fills `buffer` from `offset` on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn read_exactly(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let wanted = buffer.len();
        if self.read_at_most(offset, buffer)? == wanted { Ok(()) } else { Err(shrank()) }
    }

    /// Reads `count` bytes from `offset` on straight into guest memory.
    pub(crate) fn load(
        &mut self,
        memory: &Memory,
        offset: u64,
        address: GuestAddress,
        count: u64,
    ) -> io::Result<()> {
        let count = usize::try_from(count).map_err(io::Error::other)?;
        self.file.seek(SeekFrom::Start(offset))?;
        for slice in memory.get_slices(address, count) {
            let slice = slice.map_err(io::Error::other)?;
            let mut done = 0;
            while done < slice.len() {
                let mut rest = slice.offset(done).map_err(io::Error::other)?;
                match self.file.read_volatile(&mut rest) {
                    Ok(0) => return Err(shrank()),
                    Ok(n) => done = done.saturating_add(n),
                    Err(vm_memory::VolatileMemoryError::IOError(error)) => {
                        if error.kind() != ErrorKind::Interrupted {
                            return Err(error);
                        }
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
        }
        Ok(())
    }
}

/// The file was longer when its size was asked for.
fn shrank() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the file changed while it was read")
}

/// Writes boot data.
pub(crate) fn write(memory: &Memory, address: GuestAddress, bytes: &[u8]) -> Result<(), BootError> {
    memory.write_slice(bytes, address).map_err(|_| BootError::Memory { address })
}

/// Clears memory.
#[cfg(target_arch = "x86_64")]
pub(crate) fn zero(memory: &Memory, address: GuestAddress, count: u64) -> Result<(), BootError> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    let mut done = 0u64;
    while done < count {
        let chunk = count.saturating_sub(done).min(ZEROES.len() as u64);
        let at = GuestAddress(address.0.saturating_add(done));
        let zeroes = usize::try_from(chunk).ok().and_then(|n| ZEROES.get(..n)).unwrap_or_default();
        write(memory, at, zeroes)?;
        done = done.saturating_add(chunk);
    }
    Ok(())
}

/// Fields of a file format: little-endian numbers at offsets, `None` past the end.
pub(crate) mod fields {
    fn bytes<const N: usize>(data: &[u8], offset: usize) -> Option<[u8; N]> {
        data.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn u8_at(data: &[u8], offset: usize) -> Option<u8> {
        data.get(offset).copied()
    }

    pub(crate) fn u16_at(data: &[u8], offset: usize) -> Option<u16> {
        bytes(data, offset).map(u16::from_le_bytes)
    }

    pub(crate) fn u32_at(data: &[u8], offset: usize) -> Option<u32> {
        bytes(data, offset).map(u32::from_le_bytes)
    }

    pub(crate) fn u64_at(data: &[u8], offset: usize) -> Option<u64> {
        bytes(data, offset).map(u64::from_le_bytes)
    }

    /// Writes `value` at `offset`, as far as `data` goes.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn put(data: &mut [u8], offset: usize, value: &[u8]) {
        let end = offset.saturating_add(value.len());
        if let Some(place) = data.get_mut(offset..end) {
            place.copy_from_slice(value);
        }
    }
}
